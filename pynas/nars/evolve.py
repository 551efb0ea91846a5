"""Predictor-based evolutionary search (stage 3, section 3.4) with the adaptive genetic algorithm, run by the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.cores import thread_count
from pynas.errors import PynasError
from pynas.predict.predictor import Predictor
from pynas.space.budget import Budget
from pynas.space.space import Space, check_seed, contiguous

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODES = ("default", "paper")
MOST = 10**9  # of anything counted


@dataclass(frozen=True)
class EvolutionSettings:
    """Settings of the genetic algorithm. Fields left at None take the value of the mode, see `resolved`.

    ``paper`` is Algorithm 1 with the probabilities of Srinivas & Patnaik (1994) to the letter; ``default`` mends what
    makes it stop early or return a candidate over budget (docs/search.md tells each trap).
    """

    mode: str = "default"
    children: int = 24  # of each candidate (A.3; 12 in version 1 of the paper)
    keep: int = 40  # K, candidates of the next generation (A.3)
    inherited: int = 50  # p, best candidates of stage 2 in the first generation (A.3)
    random: int = 50  # q, random candidates in the first generation (A.3)
    epsilon: float = 1e-6  # smallest gain of the best score that counts (Algorithm 1)
    max_evaluations: int = 500_000  # scored children of one restart
    patience: int | None = None  # generations without such a gain before it stops
    restarts: int | None = None
    k1: float | None = None  # p_c = k1 (f_max - f') / (f_max - f_avg), k3 below the average
    k2: float | None = None  # p_m = k2 (f_max - f) / (f_max - f_avg), k4 below the average
    k3: float | None = None
    k4: float | None = None
    mutation_floor: float | None = None  # lowest p_m

    def __post_init__(self) -> None:
        """Raises PynasError for a value out of range; None is allowed where the mode decides."""
        if self.mode not in MODES:
            raise PynasError(f"evolution mode {self.mode!r}; allowed: {', '.join(MODES)}")
        at_least = dict.fromkeys(("children", "keep", "max_evaluations", "patience", "restarts"), 1)
        at_least |= dict.fromkeys(("inherited", "random", "epsilon"), 0)
        for name, low in at_least.items():
            value = getattr(self, name)
            if value is None and name in ("patience", "restarts"):
                continue
            whole = name == "epsilon" or isinstance(value, int)
            if not isinstance(value, int | float) or not whole or not low <= value <= MOST:
                kind = "numbers" if name == "epsilon" else "whole numbers"
                raise PynasError(f"evolution {name}: {value!r}; allowed: {kind} from {low} to {MOST}")
        for name in ("k1", "k2", "k3", "k4", "mutation_floor"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
                raise PynasError(f"evolution {name}: {value!r}; allowed: from 0 to 1")

    def resolved(self, variables: int) -> EvolutionSettings:
        """Every field filled in, for a space of that many variables."""
        floor = min(2 / max(variables, 1), 1.0)
        of_mode: dict[str, Any] = {
            "paper": {"patience": 1, "restarts": 1, "k2": 0.5, "k4": 0.5, "mutation_floor": 0.0},
            "default": {"patience": 5, "restarts": 8, "k2": 0.1, "k4": 0.1, "mutation_floor": floor},
        }[self.mode] | {"k1": 1.0, "k3": 1.0}
        return replace(self, **{key: value for key, value in of_mode.items() if getattr(self, key) is None})


@dataclass(frozen=True)
class EvolutionResult:
    """The top K candidates, best first.

    `genomes` uint8 ``(K, variables)``, `scores` float32 ``(K,)`` predicted accuracies, `costs` int64 ``(K,)`` by name.
    `history` has one row a generation, arrays by name: restart, generation, evaluations (scored children so far), best
    and mean score. `evaluations` counts the scored children of all restarts.
    """

    genomes: NDArray[np.uint8]
    scores: NDArray[np.float32]
    costs: Mapping[str, NDArray[np.int64]]
    history: Mapping[str, NDArray[Any]]
    evaluations: int


def evolve(
    space: Space,
    predictor: Predictor,
    *,
    budget: Budget | Mapping[str, Any] | None = None,
    seed: int = 0,
    initial: NDArray[np.uint8] | None = None,
    settings: EvolutionSettings | None = None,
    threads: int = 0,
    **overrides: Any,
) -> EvolutionResult:
    """The best architecture-recipe pairs that the predictor finds within a budget.

    `initial` are genomes to inherit, best first (Algorithm 1: the best of stage 2); random ones within the budget are
    added. `overrides` are fields of `EvolutionSettings`, for instance ``mode="paper"``. The same seed gives the same
    result on any number of threads (0: all cores). Raises PynasError for a budget the space cannot meet, an unknown
    setting, or a predictor of another space.
    """
    known = [field.name for field in fields(EvolutionSettings)]
    if unknown := [name for name in overrides if name not in known]:
        raise PynasError(f"evolve: unknown setting {unknown[0]!r}; allowed: {', '.join(known)}")
    if settings is not None and not isinstance(settings, EvolutionSettings):
        raise PynasError(f"evolve: settings {settings!r}; allowed: EvolutionSettings, or its fields as keywords")
    full = replace(settings or EvolutionSettings(), **overrides).resolved(len(space.variables))
    if not isinstance(predictor, Predictor):
        came = type(predictor).__name__
        hint = "pynas.Predictor.load(path), or the predictor of a model's distill(space)"
        raise PynasError(f"evolve: predictor of type {came}; allowed: a Predictor, as {hint}")
    inherited = np.zeros((0, len(space.variables)), np.uint8) if initial is None else initial[: full.inherited]
    lower, upper = Budget.of(budget).arrays()
    options = asdict(full)
    del options["inherited"]
    from pynas import _core

    scorer = predictor.for_space(space)
    try:
        found = _core.evolve(
            space.core, scorer, contiguous(inherited), lower, upper, options, check_seed(seed), thread_count(threads)
        )
    except (ValueError, TypeError) as error:
        raise PynasError(f"{space.name}: {str(error).splitlines()[0]}") from None
    genomes = found["genomes"]
    return EvolutionResult(genomes, found["scores"], space.costs(genomes), found["history"], found["evaluations"])
