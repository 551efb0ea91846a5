"""Answers from what is there already: a finished study's predictor. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.errors import PynasError
from pynas.nars.evolve import EvolutionResult, evolve
from pynas.nars.opening import open_config, open_space
from pynas.nars.results import read_results
from pynas.nars.winners import inherited
from pynas.predict.predictor import Predictor
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study

if TYPE_CHECKING:
    from pynas.nars.config import StudyConfig


def open_study(path: str | Path) -> tuple[StudyDirectory, StudyConfig]:
    """A study's directory and configuration, for reading. Raises PynasError where there is none."""
    directory = StudyDirectory.open(path)
    return directory, open_config(directory)


def evolve_study(
    path: str | Path, budget: Budget, *, mode: str | None = None, seed: int = 0
) -> tuple[Space, EvolutionResult]:
    """Stage 3 for a new budget: evolve from the study's predictor and its best trained candidates.

    Raises PynasError where the study has no predictor yet or the budget cannot be met.
    """
    directory, config = open_study(path)
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
