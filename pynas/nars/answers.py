"""Answers from what is there already: a finished study's predictor. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pynas.errors import PynasError
from pynas.nars.config import NARSConfig
from pynas.nars.evolve import EvolutionResult, evolve
from pynas.nars.spaces import open_space
from pynas.nars.winners import inherited
from pynas.predict.predictor import Predictor
from pynas.search.opening import open_study
from pynas.search.results import read_results
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.study.study import Study


def evolve_study(
    path: str | Path, budget: Budget, *, mode: str | None = None, seed: int = 0
) -> tuple[Space, EvolutionResult]:
    """Stage 3 for a new budget: evolve from the study's predictor and its best trained candidates.

    Raises PynasError where the study has no predictor yet or the budget cannot be met.
    """
    directory, config = open_study(path)
    if not isinstance(config, NARSConfig):
        raise PynasError(f"{path}: a study of method {config.method} has no predictor to evolve from")
    if not directory.predictor.exists():
        raise PynasError(f"{path}: has no predictor yet; finish the search first: pynas search STUDY.yaml")
    space = open_space(directory, config)
    trials = [t for t in Study.open(directory, read_only=True).trials() if t.state == "complete"]
    stop = read_results(directory.results).get("early_stop") or {"epoch": 1}
    overrides: dict[str, Any] = {"mode": mode} if mode else {}
    result = evolve(
        space,
        Predictor.load(directory.predictor),
        budget=budget,
        seed=seed,
        initial=inherited(trials, stop["epoch"]),
        settings=config.evolution,
        **overrides,
    )
    return space, result
