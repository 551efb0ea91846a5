"""The Gaussian process's inputs: groups of features, each standardised over candidates that need no labels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pynas.predict.domain import Batch, Domain

COARSE = 8
"""Choices up to which a range has a column for each: of a finer one a choice says too little about its neighbours."""


@dataclass(frozen=True)
class Features:
    """Groups of features of n candidates, float64 ``(n, columns)``, of which a group may have none.

    one_hot: a column for each choice of each variable, but for fine ranges. statistics: log counts. sums: for each kind
    of variable, how many take each value. ranges: the positions of fine ranges. lengths: the positions of each kind's
    ordered variables and the choices of its others, then the statistics: what has a length scale of its own.
    """

    one_hot: NDArray[np.float64]
    statistics: NDArray[np.float64]
    sums: NDArray[np.float64]
    ranges: NDArray[np.float64]
    lengths: tuple[NDArray[np.float64], ...]

    @property
    def linear(self) -> tuple[NDArray[np.float64], ...]:
        return (self.one_hot, self.statistics, self.sums, self.ranges)

    def __len__(self) -> int:
        return len(self.one_hot)

    def __getitem__(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Features:
        one_hot, statistics, sums, ranges = (group[rows] for group in self.linear)
        return Features(one_hot, statistics, sums, ranges, tuple(group[rows] for group in self.lengths))

    def join(self, other: Features) -> Features:
        one_hot, statistics, sums, ranges = map(np.concatenate, zip(self.linear, other.linear, strict=True))
        lengths = zip(self.lengths, other.lengths, strict=True)
        return Features(one_hot, statistics, sums, ranges, tuple(map(np.concatenate, lengths)))


class Encoding:
    """Features of a domain, whose means and deviations come from unlabelled candidates.

    A column that is constant among those has no deviation and is left out.
    """

    def __init__(self, domain: Domain, unlabelled: Batch) -> None:
        self.domain = domain
        self._lookups = [_Lookup(domain, index) for index in range(len(domain.dimensions))]
        kinds: dict[str, list[int]] = defaultdict(list)
        for index, dimension in enumerate(domain.dimensions):
            kinds[dimension.kind or f"variable {index}"].append(index)
        self._kinds = list(kinds.values())
        self._scales = [_Scale(group) for group in self._raw(unlabelled)]

    def __call__(self, batch: Batch) -> Features:
        groups = [scale(group) for scale, group in zip(self._scales, self._raw(batch), strict=True)]
        one_hot, statistics, sums, ranges, *lengths = groups
        return Features(one_hot, statistics, sums, ranges, tuple(group for group in lengths if group.shape[1]))

    def _raw(self, batch: Batch) -> list[NDArray[np.float64]]:
        columns = batch.points.T
        pairs = list(zip(self._lookups, columns, strict=True))
        one_hot = [lookup.one_hot(column) for lookup, column in pairs if not lookup.fine]
        ranges = [lookup.length(column) for lookup, column in pairs if lookup.fine]
        empty = np.empty((len(batch), 0))
        sums = [self._sums(columns, kind) for kind in self._kinds if len(kind) > 1]
        lengths = [np.concatenate([self._lookups[i].length(columns[i]) for i in kind], axis=1) for kind in self._kinds]
        return [
            np.concatenate([empty, *one_hot], axis=1),
            batch.statistics,
            np.concatenate([empty, *sums], axis=1),
            np.concatenate([empty, *ranges], axis=1),
            *lengths,
            batch.statistics,
        ]

    def _sums(self, columns: NDArray[np.float64], kind: list[int]) -> NDArray[np.float64]:
        """How many variables of a kind take each value that any of them can take; continuous ones count for nothing."""
        dimensions = self.domain.dimensions
        values = list(dict.fromkeys(value for i in kind for value in dimensions[i].values or ()))
        sums = np.zeros((columns.shape[1], len(values)))
        for i in kind:
            places = np.array([values.index(value) for value in dimensions[i].values or ()], np.intp)
            if len(places):
                sums[np.arange(len(sums)), places[columns[i].astype(np.intp)]] += 1
        return sums


class _Lookup:
    """The features of one variable."""

    def __init__(self, domain: Domain, index: int) -> None:
        dimension = domain.dimensions[index]
        self.choices = None if dimension.values is None else np.eye(len(dimension.values))
        positions = dimension.positions
        self.positions = None if positions is None else positions[:, None]
        self.fine = dimension.values is None or (positions is not None and len(positions) > COARSE)

    def one_hot(self, column: NDArray[np.float64]) -> NDArray[np.float64]:
        return column[:, None] if self.choices is None else self.choices[column.astype(np.intp)]

    def length(self, column: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.one_hot(column) if self.positions is None else self.positions[column.astype(np.intp)]


class _Scale:
    def __init__(self, group: NDArray[np.float64]) -> None:
        self.mean, deviation = group.mean(axis=0), group.std(axis=0)
        self.kept = deviation > 1e-9
        self.deviation = deviation[self.kept]

    def __call__(self, group: NDArray[np.float64]) -> NDArray[np.float64]:
        return (group - self.mean)[:, self.kept] / self.deviation
