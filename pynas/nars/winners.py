"""The answers of a search: what evolution inherits from stage 2, and winners as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas.nars.evolve import EvolutionResult
from pynas.space.budget import Budget
from pynas.space.space import Space
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
