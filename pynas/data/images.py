"""Images that lie in files: which there are, without decoding any. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pynas.data.config import DataConfig
from pynas.data.split import choose_classes, stratify, withheld
from pynas.errors import PynasError

PARTS = ("train", "validation", "test")


class Source(Protocol):
    """Encoded images by number. Goes to worker processes, so it is small, or shared by forking, and can be pickled."""

    def name(self, i: int) -> str:
        """What a user finds the image by."""

    def key(self, i: int) -> str:
        """What decides on which side of a split it falls: its name without where the data set lies."""

    def read(self, i: int) -> bytes:
        """The encoded image; OSError where it cannot be read."""

    def close(self) -> None:
        """Closes the files that `read` left open in this process; it may be called again."""


class Names:
    """Many strings in two arrays: a list of a million would be copied into every worker, count by count."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        return self._text[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Images:
    """Some images of a source: `index` and `labels` int64 (N,); `groups` int64 (N,), the shard of each, or None."""

    source: Source
    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    bad: dict[str, str] = field(default_factory=dict)  # known to be bad before decoding: name -> reason; not in `index`

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: NDArray[np.int64]) -> Images:
        groups = None if self.groups is None else self.groups[chosen]
        return replace(self, index=self.index[chosen], labels=self.labels[chosen], groups=groups)


@dataclass(frozen=True)
class Listing:
    """What is there: the names of the classes, by label, and the images of "train" and perhaps of the other parts."""

    name: str  # of the data set, as messages tell it
    classes: list[str]
    parts: dict[str, Images]

    def exchanged(self) -> Listing:
        """The training images as validation images, and the other way round."""
        train, validation = self.parts["validation"], self.parts["train"]
        return replace(self, parts=self.parts | {"train": train, "validation": validation})


def arrange(config: DataConfig, listing: Listing) -> Listing:
    """The listing with the classes, the split and the sizes that `config` asks for; it has a validation part.

    Which images validate depends on their names and `config.seed` alone, so it does not change as others come or go,
    apart from the few at the border. Raises PynasError for what the images there are do not allow.
    """
    classes, parts = listing.classes, dict(listing.parts)
    for part, images in parts.items():
        check_share(part, images.bad, len(images) + len(images.bad), config.max_bad)
    if config.classes is not None:
        renumbered = choose_classes(len(classes), config.classes, config.seed, listing.name)
        classes = [name for name, label in zip(classes, renumbered, strict=True) if label >= 0]
        for part, images in parts.items():
            kept = images.take(np.flatnonzero(renumbered[images.labels] >= 0))
            parts[part] = replace(kept, labels=renumbered[kept.labels])
    if config.withhold is not None:
        train = parts["train"]
        count = withheld(config.withhold, len(train), listing.name)
        order = shuffled_by_name(train, config.seed)
        if "validation" in parts:
            parts.setdefault("test", parts["validation"])
        parts["validation"] = replace(train.take(np.sort(order[len(order) - count :])), bad={})
        parts["train"] = train.take(np.sort(order[: len(order) - count]))
    if "validation" not in parts:
        raise PynasError(
            f"data.withhold: {listing.name} has no validation images of its own; allowed: a number of its"
            f" {len(parts['train'])} training images, a share between 0 and 1, half"
        )
    for part in ("train", "validation"):
        asked, there = getattr(config, part), len(parts[part])
        if asked is not None and asked > there:
            raise PynasError(f"data.{part}: got {asked}, {listing.name} has {there} {part} images")
        if asked is not None and asked < there:
            parts[part] = parts[part].take(np.sort(shuffled_by_name(parts[part], config.seed)[:asked]))
        if len(parts[part]) == 0:
            raise PynasError(f"data.path: {listing.name} has no {part} images of its {len(classes)} classes")
    return Listing(listing.name, classes, parts)


def shuffled_by_name(images: Images, seed: int) -> NDArray[np.int64]:
    """A stratified order (see `pynas.data.split`) that the images' keys and the seed decide."""
    salt = str(seed).encode()
    digests = [
        hashlib.blake2b(images.source.key(i).encode("utf-8", "surrogateescape"), digest_size=8, salt=salt[:16]).digest()
        for i in images.index
    ]
    values = np.frombuffer(b"".join(digests), np.uint64)
    return stratify(images.labels, np.argsort(values, kind="stable"))


def check_share(part: str, bad: dict[str, str], there: int, allowed: float) -> None:
    """PynasError where more than a share of `allowed` of the images of a part are bad."""
    if bad and len(bad) > allowed * there:
        raise PynasError(
            f"data.max_bad: {len(bad)} of the {there} {part} images are bad, {len(bad) / there:.2%}; allowed: "
            f"{allowed:.2%}; {some_of(bad)}"
        )


def some_of(bad: dict[str, str], most: int = 3) -> str:
    """The first few bad images with their reasons."""
    named = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:most])
    return f"{named}; and {len(bad) - most} more" if len(bad) > most else named


def one_class_is_none(listing: Listing) -> Listing:
    """PynasError for a data set of a single class, from which nothing can be learnt."""
    if len(listing.classes) < 2:
        raise PynasError(f"data.path: {listing.name} has a single class, {listing.classes[0]}; allowed: two or more")
    return listing
