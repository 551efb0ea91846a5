"""Networks for data: as many classes and input channels as the images have, or an error that says what does not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pynas.data.config import IN_MEMORY, DataConfig
from pynas.data.memory import load
from pynas.data.open import contents
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec, read_model
from pynas.space.table import ZOO
from pynas.train.config import TrainingConfig

FILES_RESOLUTION = 224
"""Input size for image files where the network has none of its own."""


@dataclass(frozen=True)
class Images:
    """What a network must fit: classes, channels, training images, and pixels a side where all images have the same."""

    classes: int
    channels: int
    train: int
    size: int | None


def images_of(config: DataConfig) -> Images:
    """What there is to train on. Raises PynasError where the data are not as `config` says."""
    if config.name in IN_MEMORY:
        dataset = load(config)
        return Images(dataset.classes, dataset.channels, len(dataset.train_labels), dataset.size)
    found = contents(config)
    return Images(found.classes, found.channels, found.images["train"], None)


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
    asked = {"resolution": resolution, "padding": padding, "small_input": small_input}
    if name.endswith(".safetensors"):
        return read_model(name, **asked)  # type: ignore[arg-type]
    table = not re.fullmatch(r"[\w.]+:[\w.]+|resnet18[\w.]*", name)
    if table and ("/" in name or not (Path(ZOO) / f"{name}.yaml").is_file()):
        return read_model(name, **asked)  # type: ignore[arg-type]
    images = images_of(config)
    if not table:
        asked["resolution"] = resolution or images.size or FILES_RESOLUTION
    return read_model(name, classes=images.classes, input_channels=images.channels, **asked)  # type: ignore[arg-type]


def check_data(spec: ModelSpec, config: DataConfig, training: TrainingConfig, role: str = "") -> None:
    """PynasError where the model's classes or channels, or the batch, are not what the data of `config` allow."""
    images = images_of(config)
    name = f"{role} {spec.name}".lstrip()
    for what, got, expected in (
        ("classes", spec.classes, images.classes),
        ("input channels", spec.input_channels, images.channels),
    ):
        if got is not None and got != expected:
            raise PynasError(f"{name}: got {got} {what}, {config.name} has {expected}")
    if images.train < training.batch_size:
        raise PynasError(f"training.batch_size: {training.batch_size}; allowed: up to the {images.train} images")
