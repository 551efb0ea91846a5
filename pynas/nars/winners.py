"""The answers of a search: what evolution inherits from stage 2, and winners as values, text and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pynas.files import write_whole
from pynas.nars.evolve import EvolutionResult
from pynas.space.architecture import Architecture, Recipe
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.space.table import format_network
from pynas.study.trials import Trial


def inherited(trials: Sequence[Trial], epoch: int) -> NDArray[np.uint8] | None:
    """Genomes of complete trials, best accuracy at `epoch` first: uint8 ``(n, variables)``; None if there are none."""
    ranked = sorted(trials, key=lambda trial: -trial.curve[epoch - 1])
    return np.array([trial.genome for trial in ranked], np.uint8) if ranked else None


def answer(space: Space, result: EvolutionResult, budget: Budget, model: str | None = None) -> dict[str, Any]:
    """The best candidate of an evolution as plain values; `model` names the network where no table describes it."""
    architecture, recipe = space.decode(result.genomes[0])
    return {
        "budget": budget.to_dict(),
        "genome": result.genomes[0].tolist(),
        "predicted": float(result.scores[0]),
        "costs": {name: int(cost[0]) for name, cost in result.costs.items()},
        "architecture": None if model else architecture.to_dict(),
        "model": model,
        "recipe": recipe and recipe.to_dict(),
    }


def write_winner(path: Path, space: Space, winner: dict[str, Any], name: str) -> None:
    """One winner as a table without choices, which `pynas train`, `count` and ``architecture:`` of a study take.

    Where no table describes the network it is a recipe file, for `pynas train MODEL --recipe FILE`.
    """
    path.parent.mkdir(exist_ok=True)
    if winner["architecture"] is None:
        write_whole(path, f"# of {winner['model']}\n{yaml.safe_dump(winner['recipe'], sort_keys=False)}")
        return
    architecture = Architecture.from_dict(winner["architecture"])
    notes = {"budget": winner["budget"], "predicted": winner["predicted"], **winner["costs"]}
    if final := winner.get("final"):
        notes |= {key: final[key] for key in ("epochs", "accuracy", "test_accuracy")}
    recipe = winner["recipe"] and Recipe.from_dict(winner["recipe"])
    write_whole(path, format_network(architecture, recipe, name=f"{space.name}-{name}", notes=notes))
