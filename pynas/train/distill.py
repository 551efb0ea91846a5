"""Distillation (Hinton et al. 2015) as in section 4.2 of the FBNetV3 paper: 0.8 distillation + 0.2 cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pynas.data.batches import MEMORY_FORMAT, arranged
from pynas.errors import PynasError
from pynas.nets.inference import for_inference


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), the mean over the batch; (N, classes) each, returns ().

    Zero where both agree. T^2 keeps the gradient's size independent of the temperature.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    target = functional.log_softmax(teacher_logits / temperature, dim=1)
    return functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """A trained network that others learn from: evaluation mode, no gradients, the same images as its student."""

    def __init__(self, network: nn.Module, memory_format: torch.memory_format = MEMORY_FORMAT) -> None:
        self.network = for_inference(network.eval().requires_grad_(False))
        self.memory_format = memory_format

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) as the student sees them, mixed up; returns (N, classes)."""
        return self.network(arranged(images, self.memory_format))


def check_outputs(
    name: str, network: nn.Module, classes: int, channels: int, resolution: int, *, seed: int = 0
) -> torch.memory_format:
    """The memory format in which a network on the CPU maps float (N, channels, resolution, resolution) to (N, classes).

    It is channels_last, and contiguous for a network that cannot take that (one that calls `view` on its maps does
    not). Run in evaluation mode, so that nothing of the network changes, apart from lazy layers, which then take their
    shapes, with initial weights by `seed`. Raises PynasError where the network does not do that in either format.
    """
    shape = (2, channels, resolution, resolution)
    training = network.training
    memory_format = MEMORY_FORMAT
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            network.eval()
            if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
                network(torch.zeros(shape))
            try:
                network.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in torch's stub
                outputs = network(torch.empty(shape, memory_format=memory_format).zero_())
            except RuntimeError:
                memory_format = torch.contiguous_format
                for parameter in network.parameters():
                    parameter.data = arranged(parameter.data, memory_format)
                outputs = network(torch.zeros(shape))
            found = tuple(outputs.shape)
    except Exception as error:  # whatever a user's network raises
        text = " ".join(str(error).split())
        raise PynasError(f"{name}: cannot take images of {channels} x {resolution} x {resolution}: {text}") from error
    finally:
        network.train(training)
    if found != (2, classes):
        got = f"{found[1]} classes" if len(found) == 2 else f"outputs of shape {found} for 2 images"
        raise PynasError(f"{name}: got {got}, the data have {classes} classes")
    if training and not any(parameter.requires_grad for parameter in network.parameters()):
        raise PynasError(f"{name}: has no parameter to train")
    return memory_format
