"""The exponential moving average of a network's weights, equation 2 of the FBNetV3 appendix."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pynas.train.config import PAPER_EMA_DECAY, PAPER_EMA_STEPS, TrainingConfig


def ema_decay(training: TrainingConfig, steps_per_epoch: int) -> float:
    """alpha of equation 2 per step: as configured, or the paper's window scaled to the length of the full training."""
    if training.ema_decay is not None:
        return training.ema_decay
    return min(PAPER_EMA_DECAY, max(0.0, 1.0 - PAPER_EMA_STEPS / (training.epochs * steps_per_epoch)))


class WeightAverage:
    """A copy of `network` whose weights follow w_ema <- alpha w_ema + (1 - alpha) w after every step.

    Both start equal (A.5). The batch-norm statistics are averaged in the same way, because those of the raw weights do
    not fit the averaged ones. `network` here is the average, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._average = _floats(self.network)
        self._source = _floats(network)

    @torch.no_grad()
    def update(self) -> None:
        """One step of equation 2; call it after the optimizer's step."""
        torch._foreach_lerp_(self._average, self._source, 1.0 - self.decay)


def _floats(network: nn.Module) -> list[Tensor]:
    """Parameters and floating buffers (running means and variances; not the integer count of batches)."""
    return [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
