"""Which classes, which images train and which validate: functions of labels and a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pynas.errors import PynasError
from pynas.randomness import generator


def stratified_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order of the indices in which every prefix and every suffix holds each class in proportion.

    labels: int64 (N,). The shuffled members of a class of n images stand at (rank + 1/2) / n on a line, and the order
    is that of the line; ties between classes fall at random.
    """
    return stratify(labels, np.random.default_rng(seed).permutation(len(labels)))


def stratify(labels: NDArray[np.int64], shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
    """`stratified_order` for indices shuffled before. labels: int64 (N,); shuffled: a permutation, int64 (N,)."""
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # of each class, for its members
    place = np.empty(len(labels))
    place[by_class] = (np.arange(len(labels)) - first + 0.5) / np.repeat(counts, counts)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def choose_classes(there: int, wanted: int, seed: int, name: str) -> NDArray[np.int64]:
    """int64 (there,): the new label of every old one, -1 where the class is left out. PynasError for too many.

    The classes are drawn at random; the chosen ones keep their order.
    """
    if wanted > there:
        raise PynasError(f"data.classes: got {wanted}, {name} has {there} classes")
    chosen = np.sort(generator(seed, "classes").permutation(there)[:wanted])
    renumbered = np.full(there, -1, np.int64)
    renumbered[chosen] = np.arange(wanted)
    return renumbered


def withheld(withhold: int | float | str, there: int, name: str) -> int:
    """How many of `there` training images validate; PynasError where none would be left to train or to validate."""
    share = 0.5 if withhold == "half" else float(withhold)
    count = withhold if isinstance(withhold, int) else round(there * share)
    if not 1 <= count < there:
        raise PynasError(
            f"data.withhold: got {withhold}, {name} has {there} images to split; allowed: 1 to {there - 1}"
        )
    return count
