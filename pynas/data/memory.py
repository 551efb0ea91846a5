"""The data sets as tensors in memory, split the same way every time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynas.data.config import DataConfig
from pynas.data.fetch import fetch, locate, read_verified
from pynas.errors import PynasError

IDX_HEADER = {"images": 16, "labels": 8}  # bytes before the data: magic number and one int32 a dimension
DIGITS_TEST = 180  # one in ten; scikit-learn has no official split
DIGITS_TEST_SEED = 0  # the test images stay the same whatever `data.seed` is


@dataclass(frozen=True)
class Dataset:
    """Training and validation images. Images are uint8 (N, channels, size, size), labels int64 (N,) in 0..classes-1."""

    name: str
    classes: int
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    shift: int  # pixels at the images' own size that augmentation may move an image by
    flip: bool  # whether a mirrored image is still an image of its class

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        return self.train_images.shape[-1]


Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@functools.lru_cache(maxsize=2)
def load(config: DataConfig) -> Dataset:
    """The training and validation parts of a data set; the same tensors, not to be written to, for the same config.

    Each part is stratified: every class has its share to within one image. A smaller `train` or `validation` takes a
    subset of the larger one, and changing one leaves the other as it is. Raises PynasError for more images than there
    are, and what `fetch` raises.
    """
    source = SOURCES[config.name]
    images, labels = source.images()
    order = stratified_order(labels, config.seed)
    available = {"train": len(labels) - source.validation, "validation": source.validation}
    sizes = {}
    for part, there in available.items():
        asked = getattr(config, part)
        if asked is not None and asked > there:
            raise PynasError(f"data.{part}: got {asked}, {config.name} has {there} {part} images")
        sizes[part] = there if asked is None else asked
    train, validation = order[: sizes["train"]], order[len(order) - sizes["validation"] :]
    return Dataset(
        name=config.name,
        classes=int(labels.max()) + 1,
        train_images=torch.from_numpy(images[train]),
        train_labels=torch.from_numpy(labels[train]),
        validation_images=torch.from_numpy(images[validation]),
        validation_labels=torch.from_numpy(labels[validation]),
        shift=source.shift,
        flip=source.flip,
    )


def load_test(config: DataConfig) -> tuple[Tensor, Tensor]:
    """The test images, uint8 (N, C, H, W), and labels, int64 (N,); for final models only, never for choosing one."""
    images, labels = SOURCES[config.name].test()
    return torch.from_numpy(images), torch.from_numpy(labels)


def stratified_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order of the indices in which every prefix and every suffix holds each class in proportion.

    labels: int64 (N,). The shuffled members of a class of n images stand at (rank + 1/2) / n on a line, and the order
    is that of the line; ties between classes fall at random.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def _fashion_mnist(part: str) -> Arrays:
    folder = locate() or fetch("fashion-mnist")  # what is read is verified here
    images = np.frombuffer(read_verified(folder, f"{part}-images-idx3-ubyte"), np.uint8, offset=IDX_HEADER["images"])
    labels = np.frombuffer(read_verified(folder, f"{part}-labels-idx1-ubyte"), np.uint8, offset=IDX_HEADER["labels"])
    return images.reshape(-1, 1, 28, 28).copy(), labels.astype(np.int64)


def _digits(*, test: bool) -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise PynasError("data.name: digits needs scikit-learn: pip install 'pynas-nars[data]'") from None
    values, labels = load_digits(return_X_y=True)
    images = (values * (255.0 / 16.0)).round().astype(np.uint8).reshape(-1, 1, 8, 8)  # stored as 0 to 16
    order = stratified_order(labels.astype(np.int64), DIGITS_TEST_SEED)
    chosen = order[:DIGITS_TEST] if test else order[DIGITS_TEST:]
    return images[chosen], labels[chosen].astype(np.int64)


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: its images outside the test part, its test images, and how they are to be used."""

    images: Callable[[], Arrays]
    test: Callable[[], Arrays]
    validation: int  # images set aside for validation, as many as there are test images
    shift: int
    flip: bool


SOURCES = {
    "fashion-mnist": Source(
        functools.partial(_fashion_mnist, "train"),
        functools.partial(_fashion_mnist, "t10k"),
        10_000,
        shift=2,
        flip=True,
    ),
    "digits": Source(
        functools.partial(_digits, test=False), functools.partial(_digits, test=True), 180, shift=1, flip=False
    ),
}
