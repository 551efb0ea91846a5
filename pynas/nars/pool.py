"""The sample pool (Algorithm 1, stage 1): genomes by quasi-Monte-Carlo sampling, kept where they fit the budget."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pynas.randomness import generator
from pynas.space.budget import Budget
from pynas.space.space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Points drawn before rejection is given up for the core's sampler, which also finds needles in haystacks.
_MAX_POINTS = 2**21


@dataclass(frozen=True)
class Pool:
    """`genomes` uint8 ``(n, variables)`` within `budget`, and how they came: points drawn and the share that fitted."""

    genomes: NDArray[np.uint8]
    budget: Budget
    drawn: int
    acceptance: float


def make_pool(space: Space, n: int, *, budget: Budget, seed: int) -> Pool:
    """`n` genomes from a scrambled Sobol sequence, those outside the budget left out.

    Where hardly any point fits, the rest comes from `Space.sample` (uniform among the feasible). Raises PynasError
    where the budget cannot be met.
    """
    from scipy.stats import qmc

    sobol = qmc.Sobol(max(len(space.variables), 1), scramble=True, rng=generator(seed, "pool"))
    kept: list[NDArray[np.uint8]] = []
    found = drawn = 0
    batch = n
    while found < n and drawn < _MAX_POINTS:
        # Whole sequences of a power of two keep Sobol's balance; the acceptance so far tells how many more are needed.
        points = min(2 ** math.ceil(math.log2(max(batch, 256))), _MAX_POINTS - drawn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about balance, where a second batch follows the first
            genomes = space.core.from_unit(sobol.random(points))
        drawn += points
        fitting = genomes[space.feasible(genomes, budget)] if budget.bounds else genomes
        kept.append(fitting)
        found += len(fitting)
        batch = int((n - found) * drawn / max(found, 1)) + 1
    acceptance = found / drawn
    if found < n:
        kept.append(space.sample(n - found, budget=budget, seed=seed))
    return Pool(np.ascontiguousarray(np.concatenate(kept)[:n]), budget, drawn, acceptance)
