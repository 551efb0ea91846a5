"""Small architectures, recipes and payloads to train with."""

from typing import Any

import torch

from pynas.space.architecture import Architecture, Recipe, Row

# On a busy machine torch's threads spin while they wait for one another, and tests take minutes.
torch.set_num_threads(1)

ACT = "hswish"
PLAIN = Recipe(lr=0.1, optimizer="SGD", ema=False, dropout=0.0, stochastic_depth=0.0, mixup=0.0, weight_decay=0.0)


def small(resolution: int = 8, input_channels: int = 1, classes: int = 10) -> Architecture:
    rows = (
        Row("conv", (3, 3), None, 16, 1, 1, False, ACT),
        Row("mbconv", (3, 3), (2.0, 2.0), 24, 3, 2, True, ACT),
        Row("mbpool", None, (2.0, 2.0), 64, 1, 1, False, ACT),
        Row("fc", None, None, classes, 1, 1, False, ACT),
    )
    return Architecture(rows, resolution, input_channels)


def digits_payload(recipe: Recipe = PLAIN, **changes: Any) -> dict[str, Any]:
    """Two epochs on 512 digits; `changes` replace keys of the payload, or of "training" where it has them."""
    training = {"epochs": 2, "batch_size": 32, "augment": False, "device": "cpu"}
    payload: dict[str, Any] = {
        "architecture": small().to_dict(),
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
