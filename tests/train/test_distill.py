"""Distillation: the loss against its definition, what a teacher is, and that a student learns from it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pynas.errors import PynasError
from pynas.train.distill import Teacher, check_outputs, distillation_loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_of_softened_distributions(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    p, q = functional.softmax(teacher / temperature, 1), functional.softmax(student / temperature, 1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    loss = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, (temperature * (q - p) / 5).detach(), rtol=1e-10, atol=1e-12)
    assert distillation_loss(teacher, teacher, temperature).item() == pytest.approx(0.0, abs=1e-12)


def test_a_teacher_is_in_evaluation_mode_and_learns_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(3))
    images = torch.randn(2, 1, 5, 5)
    network(images)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = Teacher(network)
    logits = teacher.logits(images)
    assert not logits.requires_grad
    assert torch.equal(logits, teacher.logits(images))  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_networks_that_do_not_fit_the_data() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    check_outputs("model mine", network, classes=4, channels=3, resolution=8)
    assert network.training
    with pytest.raises(PynasError, match="model mine: got 4 classes, the data have 5 classes"):
        check_outputs("model mine", network, classes=5, channels=3, resolution=8)
    with pytest.raises(PynasError, match="model mine: cannot take images of 1 x 8 x 8: mat1 and mat2"):
        check_outputs("model mine", network, classes=4, channels=1, resolution=8)
    with pytest.raises(PynasError, match=r"got outputs of shape \(2, 3, 1, 1\) for 2 images, the data have 4 classes"):
        check_outputs("model mine", nn.AdaptiveAvgPool2d(1), classes=4, channels=3, resolution=8)
