"""Aimed selection: which candidates to train next, such that the best under each of several budgets is found soon.

Each pick is for one budget, in turns, and takes the candidate within it whose accuracy is largest at some optimism,
mean + kappa deviations, with kappa drawn anew from Exp(1): an upper confidence bound with a random weight. The last
round takes kappa = 0. The answer under a budget is the best candidate that was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pynas.randomness import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray


def first_picks(within: NDArray[np.bool_], m: int, *, seed: int, free: NDArray[np.bool_] | None = None) -> list[int]:
    """Indices of at most `m` random candidates, spread over the segments between the budgets.

    `within` is bool ``(budgets, n)``: which candidates each budget admits. A segment holds those that the same budgets
    admit; candidates of none are left out. `free` are those that may be picked, bool ``(n,)``.
    """
    admitted = within.any(axis=0) if free is None else within.any(axis=0) & free
    order = generator(seed, "first picks").permutation(np.flatnonzero(admitted))
    # Budgets as the bits of a number: one a segment. Nested budgets have as many segments as there are of them.
    _, segments = np.unique(np.packbits(within, axis=0), axis=1, return_inverse=True)
    segments = segments.reshape(-1)[order]
    rows = [order[segments == segment].tolist() for segment in np.unique(segments)]
    chosen: list[int] = []
    rank = 0
    while len(chosen) < min(m, len(order)):
        # One of each segment before the second of any, in random order: fewer picks are the first of more.
        for segment in generator(seed, "segments", rank).permutation(len(rows)):
            chosen += rows[segment][rank : rank + 1]
        rank += 1
    return chosen[:m]


def aimed_picks(
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    within: NDArray[np.bool_],
    m: int,
    *,
    turn: int,
    seed: int,
    greedy: bool = False,
    free: NDArray[np.bool_] | None = None,
    picked: Callable[[int], NDArray[np.float64]] | None = None,
) -> list[int]:
    """Indices of at most `m` candidates, without repetition.

    `mean` and `deviation` are those of the candidates' accuracy, ``(n,)``, on the scale on which it is normal; `within`
    and `free` as in `first_picks`. `turn` counts the picks made before, in this search: it tells which budget is next,
    and with `seed` what kappa is. A budget that admits no free candidate gives its turn to the next. `greedy` is for
    the last round. `picked` is told every pick and gives the deviations that remain once it is believed.
    """
    free = np.ones(len(mean), np.bool_) if free is None else free.copy()
    chosen: list[int] = []
    for pick in range(turn, turn + m):
        kappa = 0.0 if greedy else float(generator(seed, "kappa", pick).exponential())
        for budget in range(pick, pick + len(within)):
            open_ = np.flatnonzero(within[budget % len(within)] & free)
            if len(open_):
                best = int(open_[np.argmax(mean[open_] + kappa * deviation[open_])])
                free[best] = False
                chosen.append(best)
                if picked and len(chosen) < m:
                    deviation = picked(best)
                break
    return chosen


def best_within(accuracies: NDArray[np.float64], within: NDArray[np.bool_]) -> list[int | None]:
    """For each budget the index of the best trained candidate; None where none of them was. NaN is a failed one."""
    measured = np.where(np.isfinite(accuracies), accuracies, -np.inf)
    answers: list[int | None] = []
    for admitted in within:
        rows = np.flatnonzero(admitted & np.isfinite(measured))
        answers.append(int(rows[np.argmax(measured[rows])]) if len(rows) else None)
    return answers


def spread_caps(low: float, high: float, count: int) -> Sequence[float]:
    """Upper bounds on a cost, evenly spread over a range: for budgets that are named only after the search."""
    return [low + (high - low) * (i + 1) / count for i in range(count)]
