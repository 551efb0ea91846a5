"""The paper's learning rate schedule: exponential decay by epoch, interpolated to steps, after a linear warm-up."""

from __future__ import annotations

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

    @classmethod
    def of(cls, training: TrainingConfig, steps_per_epoch: int) -> Schedule:
        decay = training.lr_decay
        if decay is None:
            decay = PAPER_TOTAL_LR_DECAY ** (1.0 / max(training.epochs - training.warmup_epochs, 1.0))
        return cls(steps_per_epoch, decay, training.warmup_epochs)

    def factor(self, step: int) -> float:
        """The learning rate of `step` as a multiple of the initial one, in (0, 1]."""
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if step < warmup_steps:
            return min((step + 1) / warmup_steps, 1.0)
        return float(self.decay ** ((step - warmup_steps) / self.steps_per_epoch))
