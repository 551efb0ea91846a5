"""Distillation (Hinton et al. 2015) as in section 4.2 of the FBNetV3 paper: 0.8 distillation + 0.2 cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pynas.errors import PynasError


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), the mean over the batch; (N, classes) each, returns ().

    Zero where both agree. T^2 keeps the gradient's size independent of the temperature.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    target = functional.log_softmax(teacher_logits / temperature, dim=1)
    return functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """A trained network that others learn from: evaluation mode, no gradients, the same images as its student."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) as the student sees them, mixed up; returns (N, classes)."""
        return self.network(images)


def check_outputs(name: str, network: nn.Module, classes: int, channels: int, resolution: int) -> None:
    """PynasError where a network on the CPU does not map float (N, channels, resolution, resolution) to (N, classes).

    Run in evaluation mode, so that nothing of the network changes.
    """
    images = torch.zeros(2, channels, resolution, resolution)
    training = network.training
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(images).shape)
    except Exception as error:  # whatever a user's network raises
        text = " ".join(str(error).split())
        raise PynasError(f"{name}: cannot take images of {channels} x {resolution} x {resolution}: {text}") from error
    finally:
        network.train(training)
    if shape != (2, classes):
        got = f"{shape[1]} classes" if len(shape) == 2 else f"outputs of shape {shape} for 2 images"
        raise PynasError(f"{name}: got {got}, the data have {classes} classes")
