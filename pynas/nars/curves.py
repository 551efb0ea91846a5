"""What the curve of an unfinished training says of the accuracy that it will end with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_CURVES = 6  # complete ones, fewer of which say nothing about others


@dataclass(frozen=True)
class Expected:
    """An accuracy that is not measured yet, and the variance of the guess."""

    accuracy: float
    variance: float


def expected(curves: Sequence[Sequence[float]], begun: Sequence[float], epoch: int) -> Expected | None:
    """The accuracy at `epoch` of a training whose curve is `begun`: least squares on `curves`, complete ones.

    A line through the accuracies at the last epoch begun and at `epoch`, from one complete training to another. None
    where nothing is begun or too few are complete.
    """
    if not begun or len(curves) < MIN_CURVES:
        return None
    if len(begun) >= epoch:
        return Expected(begun[epoch - 1], 0.0)
    now = np.array([curve[len(begun) - 1] for curve in curves])
    then = np.array([curve[epoch - 1] for curve in curves])
    spread = ((now - now.mean()) ** 2).sum()
    slope = max(float((now - now.mean()) @ (then - then.mean()) / spread), 0.0) if spread > 0 else 0.0
    residual = then - then.mean() - slope * (now - now.mean())
    away = begun[-1] - now.mean()
    share = 1 + 1 / len(curves) + (away**2 / spread if spread > 0 else 0.0)
    variance = float(residual @ residual / (len(curves) - 2) * share)
    return Expected(float(then.mean() + slope * away), variance)
