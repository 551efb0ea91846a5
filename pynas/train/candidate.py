"""Training one candidate, as executors run it: plain values in, plain values out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pynas.data.config import DataConfig
from pynas.data.open import open_data
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec
from pynas.randomness import derive_seed
from pynas.space.architecture import Recipe
from pynas.train.config import TrainingConfig, TrainingRecipe
from pynas.train.device import choose_device
from pynas.train.distill import check_outputs
from pynas.train.loop import Trainer, train


def train_candidate(payload: Mapping[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Trains the model and recipe of `payload`; `report({"epoch": 1.., "accuracy": float})` after every epoch.

    payload: {"model": ModelSpec.to_dict(), "recipe": Recipe.to_dict(), "data": DataConfig as a dict,
    "training": TrainingConfig as a dict, "epochs": int, "seed": int, "test": bool}. `epochs` may be
    less than `training.epochs`: the schedule stays that of the full training, and the curve is a prefix of its curve.

    Returns {"accuracy": float, "curve": [float], "epochs": int, "seconds": float, "test_accuracy": float or None};
    accuracies are in [0, 1], "accuracy" is the last of "curve", "seconds" is wall time with loading the data. On a CPU
    the same payload gives the same curve, bit for bit.

    Raises FloatingPointError for a training that diverged, PynasError for a payload that cannot be trained.
    """
    start = time.perf_counter()
    spec = ModelSpec.from_dict(payload["model"])
    recipe = TrainingRecipe.of(TrainingConfig(**payload["training"]), Recipe.from_dict(payload["recipe"]))
    seed, epochs = payload["seed"], payload["epochs"]
    if not 1 <= epochs <= recipe.epochs:
        raise PynasError(f"epochs: got {epochs}, allowed are 1 to training.epochs, {recipe.epochs}")
    device = choose_device(recipe.device)
    data = open_data(
        DataConfig(**payload["data"]),
        resolution=input_size(spec),
        device=device,
        batch_size=recipe.batch_size,
        seed=derive_seed(seed, "data"),
        augment=recipe.augment,
        workers=recipe.workers,
    )
    try:
        initial = derive_seed(seed, "weights")
        network = spec.build(dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=initial)
        inputs = (data.classes, data.channels, input_size(spec))
        memory_format = check_outputs(f"model {spec.name}", network, *inputs, seed=initial)
        trainer = Trainer(
            network,
            recipe,
            classes=data.classes,
            steps_per_epoch=data.train_images // recipe.batch_size,
            seed=derive_seed(seed, "training"),
            device=device,
            memory_format=memory_format,
        )
        curve = train(trainer, data, epochs, lambda epoch, accuracy: report({"epoch": epoch, "accuracy": accuracy}))
        test_accuracy = trainer.accuracy(data.test_batches()) if payload["test"] else None
    finally:
        data.close()
    return {
        "accuracy": curve[-1],
        "curve": curve,
        "epochs": epochs,
        "seconds": time.perf_counter() - start,
        "test_accuracy": test_accuracy,
    }


def input_size(spec: ModelSpec) -> int:
    """Pixels a side of the model's input; PynasError where it is not known."""
    if spec.resolution is None:
        raise PynasError(f"model {spec.name}: its input size is not known; give a resolution")
    return spec.resolution
