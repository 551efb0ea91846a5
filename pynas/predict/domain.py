"""What predictors see of a space, whatever it is of: its variables, and the statistics that come free.

A `Space` of a table, a table of results, a study of Optuna's: each is a `Domain`, and its candidates are `Batch`es.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pynas.errors import PynasError

if TYPE_CHECKING:
    from pynas.space.space import Space


@dataclass(frozen=True)
class Dimension:
    """One variable.

    `values` are its choices in order; None is a continuous range, whose points are from 0 to 1 already. `ordered` says
    that the choices are a range; where they are numbers, `log` places them by their logarithm. Variables of one `kind`
    mean the same at different places, such as the kernel sizes of different stages; "" is a kind of its own. `recipe`
    tells variables of the training from those of the architecture, which come first.
    """

    name: str
    values: tuple[Any, ...] | None
    ordered: bool = False
    kind: str = ""
    log: bool = False
    recipe: bool = False

    @property
    def positions(self) -> NDArray[np.float64] | None:
        """Where the choices of an ordered variable lie between 0 and 1: min-max by value, float64 ``(choices,)``.

        None for a list and for a continuous range.
        """
        if self.values is None or not self.ordered:
            return None
        if not all(isinstance(value, int | float) for value in self.values):
            return np.linspace(0, 1, len(self.values))
        values = np.array(self.values, np.float64)
        values = np.log(values) if self.log else values
        return (values - values.min()) / max(np.ptp(values), np.finfo(float).tiny)


@dataclass(frozen=True)
class Domain:
    """The variables of a space, and the names of the statistics that are known of a candidate without training it."""

    dimensions: tuple[Dimension, ...]
    statistics: tuple[str, ...] = ()

    @classmethod
    def of(cls, space: Space) -> Domain:
        """Of a table's space. Its statistics are FLOPs and parameters, where it describes networks and they differ."""
        dimensions = []
        for variable in space.variables:
            recipe = variable.group == "recipe"
            kind = "" if recipe else _column(variable.name)
            ordered = variable.kind == "range"
            dimensions.append(Dimension(variable.name, variable.values, ordered, kind, recipe=recipe))
        return cls(tuple(dimensions), STATISTICS if space.architecture_features else ())

    def batch(self, points: NDArray[Any], costs: Mapping[str, NDArray[Any]] | None = None) -> Batch:
        """Candidates with their statistics, the logarithms of the costs of that name.

        `points` is ``(n, dimensions)``: choice indices, and positions from 0 to 1 of continuous ranges. Raises
        PynasError for another shape, for values out of range and for costs that are missing or not finite.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != len(self.dimensions):
            raise PynasError(f"points of shape {points.shape}; allowed: (n, {len(self.dimensions)})")
        for column, dimension in zip(points.T, self.dimensions, strict=True):
            highest = 1 if dimension.values is None else len(dimension.values) - 1
            fits = (column >= 0) & (column <= highest) & (dimension.values is None or column == np.floor(column))
            if not fits.all():
                kind = "positions from 0 to 1" if dimension.values is None else f"choice indices from 0 to {highest}"
                raise PynasError(f"variable {dimension.name}: {column[~fits][0]:g}; allowed: {kind}")
        if missing := [name for name in self.statistics if name not in (costs or {})]:
            raise PynasError(f"costs: {missing[0]} is missing; needed: {', '.join(self.statistics)}")
        statistics = np.empty((len(points), len(self.statistics)))
        for i, name in enumerate(self.statistics):
            cost = np.asarray(costs[name], np.float64)  # type: ignore[index]
            if cost.shape != (len(points),) or not np.isfinite(cost).all():
                raise PynasError(f"costs: {name} has shape {cost.shape}; allowed: {len(points)} finite numbers")
            statistics[:, i] = np.log(np.maximum(cost, _LEAST))
        return Batch(points, statistics)

    def genomes(self, space: Space, genomes: NDArray[np.uint8]) -> Batch:
        """Genomes of the space that this domain is `of`, uint8 ``(n, variables)``, with their statistics."""
        return self.batch(genomes, space.costs(genomes))


_LEAST = 1e-9  # in place of a cost of 0, as a model has that no table describes
STATISTICS = ("flops", "params")
"""Counts that come free with a genome (section 3.2), in the order of the predictor's inputs."""


@dataclass(frozen=True)
class Batch:
    """Candidates: `points` float64 ``(n, dimensions)``, `statistics` float64 ``(n, statistics)``, logarithms."""

    points: NDArray[np.float64]
    statistics: NDArray[np.float64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Any) -> Batch:
        return Batch(self.points[rows], self.statistics[rows])

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        return Batch(
            np.concatenate([batch.points for batch in batches]), np.concatenate([batch.statistics for batch in batches])
        )


def _column(name: str) -> str:
    """The column of a table in a variable's name: "e" of ``stage2.e.first``; "" of ``resolution``."""
    return name.split(".")[1] if "." in name else ""
