"""Batches of images that lie in files: decoded by worker processes, augmented and normalised on the device."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pynas.cores import available_cores
from pynas.data.augment import auto_augment, flip
from pynas.data.batches import MEMORY_FORMAT, WHOLE, Batch, Share
from pynas.data.config import Augmentation, DataConfig
from pynas.data.images import Images, Listing, check_share, some_of
from pynas.errors import PynasError
from pynas.randomness import generator

EVALUATION_BATCH = 128
MOST_WORKERS = 16
PREFETCH = 2  # batches a worker is ahead
LEFT_TO_THE_TRAINING = {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
WINDOW = 10_000  # images that are shuffled together, at least; those of whole shards

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

Task = tuple[str, int | None, NDArray[np.int64]]
"""A batch to decode: its part, the epoch whose random crops it takes (None: the centre), positions int64 (B,)."""

Decoded = tuple[Tensor, Tensor, list[tuple[str, str]]]
"""uint8 (B, R, R, C); int64 (B,); name and reason of every bad image."""


class StreamedData:
    """Batches of images in files; see `pynas.data.batches.Data`."""

    def __init__(
        self,
        config: DataConfig,
        listing: Listing,
        *,
        resolution: int,
        device: torch.device,
        batch_size: int,
        seed: int,
        augment: Augmentation,
        workers: int | None,
        share: Share = WHOLE,
    ) -> None:
        self.name: str = config.name
        self.classes = len(listing.classes)
        self.channels: int = config.channels or 3
        self._parts = listing.parts
        self.train_images = len(listing.parts["train"])
        self._device, self._batch_size, self._seed, self._augment = device, batch_size, seed, augment
        self._share = share
        self._workers = min(share.cores or available_cores(), MOST_WORKERS) if workers is None else workers
        mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in scale_of(config))
        self._scale, self._offset = (1.0 / deviation).to(device), (-mean / deviation).to(device)
        self._decoder = Decoder(listing.parts, resolution, self.channels, seed)
        self._max_bad = config.max_bad
        self._bad: dict[str, dict[str, str]] = {part: {} for part in listing.parts}
        self._train_tasks: list[Task] = []
        self._train_loader: DataLoader[Any] | None = None
        self._turn = 0  # counts calls of train_batches

    @property
    def bad(self) -> dict[str, str]:
        known = (images.bad for images in self._parts.values())
        return {name: reason for found in (*known, *self._bad.values()) for name, reason in found.items()}

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = epoch_order(self._parts["train"], self._seed, epoch)
        steps = range(start, self.train_images // (self._share.ranks * self._batch_size))
        crops = None if self._augment == "none" else epoch
        tasks: list[Task] = [("train", crops, order[self._share.of_step(step, self._batch_size)]) for step in steps]
        self._turn += 1
        turn = self._turn
        for step, (pixels, labels, bad) in zip(steps, self._train_batches_of(tasks), strict=True):
            if turn != self._turn:
                raise RuntimeError("train_batches was called again, which ends the batches of the call before")
            self._note("train", bad)
            if not len(labels) and self._share.ranks == 1:
                raise PynasError(f"data.path: all {len(bad)} images of a batch are bad; {some_of(dict(bad))}")
            images = self._to_device(pixels).permute(0, 3, 1, 2)  # channels_last as decoded
            if self._augment != "none":
                images = flip(images, generator(self._seed, *self._share.purpose("flip", epoch, step)))
            images = images.to(torch.float32).div_(255.0)
            if self._augment == "autoaugment" and len(images):
                rng = generator(self._seed, *self._share.purpose("autoaugment", epoch, step))
                images = auto_augment(images, "imagenet", rng)
            yield Batch(self._normalised(images), self._to_device(labels))

    def validation_batches(self) -> Iterator[Batch]:
        return self._evaluation_batches("validation")

    def test_batches(self) -> Iterator[Batch]:
        if "test" not in self._parts:
            raise PynasError(f"data.path: {self.name} has no test images there")
        return self._evaluation_batches("test")

    def check(self, part: str) -> None:
        """Decodes every image of a part; the bad ones then are in `bad`, however many they are."""
        for _, _, bad in self._evaluated(part):
            self._bad[part].update(bad)

    def bad_by_part(self) -> dict[str, dict[str, str]]:
        return self._bad

    def add_bad(self, found: Mapping[str, Mapping[str, str]]) -> None:
        for part, bad in found.items():
            self._note(part, list(bad.items()))

    def close(self) -> None:
        self._turn += 1
        # What still refers to the iterator, such as the traceback of an error, would otherwise keep its workers.
        end_workers = getattr(getattr(self._train_loader, "_iterator", None), "_shutdown_workers", None)
        if end_workers is not None:
            end_workers()
        self._train_loader = None
        for images in self._parts.values():
            images.source.close()

    def _evaluation_batches(self, part: str) -> Iterator[Batch]:
        for pixels, labels, bad in self._evaluated(part):
            self._note(part, bad)
            if len(labels):
                images = self._to_device(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
                yield Batch(self._normalised(images), self._to_device(labels))

    def _evaluated(self, part: str) -> Iterator[Decoded]:
        mine = self._share.of_all(len(self._parts[part]))
        tasks = [
            (part, None, np.arange(first, min(first + EVALUATION_BATCH, mine.stop)))
            for first in range(mine.start, mine.stop, EVALUATION_BATCH)
        ]
        return _begun(self._loader(tasks, min(self._workers, len(tasks)), persistent=False))

    def _train_batches_of(self, tasks: list[Task]) -> Iterator[Decoded]:
        if self._train_loader is None:
            self._train_loader = self._loader(self._train_tasks, self._workers, persistent=True)
        self._train_tasks[:] = tasks
        return _begun(self._train_loader)

    def _loader(self, tasks: Sequence[Task], workers: int, *, persistent: bool) -> DataLoader[Any]:
        """One whole batch a task. It takes its own generator: DataLoader would draw from torch's global one."""
        return DataLoader(
            self._decoder,
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=persistent and workers > 0,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),
        )

    def _to_device(self, values: Tensor) -> Tensor:
        return values.to(self._device, non_blocking=True)

    def _normalised(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._offset, images, self._scale).contiguous(memory_format=MEMORY_FORMAT)

    def _note(self, part: str, bad: list[tuple[str, str]]) -> None:
        if bad:
            self._bad[part].update(bad)
            check_share(part, self._bad[part], len(self._parts[part]), self._max_bad)


class Decoder(Dataset[Decoded]):
    """What the workers run: a task to a batch of pixels."""

    def __init__(self, parts: dict[str, Images], resolution: int, channels: int, seed: int) -> None:
        from pynas.data import decode

        self._decode = decode.decode
        self._parts, self._resolution, self._channels, self._seed = parts, resolution, channels, seed

    def __getitem__(self, task: Task) -> Decoded:
        part, epoch, positions = task
        images = self._parts[part]
        pixels = np.empty((len(positions), self._resolution, self._resolution, self._channels), np.uint8)
        labels = np.empty(len(positions), np.int64)
        bad: list[tuple[str, str]] = []
        good = 0
        for position in positions:
            i = int(images.index[position])
            rng = None if epoch is None else generator(self._seed, "crop", epoch, i)
            try:
                pixels[good] = self._decode(images.source.read(i), self._resolution, self._channels, rng)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                bad.append((images.source.name(i), reason))
                continue
            labels[good] = images.labels[position]
            good += 1
        return torch.from_numpy(pixels[:good]), torch.from_numpy(labels[:good]), bad


def epoch_order(images: Images, seed: int, epoch: int) -> NDArray[np.int64]:
    """The positions of the images in the order of an epoch, int64 (N,).

    Images in shards are shuffled as far as the shards allow that are read at a time: the shards fall in a random order,
    and neighbours in it that hold WINDOW images or a little more together are shuffled as one.
    """
    rng = generator(seed, "order", epoch)
    if images.groups is None:
        return rng.permutation(len(images))
    shards, shard, counts = np.unique(images.groups, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(shards))
    before = np.empty(len(shards), np.int64)
    before[shuffled] = np.cumsum(counts[shuffled]) - counts[shuffled]
    # A remainder smaller than a window would be read nearly in order: it joins the window before.
    window = np.minimum(before // WINDOW, max(len(images) // WINDOW - 1, 0))
    return np.lexsort((rng.permutation(len(images)), window[shard]))


def scale_of(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel: the configured ones, or ImageNet's, averaged for grey images."""
    found = []
    for given, default in ((config.mean, IMAGENET_MEAN), (config.deviation, IMAGENET_DEVIATION)):
        grey = (round(sum(default) / 3, 3),)
        found.append(given or (default if (config.channels or 3) == 3 else grey))
    return found[0], found[1]


def _begun(loader: DataLoader[Any]) -> Iterator[Decoded]:
    """The loader's batches. Signals wait while workers are forked: one must not die of them before `_begin_worker`."""
    if not hasattr(signal, "sigwaitinfo"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, *LEFT_TO_THE_TRAINING})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(worker: int) -> None:
    """Leaves signals to the training: a worker that died of one would end it before its checkpoint is written.

    Schedulers and terminals send them to all processes. SIGTERM counts from the parent alone, which ends workers so.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return  # not on macOS
    for ignored in LEFT_TO_THE_TRAINING:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_TRAINING)
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()
