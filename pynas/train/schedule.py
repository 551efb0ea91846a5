"""The papers' learning rate schedules, interpolated to steps: exponential decay or half a cosine, after a warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pynas.train.config import PAPER_TOTAL_LR_DECAY, TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """`factor(step)` times the recipe's lr is the learning rate of `step`, counted from 0 over the whole training.

    It depends on the length of the full training and not on where early stopping cuts it, so that a training cut short
    is a prefix of the full one.
    """

    steps_per_epoch: int
    decay: float  # per epoch
    warmup_epochs: float
    cosine_epochs: float | None = None  # from the end of the warm-up to a rate of zero; None: exponential

    @classmethod
    def of(cls, training: TrainingConfig, steps_per_epoch: int) -> Schedule:
        decay = training.lr_decay
        if decay is None:
            decay = PAPER_TOTAL_LR_DECAY ** (1.0 / max(training.epochs - training.warmup_epochs, 1.0))
        cosine = max(training.epochs - training.warmup_epochs, 0.0) if training.schedule == "cosine" else None
        return cls(steps_per_epoch, decay, training.warmup_epochs, cosine)

    def factor(self, step: int) -> float:
        """The learning rate of `step` as a multiple of the initial one, in [0, 1]."""
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if step < warmup_steps:
            return min((step + 1) / warmup_steps, 1.0)
        epochs = (step - warmup_steps) / self.steps_per_epoch
        if self.cosine_epochs is not None:
            return (
                0.5 * (1.0 + math.cos(math.pi * min(epochs / self.cosine_epochs, 1.0))) if self.cosine_epochs else 1.0
            )
        return float(self.decay**epochs)
