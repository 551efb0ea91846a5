"""The winners of a study, whatever its method: their own trainings, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pynas.files import write_whole
from pynas.listener import Listener
from pynas.nets.load import ModelSpec
from pynas.randomness import derive_seed
from pynas.runtime.executor import Executor
from pynas.search import trainings
from pynas.search.config import StudyConfig
from pynas.space.architecture import Architecture, Recipe
from pynas.space.space import Space
from pynas.space.table import format_network
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial
from pynas.train.config import TrainingConfig

Runs = Mapping[str, Mapping[str, tuple[list[int], dict[str, Any]]]]
"""Genome and costs of what is trained: by winner, then "final" for itself and "baseline" for what stands beside it."""


def train_winners(
    winners: dict[str, Any],
    runs: Runs,
    *,
    config: StudyConfig,
    training: TrainingConfig,
    directory: StudyDirectory,
    space: Space,
    executor: Executor,
    listener: Listener,
    recipe: Recipe | None = None,
    model: ModelSpec | None = None,
) -> None:
    """Train for `config.final.epochs` and test; what comes of it goes into `winners[name][run]`.

    recipe: in place of the one that genomes decode to. model: in place of their architecture.
    """
    study = Study.open(directory, "final")
    planned: dict[tuple[str, str], Trial] = {}
    for number, (name, of_winner) in enumerate(runs.items(), start=1):
        # All of a budget train with one seed: the same images in the same order.
        seed = derive_seed(config.seed, "final", number)
        for index, (run, (genome, costs)) in enumerate(of_winner.items()):
            planned[name, run] = Trial(number, index, genome, config.final.epochs, seed, costs)
    recorded = trainings.record(study, space, list(planned.values()))
    finished = trainings.train(
        recorded,
        study=study,
        space=space,
        executor=executor,
        data=config.final_data,
        training=training.model_copy(update={"epochs": config.final.epochs}),
        recipe=recipe,
        model=model,
        listener=listener,
        label="final training",
        max_failed=1.0,
        test=True,
    )
    for (name, run), trial in zip(planned, finished, strict=True):
        winners[name][run] = {
            "genome": trial.genome,
            "costs": trial.costs,
            "epochs": trial.epochs,
            "accuracy": trial.accuracy,
            "test_accuracy": trial.test_accuracy,
            "reason": trial.reason,
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
    notes = {"budget": winner["budget"]} | ({"predicted": winner["predicted"]} if winner["predicted"] else {})
    notes |= winner["costs"]
    if trained := winner.get("trained"):
        notes |= {"search_epochs": trained["epochs"], "search_accuracy": trained["accuracy"]}
    if final := winner.get("final"):
        notes |= {key: final[key] for key in ("epochs", "accuracy", "test_accuracy")}
    recipe = winner["recipe"] and Recipe.from_dict(winner["recipe"])
    write_whole(path, format_network(architecture, recipe, name=f"{space.name}-{name}", notes=notes))
