"""Networks for data: as many classes and input channels as the images have, or an error that says what does not fit."""

from __future__ import annotations

import re
from functools import partial

from pynas.data.config import DataConfig
from pynas.data.open import contents
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec, read_model
from pynas.space.table import ZOO
from pynas.train.config import TrainingConfig

FILES_RESOLUTION = 224
"""Input size for image files where the network has none of its own."""


def model_for_data(
    name: str,
    config: DataConfig,
    *,
    resolution: int | None = None,
    padding: str | None = None,
    small_input: bool = False,
) -> ModelSpec:
    """The model that `name` stands for (see `pynas.load_model`), for the images of `config`.

    A network of the zoo, a ResNet and a function get the data's number of classes and channels. A user's table, a
    search's winner and a file of weights keep theirs: what does not fit is refused when the training begins. A model
    without an input size of its own takes that of the images. Raises PynasError for a name that stands for nothing.
    """
    read = partial(read_model, name, padding=padding, small_input=small_input)
    rows = name.endswith(".safetensors") or not re.fullmatch(r"[\w.]+:[\w.]+|resnet18[\w.]*", name)
    if rows and ("/" in name or not (ZOO / f"{name}.yaml").is_file()):
        return read(resolution=resolution)
    found = contents(config)
    if not rows:
        resolution = resolution or found.size or FILES_RESOLUTION
    return read(resolution=resolution, classes=found.classes, input_channels=found.channels)


def check_data(spec: ModelSpec, config: DataConfig, training: TrainingConfig, role: str = "") -> None:
    """PynasError where the model's classes or channels, or the batch, are not what the data of `config` allow."""
    found = contents(config)
    name = f"{role} {spec.name}".lstrip()
    for what, got, expected in (
        ("classes", spec.classes, found.classes),
        ("input channels", spec.input_channels, found.channels),
    ):
        if got is not None and got != expected:
            raise PynasError(f"{name}: got {got} {what}, {config.name} has {expected}")
    if (images := found.images["train"]) < training.batch_size:
        raise PynasError(f"training.batch_size: {training.batch_size}; allowed: up to the {images} images")
