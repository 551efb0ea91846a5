"""Equation 2, on parameters and on batch-norm statistics, and the decay by default."""

import pytest
import torch
from torch import nn

from pynas.train.config import TrainingConfig
from pynas.train.ema import WeightAverage, ema_decay


def test_equation_2() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).double()
    average = WeightAverage(network, 0.9)
    names = [name for name, value in network.state_dict().items() if value.is_floating_point()]
    assert "1.running_mean" in names
    expected = {name: network.state_dict()[name].clone() for name in names}  # w_ema = w at t = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for name in names:
            value = network.state_dict()[name]
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
            expected[name] = 0.9 * expected[name] + (1 - 0.9) * value
        average.update()
    for name in names:
        torch.testing.assert_close(average.network.state_dict()[name], expected[name], rtol=1e-12, atol=1e-12)


def test_the_average_is_its_own_network() -> None:
    network = nn.Linear(2, 2)
    average = WeightAverage(network, 0.5)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert average.network.weight.data_ptr() != network.weight.data_ptr()


def test_the_default_decay_scales_with_the_training() -> None:
    assert ema_decay(TrainingConfig(epochs=10), steps_per_epoch=21) == pytest.approx(1 - 21.6 / 210)
    assert ema_decay(TrainingConfig(epochs=150), steps_per_epoch=960) == pytest.approx(0.99985)
    assert ema_decay(TrainingConfig(epochs=400), steps_per_epoch=5000) == 0.99985  # never beyond the paper's
    assert ema_decay(TrainingConfig(epochs=1), steps_per_epoch=5) == 0.0
    assert ema_decay(TrainingConfig(epochs=10, ema_decay=0.999), steps_per_epoch=21) == 0.999
