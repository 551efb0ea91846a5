"""The one way in: a `DataConfig` to batches."""

from __future__ import annotations

import torch

from pynas.data.augment import Augmentation
from pynas.data.batches import Batch, Data
from pynas.data.config import IN_MEMORY, DataConfig
from pynas.data.memory import MemoryData
from pynas.errors import PynasError

__all__ = ["Batch", "Data", "open_data"]


def open_data(
    config: DataConfig,
    *,
    resolution: int,
    device: torch.device,
    batch_size: int,
    seed: int,
    augment: Augmentation,
    workers: int | None = None,
) -> Data:
    """Batches of the images of `config` at `resolution` pixels a side, on `device`.

    seed decides order and augmentation, config.seed which images there are. workers: processes that decode, where
    images are files; 0 decodes in this process, None takes the cores there are, at most 16. It changes no batch.

    Raises PynasError where the data are not there or not as `config` says, and for batches larger than the data.
    """
    if config.name not in IN_MEMORY:
        raise PynasError(f"data.name: {config.name} cannot be read yet")
    data: Data = MemoryData(
        config, resolution=resolution, device=device, batch_size=batch_size, seed=seed, augment=augment
    )
    if data.train_images < batch_size:
        raise PynasError(
            f"training.batch_size: got {batch_size}, allowed are at most the {data.train_images} training images"
            " (data.train)"
        )
    return data
