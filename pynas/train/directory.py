"""A training's directory: its paths, and what is written down of the training, to tell it from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.files import write_whole
from pynas.nets.load import ModelSpec
from pynas.train.config import EXECUTION, TrainingRecipe

if TYPE_CHECKING:
    from pynas.train.world import World


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a training."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished training, else None."""
        try:
            return json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def settings_of(
    spec: ModelSpec, recipe: TrainingRecipe, data: DataConfig, seed: int, teacher: ModelSpec | None, world: World
) -> dict[str, Any]:
    """What a training is a function of, as plain values; weights that are read count by their content.

    The nodes decide the learning rate and how many images a step sees. `ranks` is for the reader: it decides how they
    are shared out and what is drawn at random, and may change.
    """
    return {
        "model": _plain_model(spec),
        "recipe": recipe.model_dump(),
        "data": data.model_dump(mode="json"),
        "seed": seed,
        "teacher": None if teacher is None else _plain_model(teacher),
        "nodes": world.nodes,
        "ranks": world.size,
    }


def _plain_model(spec: ModelSpec) -> dict[str, Any]:
    values = spec.to_dict()
    if spec.weights is not None:
        try:
            values["weights_sha256"] = hashlib.sha256(Path(spec.weights).read_bytes()).hexdigest()
        except OSError as error:
            raise PynasError(f"{spec.weights}: cannot be read: {error.strerror}") from None
    return values


Essence = Callable[[dict[str, Any]], dict[str, Any]]
"""The settings less what may change between two sittings: plain values, as JSON gives them back."""


def settle(directory: RunDirectory, settings: dict[str, Any], essence: Essence | None = None) -> str:
    """Write down what is trained, or check it against what was; returns the training's identity.

    For whoever holds the directory's lock. A directory without a checkpoint or a result has nothing to lose, and takes
    the new settings. essence: of settings other than `settings_of`.
    """
    check_same(directory, settings, essence)
    write_whole(directory.settings, json.dumps(settings, indent=1) + "\n")
    return identity_of(settings, essence)


def identity_of(settings: dict[str, Any], essence: Essence | None = None) -> str:
    """A hash of what decides a training's outcome: two with the same one are the same training."""
    return hashlib.sha256(json.dumps((essence or _essence)(settings), sort_keys=True).encode()).hexdigest()


def check_same(directory: RunDirectory, settings: dict[str, Any], essence: Essence | None = None) -> None:
    """Raises PynasError where the directory holds something of a training with other settings; writes nothing."""
    essence = essence or _essence
    if not directory.result.exists() and not any(directory.checkpoints.glob("step_*.pt")):
        return
    try:
        recorded = essence(json.loads(directory.settings.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise PynasError(f"{directory.path}: {directory.settings.name} is missing or damaged") from None
    given = essence(settings)
    absent = {"nodes": 1}  # what a key that is not there stands for
    changed = [
        text
        for key in recorded | given
        for text in _differences(key, recorded.get(key, absent.get(key)), given.get(key, absent.get(key)))
    ]
    if changed:
        raise PynasError(
            f"{directory.path}: this training began with other settings: {'; '.join(changed)}. Name another "
            f"directory with --dir to begin anew, or put them back; only {' and '.join(EXECUTION)} may change"
        )


def _essence(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings less what may change between two sittings of one training."""
    recipe = {key: value for key, value in settings["recipe"].items() if key not in EXECUTION}
    models = {key: settings[key] and {**settings[key], "weights": None} for key in ("model", "teacher")}
    nodes = {} if settings.get("nodes", 1) == 1 else {"nodes": settings["nodes"]}  # as before there were several
    others = {key: value for key, value in settings.items() if key not in ("nodes", "ranks")}
    return json.loads(json.dumps({**others, **models, "recipe": recipe, **nodes}))


def _differences(key: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [text for part in old | new for text in _differences(f"{key}.{part}", old.get(part), new.get(part))]
    return [] if old == new else [f"{key} ({_short(old)} -> {_short(new)})"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
