"""Where aimed selection looks for candidates: a pool, and what the genetic algorithm finds beyond it.

Real spaces cannot be listed. So the compiled genetic algorithm climbs a distilled predictor within each budget, and the
Gaussian process, of which that is a copy, judges what it found together with the pool.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.nars.aimed import aimed_picks, first_picks
from pynas.nars.evolve import EvolutionSettings, evolve
from pynas.predict.domain import Domain
from pynas.predict.encoding import Encoding
from pynas.predict.gaussian_process import Hyperparameters
from pynas.predict.models import UNLABELLED, ProcessModel, fit_model
from pynas.predict.predictor import Predictor
from pynas.randomness import derive_seed, generator
from pynas.space.budget import Budget
from pynas.space.space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEARNT = 9000
LISTED = 200
OF_EACH = 500  # random genomes within each budget beside the pool, which may hold few of a narrow one


@dataclass(frozen=True)
class Picks:
    """`genomes` uint8 ``(m, variables)`` and the accuracies expected of them, NaN of random ones."""

    genomes: NDArray[np.uint8]
    predicted: NDArray[np.float64]


class Acquisition:
    """Chooses candidates of a space for several budgets.

    `pool` is uint8 ``(n, variables)``; `aims` are the budgets. Raises PynasError for a budget that cannot be met.
    """

    def __init__(
        self,
        space: Space,
        pool: NDArray[np.uint8],
        aims: Mapping[str, Budget],
        *,
        evolution: EvolutionSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.space, self.aims, self.seed = space, dict(aims), seed
        self.evolution = evolution or EvolutionSettings()
        self.domain = Domain.of(space)
        within = [
            space.sample(OF_EACH, budget=budget, seed=derive_seed(seed, "within", name))
            for name, budget in aims.items()
        ]
        self.pool = _distinct(np.concatenate([pool, *within]))
        self.unlabelled = self.domain.genomes(space, pool[:UNLABELLED])
        self.encoding = Encoding(self.domain, self.unlabelled)
        self._features = self.encoding(self.domain.genomes(space, self.pool))
        learnt = np.concatenate([*within, pool])[:LEARNT]
        self.learnt = learnt[generator(seed, "learnt").permutation(len(learnt))]  # what a distilled predictor learns

    def first(self, m: int, taken: Collection[bytes]) -> Picks:
        """Random candidates, spread over the segments between the budgets."""
        rows = first_picks(self._within(self.pool), m, seed=self.seed, free=_free(self.pool, taken))
        return Picks(self.pool[rows], np.full(len(rows), np.nan))

    def fit(
        self,
        genomes: NDArray[np.uint8],
        accuracies: NDArray[np.float64],
        *,
        variance: NDArray[np.float64] | None = None,
        begin: Hyperparameters | None = None,
    ) -> ProcessModel:
        """The Gaussian process of labelled genomes; NaN is the accuracy of a failed training."""
        batch = self.domain.genomes(self.space, genomes)
        shared = {"variance": variance, "begin": begin, "encoding": self.encoding, "seed": self.seed}
        model = fit_model("gaussian_process", self.domain, self.unlabelled, batch, accuracies, **shared)
        assert isinstance(model, ProcessModel)
        return model

    def propose(self, predictor: Predictor, best: NDArray[np.uint8], *, turn: int) -> NDArray[np.uint8]:
        """What the genetic algorithm finds within each budget: uint8 ``(n, variables)``.

        `best` are trained genomes, best first, for it to begin with.
        """
        found = [
            evolve(
                self.space,
                predictor,
                budget=budget,
                seed=derive_seed(self.seed, "proposals", name, turn),
                initial=best,
                settings=self.evolution,
            ).genomes
            for name, budget in self.aims.items()
        ]
        return np.concatenate(found)

    def pick(
        self,
        model: ProcessModel,
        proposals: NDArray[np.uint8],
        m: int,
        *,
        turn: int,
        taken: Collection[bytes],
        greedy: bool = False,
        pending: NDArray[np.uint8] | None = None,
    ) -> Picks:
        """At most `m` candidates of the pool and the proposals, see `aimed.aimed_picks`.

        `taken` holds the bytes of genomes that are not to be picked again; `pending` those that are being trained.
        """
        free = _free(self.pool, taken)
        new = _distinct(proposals)
        new = new[_free(new, {*taken, *map(bytes, self.pool)})]
        if pending is not None and len(pending):
            model = model.believing(self.domain.genomes(self.space, pending))
        features = self._features[free].join(self.encoding(self.domain.genomes(self.space, new)))
        mean, deviation = model.process.predict(features)
        genomes = np.concatenate([self.pool[free], new])
        # Only the best few thousand are looked at once more after every pick.
        listed = shortlist(mean, deviation, self._within(genomes), m)
        genomes, mean, deviation = genomes[listed], mean[listed], deviation[listed]
        picked = model.process.believer(features[listed]) if m > 1 and not greedy else None
        settings: dict[str, Any] = {"turn": turn, "seed": self.seed, "greedy": greedy, "picked": picked}
        rows = aimed_picks(mean, deviation, self._within(genomes), m, **settings)
        return Picks(genomes[rows], model.warp.inverse(mean[rows]))

    def _within(self, genomes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.array([self.space.feasible(genomes, budget) for budget in self.aims.values()])


def shortlist(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], within: NDArray[np.bool_], m: int
) -> NDArray[np.intp]:
    """The best of each budget at several degrees of optimism."""
    listed = set[int]()
    for admitted in map(np.flatnonzero, within):
        for kappa in (0.0, 0.5, 1.0, 2.0, 4.0):
            bound = mean[admitted] + kappa * deviation[admitted]
            listed |= set(admitted[np.argsort(-bound, kind="stable")[: LISTED + m]].tolist())
    return np.array(sorted(listed), np.intp)


def _distinct(genomes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each genome once, in the order of their first places."""
    _, first = np.unique(genomes, axis=0, return_index=True)
    return np.ascontiguousarray(genomes[np.sort(first)])


def _free(genomes: NDArray[np.uint8], taken: Collection[bytes]) -> NDArray[np.bool_]:
    return np.array([genome.tobytes() not in taken for genome in genomes], np.bool_)


def keys(genomes: Sequence[Sequence[int]]) -> set[bytes]:
    """Genomes as `taken` holds them."""
    return {np.array(genome, np.uint8).tobytes() for genome in genomes}
