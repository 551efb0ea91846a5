"""Several networks in one command, and the two-step training of section 4.2: a teacher on labels, then all from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.listener import Listener, Silent
from pynas.nets.load import ModelSpec, read_model
from pynas.train.directory import RunDirectory
from pynas.train.models import check_data, model_for_data
from pynas.train.recipe import load_recipe
from pynas.train.run import train_model
from pynas.train.world import World

TEACHER = "teacher"
"""Folder of the run that trains the teacher on labels."""


def read_teacher(name: str, data: DataConfig, **shape: Any) -> ModelSpec:
    """The model that a teacher's name means: a run's directory, a file of weights, or any model as for training.

    `shape`: keywords of `model_for_data`, for a model that has no weights yet.
    """
    folder = Path(name)
    if not folder.is_dir():
        return model_for_data(name, data, **({} if name.endswith(".safetensors") else shape))
    directory = RunDirectory(folder)
    if not directory.weights.is_file():
        raise PynasError(f"teacher {name}: has no {directory.weights.name}; finish its training first")
    return read_model(str(directory.weights))


def train_models(
    specs: Sequence[ModelSpec],
    data: DataConfig,
    path: str | Path,
    *,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    teacher: ModelSpec | None = None,
    two_step: bool = False,
    listener: Listener | None = None,
    world: World | None = None,
    stop_on_usr: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train one network in `path`, or several each in a folder of its own there; results by the name of the run.

    Every network trains with the recipe that `load_recipe(recipe, of_network=..., settings=...)` gives it. With
    `teacher` they all learn from it. `two_step` trains the teacher first, on labels: `teacher`, else the network with
    the most FLOPs; the networks then learn from that, the teacher's own architecture included where it is among them
    (section 4.2). `world` and `stop_on_usr` are those of `train_model`. Raises PynasError for what does not fit, before
    anything is trained where it can be known.
    """
    listener = listener if listener is not None and (world is None or world.first) else Silent()
    common: dict[str, Any] = {"seed": seed, "listener": listener, "world": world, "stop_on_usr": stop_on_usr}
    recipes = [load_recipe(recipe, of_network=spec.recipe, settings=settings) for spec in specs]
    names, folders = run_names(specs), run_folders(specs, path, two_step)
    for spec, own in zip(specs, recipes, strict=True):
        check_data(spec, data, own)
    if teacher is not None:
        check_data(teacher, data, recipes[0], "teacher")
    results: dict[str, dict[str, Any]] = {}
    if two_step:
        first = teacher or _largest(specs)
        if first.weights is not None:
            raise PynasError(f"teacher {first.name}: has weights already; leave out the first step, its training")
        listener.say(f"step 1: {first.name} on labels")
        taught = load_recipe(recipe, of_network=first.recipe, settings=settings)
        results[TEACHER] = train_model(first, taught, data, folders[TEACHER], **common)
        teacher = read_teacher(str(folders[TEACHER]), data)
        listener.say(f"step 2: {', '.join(names)} with distillation")
    for spec, own, name in zip(specs, recipes, names, strict=True):
        results[name] = train_model(spec, own, data, folders[name], teacher=teacher, **common)
    return results


def run_folders(specs: Sequence[ModelSpec], path: str | Path, two_step: bool = False) -> dict[str, Path]:
    """Where each training of `train_models` has its directory, by the name of the run, in the order of training."""
    names, root = run_names(specs), Path(path)
    if len(names) == 1 and not two_step:
        return {names[0]: root}
    return {name: root / name for name in ([TEACHER] if two_step else []) + names}


def run_names(specs: Sequence[ModelSpec]) -> list[str]:
    """A folder's name for each network: its own, or the stem of its file. Raises PynasError where two are the same."""
    names = [
        Path(spec.name).stem if "/" in spec.name or spec.name.endswith((".yaml", ".safetensors")) else spec.name
        for spec in specs
    ]
    names = [name.replace(":", ".") for name in names]
    for name in names:
        if names.count(name) > 1 or name == TEACHER:
            raise PynasError(f"network {name}: two trainings would share a folder of that name; rename its file")
    return names


def _largest(specs: Sequence[ModelSpec]) -> ModelSpec:
    """The network with the most FLOPs, the first of equals; one that no table describes has to be named as teacher."""
    if len(specs) > 1 and (unknown := [spec.name for spec in specs if spec.architecture is None]):
        raise PynasError(f"network {unknown[0]}: its FLOPs are not counted; name the teacher with --teacher")
    return max(specs, key=lambda spec: spec.architecture.cost()["flops"] if spec.architecture else 0)
