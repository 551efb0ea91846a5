"""The data sets that lie in memory as a whole: split the same way every time, and as batches.

The networks that train on them are tiny and use one CPU thread each, so batches avoid what costs per step: there is no
DataLoader, a part is normalised and resized once, and batches are index selections.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynas.data.augment import auto_augment, resize, shift_and_flip
from pynas.data.batches import MEMORY_FORMAT, WHOLE, Batch, Share
from pynas.data.config import Augmentation, DataConfig
from pynas.data.fetch import digits_file, fetch, locate, read_verified
from pynas.data.split import choose_classes, stratified_order, withheld
from pynas.errors import PynasError
from pynas.randomness import generator

IDX_HEADER = {"images": 16, "labels": 8}  # bytes before the data: magic number and one int32 a dimension
DIGITS_TEST = 180  # one in ten; scikit-learn has no official split
EVALUATION_BATCH = 500
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

    def exchanged(self) -> Dataset:
        """The training images as validation images, and the other way round."""
        return replace(
            self,
            train_images=self.validation_images,
            train_labels=self.validation_labels,
            validation_images=self.train_images,
            validation_labels=self.train_labels,
        )


Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@functools.lru_cache(maxsize=2)
def load(config: DataConfig) -> Dataset:
    """The training and validation parts of a data set; the same tensors, not to be written to, for the same config.

    Each part is stratified: every class has its share to within one image. A smaller `train` or `validation` takes a
    subset of the larger one, and changing one leaves the other as it is. Raises PynasError for more images than there
    are, for a data set that does not lie in memory, and what `fetch` raises.
    """
    source = _source(config)
    images, labels = _of_classes(config, *source.images())
    order = stratified_order(labels, config.seed)
    aside = source.validation if config.classes is None else len(labels) * source.validation // source.total
    aside = aside if config.withhold is None else withheld(config.withhold, len(labels), config.name)
    available = {"train": len(labels) - aside, "validation": aside}
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
    images, labels = _of_classes(config, *_source(config).test())
    return torch.from_numpy(images), torch.from_numpy(labels)


class MemoryData:
    """Batches of a data set in memory; see `pynas.data.batches.Data`.

    Images are normalised by the training images' mean and deviation per channel and resized to the network's
    resolution up front: doing so in every epoch would cost as much as a small network's step. For AutoAugment, whose
    operations are defined on 0 to 1, training images stay on that scale and are normalised batch by batch.

    exchanged: training and validation images are in each other's place, normalised as before.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        resolution: int,
        device: torch.device,
        batch_size: int,
        seed: int,
        augment: Augmentation,
        share: Share = WHOLE,
        exchanged: bool = False,
    ) -> None:
        dataset = load(config)
        values = dataset.train_images.to(torch.float32) / 255.0
        self._mean = values.mean(dim=(0, 2, 3), keepdim=True)
        self._deviation = values.std(dim=(0, 2, 3), keepdim=True).clamp_min(1.0 / 255.0)
        if exchanged:
            dataset = dataset.exchanged()
            values = dataset.train_images.to(torch.float32) / 255.0
        self.bad: dict[str, str] = {}
        self.name, self.classes, self.channels = dataset.name, dataset.classes, dataset.channels
        self.train_images = len(dataset.train_labels)
        self._config, self._resolution, self._device = config, resolution, device
        self._batch_size, self._seed, self._augment, self._share = batch_size, seed, augment, share
        self._shift = round(dataset.shift * resolution / dataset.size)
        self._flip = dataset.flip
        self._train_labels = dataset.train_labels.to(device)
        if augment == "autoaugment":
            self._train = resize(values, resolution).to(device)
            self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)
        else:
            self._train = self._prepare(dataset.train_images)
        self._held_out = dataset.validation_images, dataset.validation_labels
        self._validation: tuple[Tensor, Tensor] | None = None
        self._test: tuple[Tensor, Tensor] | None = None

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.from_numpy(generator(self._seed, "order", epoch).permutation(self.train_images)).to(self._device)
        for step in range(start, self.train_images // (self._share.ranks * self._batch_size)):
            chosen = order[self._share.of_step(step, self._batch_size)]
            images = self._train[chosen]
            if self._augment != "none":
                rng = generator(self._seed, *self._share.purpose("shift", epoch, step))
                images = shift_and_flip(images, self._shift, self._flip, rng)
            if self._augment == "autoaugment":
                rng = generator(self._seed, *self._share.purpose("autoaugment", epoch, step))
                images = auto_augment(images, "cifar10", rng)
                images = (images - self._mean) / self._deviation
            yield Batch(images.contiguous(memory_format=MEMORY_FORMAT), self._train_labels[chosen])

    def validation_batches(self) -> Iterator[Batch]:
        if self._validation is None:
            images, labels = self._held_out
            self._validation = self._prepare(images), labels.to(self._device)
        return self._all(*self._validation)

    def test_batches(self) -> Iterator[Batch]:
        if self._test is None:
            images, labels = load_test(self._config)
            self._test = self._prepare(images), labels.to(self._device)
        return self._all(*self._test)

    def bad_by_part(self) -> dict[str, dict[str, str]]:
        return {}

    def add_bad(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """There are no bad images in memory."""

    def close(self) -> None:
        """Nothing to end."""

    def _prepare(self, images: Tensor) -> Tensor:
        """uint8 (N, C, size, size) to float32 (N, C, R, R), normalised, on the device."""
        values = (images.to(torch.float32) / 255.0 - self._mean.cpu()) / self._deviation.cpu()
        return resize(values, self._resolution).to(self._device, memory_format=MEMORY_FORMAT)

    def _all(self, images: Tensor, labels: Tensor) -> Iterator[Batch]:
        mine = self._share.of_all(len(labels))
        if mine.start == mine.stop:
            return iter(())  # split() would give one batch without an image
        return map(Batch, images[mine].split(EVALUATION_BATCH), labels[mine].split(EVALUATION_BATCH))


def _of_classes(config: DataConfig, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Arrays:
    """The images of `config.classes` random classes, with labels from 0 on; all where it is None."""
    if config.classes is None:
        return images, labels
    renumbered = choose_classes(int(labels.max()) + 1, config.classes, config.seed, config.name)[labels]
    return images[renumbered >= 0], renumbered[renumbered >= 0]


def _fashion_mnist(part: str) -> Arrays:
    folder = locate() or fetch("fashion-mnist")  # what is read is verified here
    images = np.frombuffer(read_verified(folder, f"{part}-images-idx3-ubyte"), np.uint8, offset=IDX_HEADER["images"])
    labels = np.frombuffer(read_verified(folder, f"{part}-labels-idx1-ubyte"), np.uint8, offset=IDX_HEADER["labels"])
    return images.reshape(-1, 1, 28, 28).copy(), labels.astype(np.int64)


def _digits(*, test: bool) -> Arrays:
    table = np.loadtxt(digits_file(), delimiter=",")
    values, labels = table[:, :-1], table[:, -1].astype(np.int64)
    images = (values * (255.0 / 16.0)).round().astype(np.uint8).reshape(-1, 1, 8, 8)  # stored as 0 to 16
    order = stratified_order(labels, DIGITS_TEST_SEED)
    chosen = order[:DIGITS_TEST] if test else order[DIGITS_TEST:]
    return images[chosen], labels[chosen]


def _source(config: DataConfig) -> Source:
    if config.name not in SOURCES:
        raise PynasError(f"data.name: got {config.name}; allowed for images in memory: {', '.join(SOURCES)}")
    return SOURCES[config.name]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: its images outside the test part, its test images, and how they are to be used."""

    images: Callable[[], Arrays]
    test: Callable[[], Arrays]
    total: int  # images outside the test part
    validation: int  # of them set aside for validation, as many as there are test images
    shift: int
    flip: bool


SOURCES = {
    "fashion-mnist": Source(
        functools.partial(_fashion_mnist, "train"),
        functools.partial(_fashion_mnist, "t10k"),
        60_000,
        10_000,
        shift=2,
        flip=True,
    ),
    "digits": Source(
        functools.partial(_digits, test=False), functools.partial(_digits, test=True), 1617, 180, shift=1, flip=False
    ),
}
