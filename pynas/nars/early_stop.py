"""The early-stop epoch (section 3.3, Fig. 5): where early accuracies rank candidates as the final ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pynas.predict.ranking import spearman_rho

# A rank correlation of fewer curves says too little to cut trainings short.
MIN_CURVES = 4


@dataclass(frozen=True)
class EarlyStop:
    """`epoch` (from 1) at which the remaining candidates stop, and `correlation` with the final accuracy by epoch."""

    epoch: int
    threshold: float
    correlation: tuple[float, ...]


def early_stop_epoch(curves: Sequence[Sequence[float]], threshold: float, epochs: int) -> EarlyStop:
    """The first epoch whose Spearman correlation with the final accuracy reaches `threshold`.

    `curves` are the validation accuracies by epoch of the first iteration's candidates, all of length `epochs`. With
    too few of them, or where no earlier epoch reaches the threshold, nothing is stopped early: the epoch is `epochs`.
    """
    if len(curves) < MIN_CURVES:
        return EarlyStop(epochs, threshold, ())
    final = [curve[-1] for curve in curves]
    correlation = tuple(spearman_rho([curve[epoch] for curve in curves], final) for epoch in range(epochs))
    reached = (epoch + 1 for epoch, rho in enumerate(correlation) if rho >= threshold)
    return EarlyStop(next(reached, epochs), threshold, correlation)
