"""Constrained iterative optimisation (section 3.3, A.3): which candidates of the pool to train next."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def select_candidates(
    genomes: NDArray[np.uint8],
    flops: NDArray[np.int64],
    scores: NDArray[np.floating],
    m: int,
    *,
    flop_range: tuple[float, float],
    taken: Collection[bytes] = (),
) -> NDArray[np.int64]:
    """Indices of `m` pool members: the FLOP range is divided into m equal bins, and each gives its best-scored.

    `genomes` is ``(n, variables)``; `taken` holds the bytes of genomes that are not to be chosen again, and equal
    genomes count once. Bins without a member are made up for by the best of what is left. Equal scores go to the lower
    index. Fewer than m indices come back only where the pool has no more distinct genomes.
    """
    low, high = flop_range
    width = (high - low) / m
    bins = np.clip((flops - low) / width, 0, m - 1).astype(np.int64) if width > 0 else np.zeros(len(flops), np.int64)
    used = set(taken)
    best_of_bin: dict[int, int] = {}
    rest: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        key = genomes[index].tobytes()
        if key in used:
            continue
        used.add(key)
        if bins[index] not in best_of_bin:
            best_of_bin[int(bins[index])] = int(index)
        elif len(rest) < m:
            rest.append(int(index))
        if len(best_of_bin) == m:
            break
    chosen = [best_of_bin[b] for b in sorted(best_of_bin)]
    return np.array((chosen + rest)[:m], np.int64)
