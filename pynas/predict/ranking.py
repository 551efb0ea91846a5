"""Rank correlation: how well one ordering of candidates agrees with another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def kendall_tau(predicted: ArrayLike, measured: ArrayLike) -> float:
    """Kendall's tau-b of two sequences of length n; NaN where either is constant or n < 2."""
    return _correlation("kendalltau", predicted, measured)


def spearman_rho(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rank correlation of two sequences of length n; NaN where either is constant or n < 2."""
    return _correlation("spearmanr", one, other)


def _correlation(name: str, one: ArrayLike, other: ArrayLike) -> float:
    import scipy.stats

    x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(getattr(scipy.stats, name)(x, y).statistic)
