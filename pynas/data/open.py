"""The one way in: a `DataConfig` to batches."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from pynas.data.augment import check_augmentation
from pynas.data.batches import WHOLE, Data, Share
from pynas.data.config import IN_MEMORY, Augmentation, DataConfig
from pynas.data.find import find
from pynas.data.images import arrange
from pynas.data.memory import MemoryData, load, load_test
from pynas.data.stream import StreamedData
from pynas.errors import PynasError


def open_data(
    config: DataConfig,
    *,
    resolution: int,
    device: torch.device,
    batch_size: int,
    seed: int,
    augment: Augmentation,
    workers: int | None = None,
    share: Share = WHOLE,
    exchanged: bool = False,
) -> Data:
    """Batches of the images of `config` at `resolution` pixels a side, on `device`: of `batch_size` on each rank.

    seed decides order and augmentation, config.seed which images there are. workers: processes that decode, where
    images are files; 0 decodes in this process, None takes `share.cores`, at most 16. It changes no batch. exchanged:
    training images validate and validation images train, as those that FP-NAS learns alpha from.

    Raises PynasError where the data are not there or not as `config` says, and for batches larger than the data.
    """
    check_augmentation(augment)
    data: Data
    if config.name in IN_MEMORY:
        data = MemoryData(
            config,
            resolution=resolution,
            device=device,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            share=share,
            exchanged=exchanged,
        )
    else:
        listing = arrange(config, find(config))
        data = StreamedData(
            config,
            listing.exchanged() if exchanged else listing,
            resolution=resolution,
            device=device,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            workers=workers,
            share=share,
        )
    if data.train_images < share.ranks * batch_size:
        on = f" on each of {share.ranks} ranks" if share.ranks > 1 else ""
        raise PynasError(
            f"training.batch_size: got {batch_size}{on}, allowed are at most the {data.train_images} training images"
            " (data.train)"
        )
    return data


@dataclass(frozen=True)
class Contents:
    """What a configuration gives, without decoding an image: enough to tell whether a network fits it."""

    name: str
    classes: int
    channels: int
    images: dict[str, int]  # by part: "train", "validation" and, where there are, "test"
    size: int | None = None  # pixels a side where all images have the same


@functools.lru_cache(maxsize=4)
def contents(config: DataConfig) -> Contents:
    """What `open_data` would give. Raises PynasError as it does.

    Kept for this process: a tree of a million files takes minutes to list on a cluster's file system.
    """
    if config.name in IN_MEMORY:
        dataset = load(config)
        images = {"train": len(dataset.train_labels), "validation": len(dataset.validation_labels)}
        images["test"] = len(load_test(config)[1])
        return Contents(config.name, dataset.classes, dataset.channels, images, dataset.size)
    listing = arrange(config, find(config))
    images = {part: len(found) for part, found in listing.parts.items()}
    return Contents(config.name, len(listing.classes), config.channels or 3, images)
