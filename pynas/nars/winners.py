"""The answers of a search: what evolution inherits from stage 2, and winners as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.study.trials import Trial


def inherited(trials: Sequence[Trial], epoch: int) -> NDArray[np.uint8] | None:
    """Genomes of complete trials, best accuracy at `epoch` first: uint8 ``(n, variables)``; None if there are none."""
    ranked = sorted(trials, key=lambda trial: -trial.curve[epoch - 1])
    return np.array([trial.genome for trial in ranked], np.uint8) if ranked else None


def answer(
    space: Space,
    genome: NDArray[np.uint8],
    budget: Budget,
    *,
    predicted: float | None,
    trained: dict[str, Any] | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """An answer as plain values. `trained`: key, epochs and accuracy of its training, None of one that was not trained;
    `predicted`: what the predictor says of it; `model` names the network where no table describes it.
    """
    architecture, recipe = space.decode(genome)
    return {
        "budget": budget.to_dict(),
        "genome": genome.tolist(),
        "predicted": predicted,
        "trained": trained,
        "costs": {name: int(cost[0]) for name, cost in space.costs(genome[None]).items()},
        "architecture": None if model else architecture.to_dict(),
        "model": model,
        "recipe": recipe and recipe.to_dict(),
    }


def training_of(trial: Trial, epoch: int) -> dict[str, Any]:
    """What an answer tells of its training: accuracy at the epoch at which the study compares candidates."""
    return {"key": trial.key, "epochs": epoch, "accuracy": trial.curve[epoch - 1]}
