"""Training one candidate, as executors run it: plain values in, plain values out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pynas.data.config import DataConfig
from pynas.data.memory import Dataset, load, load_test
from pynas.errors import PynasError
from pynas.nets.build import build_network
from pynas.space.architecture import Architecture, Recipe
from pynas.train.config import TrainingConfig
from pynas.train.loop import Preparation, Trainer, train


def train_candidate(payload: Mapping[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Trains the architecture and recipe of `payload`; `report({"epoch": 1.., "accuracy": float})` after every epoch.

    payload: {"architecture": Architecture.to_dict(), "recipe": Recipe.to_dict(), "data": DataConfig as a dict,
    "training": TrainingConfig as a dict, "epochs": int, "seed": int, "test": bool}. `epochs` may be
    less than `training.epochs`: the schedule stays that of the full training, and the curve is a prefix of its curve.

    Returns {"accuracy": float, "curve": [float], "epochs": int, "seconds": float, "test_accuracy": float or None};
    accuracies are in [0, 1], "accuracy" is the last of "curve", "seconds" is wall time with loading the data. On a CPU
    the same payload gives the same curve, bit for bit.

    Raises FloatingPointError for a training that diverged, PynasError for a payload that cannot be trained.
    """
    start = time.perf_counter()
    architecture = Architecture.from_dict(payload["architecture"])
    recipe = Recipe.from_dict(payload["recipe"])
    training = TrainingConfig(**payload["training"])
    config = DataConfig(**payload["data"])
    epochs = payload["epochs"]
    if not 1 <= epochs <= training.epochs:
        raise PynasError(f"epochs: got {epochs}, allowed are 1 to training.epochs, {training.epochs}")
    device = choose_device(training.device)
    dataset = load(config)
    check_fit(architecture, dataset)
    initial, batches, dropping = np.random.SeedSequence(payload["seed"]).spawn(3)
    prepare = Preparation(dataset, architecture.resolution, device)
    trainer = Trainer(
        build_network(architecture, recipe, seed=int(initial.generate_state(1)[0])),
        recipe,
        training,
        prepare(dataset.train_images, dataset.train_labels),
        seed=batches,
        shift=round(dataset.shift * architecture.resolution / dataset.size),
        flip=dataset.flip,
    )
    curve = train(
        trainer,
        prepare(dataset.validation_images, dataset.validation_labels),
        epochs,
        seed=int(dropping.generate_state(1)[0]),
        report=lambda epoch, accuracy: report({"epoch": epoch, "accuracy": accuracy}),
    )
    test_accuracy = trainer.accuracy(prepare(*load_test(config))) if payload["test"] else None
    return {
        "accuracy": curve[-1],
        "curve": curve,
        "epochs": epochs,
        "seconds": time.perf_counter() - start,
        "test_accuracy": test_accuracy,
    }


def choose_device(name: str) -> torch.device:
    """The device for `training.device`; PynasError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PynasError("training.device: got cuda, torch finds no CUDA device here; allowed are cpu and auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")


def check_fit(architecture: Architecture, dataset: Dataset) -> None:
    """PynasError where the network's classes or input channels are not those of the data."""
    for what, got, expected in (
        ("classes", architecture.classes, dataset.classes),
        ("input channels", architecture.input_channels, dataset.channels),
    ):
        if got != expected:
            raise PynasError(f"architecture: got {got} {what}, {dataset.name} has {expected}")
