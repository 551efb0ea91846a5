"""Small architectures, recipes and payloads to train with."""

import os
from pathlib import Path
from typing import Any

import torch

from pynas.nets.load import ModelSpec
from pynas.space.architecture import Architecture, Recipe, Row
from pynas.space.table import format_rows

# On a busy machine torch's threads spin while they wait for one another, and tests take minutes.
torch.set_num_threads(1)

ACT = "hswish"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PLAIN = Recipe(lr=0.1, optimizer="SGD", ema=False, dropout=0.0, stochastic_depth=0.0, mixup=0.0, weight_decay=0.0)


def small(resolution: int = 8, input_channels: int = 1, classes: int = 10) -> Architecture:
    rows = (
        Row("conv", (3, 3), None, 16, 1, 1, False, ACT),
        Row("mbconv", (3, 3), (2.0, 2.0), 24, 3, 2, True, ACT),
        Row("mbpool", None, (2.0, 2.0), 64, 1, 1, False, ACT),
        Row("fc", None, None, classes, 1, 1, False, ""),
    )
    return Architecture(rows, resolution, input_channels)


def digits_payload(recipe: Recipe = PLAIN, **changes: Any) -> dict[str, Any]:
    """Two epochs on 512 digits; `changes` replace keys of the payload, or of "training" where it has them."""
    training = {"epochs": 2, "batch_size": 32, "augment": "none", "device": "cpu"}
    payload: dict[str, Any] = {
        "model": ModelSpec.of(small()).to_dict(),
        "recipe": recipe.to_dict(),
        "data": {"name": "digits", "train": 512},
        "training": training,
        "epochs": 2,
        "seed": 1,
        "test": False,
    }
    for key, value in changes.items():
        if key in payload:
            payload[key] = value
        else:
            training[key] = value
    return payload


def write_network(folder: Path, name: str = "net", **sizes: int) -> Path:
    """The table of `small(**sizes)` in `folder`."""
    architecture = small(**sizes)
    rows = "\n".join(f"  {line}" for line in format_rows(architecture.rows).splitlines())
    head = f"name: {name}\ninput_channels: {architecture.input_channels}\nresolution: {architecture.resolution}\n"
    path = folder / f"{name}.yaml"
    path.write_text(f"{head}stages: |\n{rows}\n")
    return path
