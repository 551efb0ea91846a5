"""What every data set is to a training: batches that are a function of the configuration, the seed, epoch and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MEMORY_FORMAT = torch.channels_last
"""Measured on one AVX2 core (torch 2.13, forward + backward + step, median) for 2.4 MFLOPs at 28 x 28 x 1:
channels_last 720 to 970 images/s, contiguous 550 to 690 (batches of 64 to 256). On CUDA it is the faster one as well.
"""


def arranged(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The tensor in that format. `contiguous` leaves one channel as it is, whose strides fit both formats, and networks
    whose maps follow the strides of their input then get the other one.
    """
    if memory_format is torch.contiguous_format:
        return tensor.clone(memory_format=memory_format)
    return tensor.contiguous(memory_format=memory_format)


@dataclass(frozen=True)
class Batch:
    """images: float32 (B, C, R, R), normalised and, for training, augmented, channels_last; labels: int64 (B,).

    Both are on the device the data were opened for.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Share:
    """What one of `ranks` processes gets of the batches that all of them compute together.

    `cores`: those it may decode images with; None for all there are.
    """

    rank: int = 0
    ranks: int = 1
    cores: int | None = None

    def of_step(self, step: int, batch_size: int) -> slice:
        """Which images of an epoch's order are this rank's in a step: `batch_size` of the `ranks * batch_size`."""
        first = (step * self.ranks + self.rank) * batch_size
        return slice(first, first + batch_size)

    def of_all(self, count: int) -> slice:
        """This rank's images of `count` that are evaluated: as many for each rank, to within one."""
        return slice(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)

    def purpose(self, *purpose: str | int) -> tuple[str | int, ...]:
        """The key of random draws for a batch: every rank's are its own, those of a single one as they always were."""
        return purpose if self.ranks == 1 else (*purpose, self.rank)


WHOLE = Share()
"""The share of a process that trains alone."""


class Data(Protocol):
    """Images of one data set at one resolution, on one device; those of one rank (`Share`)."""

    name: str
    classes: int
    channels: int
    train_images: int  # in one epoch, on all ranks

    @property
    def bad(self) -> dict[str, str]:
        """The images skipped so far: name -> reason."""

    def bad_by_part(self) -> dict[str, dict[str, str]]:
        """Those that were skipped while decoding, by "train", "validation" and "test"."""

    def add_bad(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """Take in what other ranks skipped (their `bad_by_part`); too many of them are a PynasError."""

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The train_images // (ranks * batch_size) batches of an epoch, in a new order, beginning with step `start`.

        Step s of R ranks is images [s R B, (s + 1) R B) of the one order that all ranks share, B for each. The images
        left over are left out. A bad image makes its batch smaller; too many of them are a PynasError, and so is a
        batch without an image where there is no other rank to have some.
        """

    def validation_batches(self) -> Iterator[Batch]:
        """Every validation image of this rank's share once, in the same order every time; together all ranks have all.

        Raises PynasError where too many are bad.
        """

    def test_batches(self) -> Iterator[Batch]:
        """Every test image of this rank's share once, as for validation. Raises PynasError where there are none."""

    def close(self) -> None:
        """Ends the worker processes, if any; nothing may be read afterwards."""
