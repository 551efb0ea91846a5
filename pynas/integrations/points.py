"""Optuna's search spaces as the predictor sees them: points, their costs, and where new candidates come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pynas.errors import PynasError
from pynas.predict.domain import Batch, Dimension, Domain
from pynas.randomness import derive_seed, generator
from pynas.space.budget import Bounds, Budget, format_amount

if TYPE_CHECKING:
    from pynas.space.space import Space
    from pynas.space.table import Variable

MOST_LISTED = 32  # values of a range beyond which it counts as continuous
MOST_CHOICES = 256  # choices beyond which a categorical parameter is left to independent sampling
_MOST_REMEMBERED = 200_000  # costs of candidates
_ENOUGH = 64  # candidates within a budget with which the search for more ends

Points = NDArray[np.float64]
Costs = dict[str, NDArray[np.float64]]
CostFunction = Callable[[dict[str, Any]], Any]


def distribution_of(variable: Variable) -> BaseDistribution:
    """Optuna's distribution of a table's variable, the same as that in the journals of pynas' own studies."""
    values = variable.values
    if variable.kind == "range" and all(isinstance(value, int) for value in values):
        return IntDistribution(values[0], values[-1], step=values[1] - values[0])
    return CategoricalDistribution(values)


class Axis:
    """One parameter: between its values, Optuna's numbers for them, and a point's coordinate.

    The coordinate is an index where the values are `listed`, else a position from 0 to 1.
    """

    def __init__(self, name: str, distribution: BaseDistribution, dimension: Dimension | None = None) -> None:
        self.name, self.distribution = name, distribution
        self.low, self.high, self.step, self.log = 0.0, 0.0, 1.0, False
        self.count = _count(distribution)
        if isinstance(distribution, FloatDistribution | IntDistribution):
            self.low, self.high, self.log = float(distribution.low), float(distribution.high), distribution.log
            self.step = float(distribution.step or 1)
        self.categorical = isinstance(distribution, CategoricalDistribution)
        few = self.count is not None and self.count <= MOST_LISTED
        self.listed = self.categorical or few or dimension is not None
        self.dimension = dimension or self._dimension()

    def _dimension(self) -> Dimension:
        if not self.listed:
            return Dimension(self.name, None)
        assert self.count is not None
        if self.categorical:
            return Dimension(self.name, tuple(range(self.count)))
        values = tuple(self.value(index) for index in range(self.count))
        return Dimension(self.name, values, ordered=True, log=self.log)

    def value(self, point: float) -> Any:
        """What the objective gets, a plain Python value."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return choices[int(point)]
            case IntDistribution(low=low, high=high, step=step):
                if self.log and not self.listed:
                    return min(max(round(self._stretched(point)), low), high)
                steps = int(point) if self.listed else round(point * ((high - low) // step))
                return min(low + steps * step, high)
            case FloatDistribution(low=low, high=high, step=step):
                if self.count is None:
                    return min(max(self._stretched(point), low), high)
                steps = int(point) if self.listed else round(point * (self.count - 1))
                return min(low + steps * (step or 0.0), high)
        raise PynasError(f"parameter {self.name}: {self.distribution}; allowed: floats, ints and categorical ones")

    def _stretched(self, point: float) -> float:
        if self.log:
            return float(np.exp((1 - point) * np.log(self.low) + point * np.log(self.high)))
        return float((1 - point) * self.low + point * self.high)

    def points(self, numbers: Points) -> Points:
        """Coordinates of Optuna's internal numbers."""
        if self.categorical or self.count == 1:
            return numbers if self.categorical else np.zeros(len(numbers))
        if self.log and not self.listed:
            return np.clip(np.log(numbers / self.low) / np.log(self.high / self.low), 0, 1)
        if self.count is None:
            return np.clip((0.5 * numbers - 0.5 * self.low) / (0.5 * self.high - 0.5 * self.low), 0, 1)
        steps = np.clip(np.round((numbers - self.low) / self.step), 0, self.count - 1)
        return steps if self.listed else steps / (self.count - 1)

    def draw(self, n: int, random: np.random.Generator) -> Points:
        """`n` random coordinates, as Optuna's random sampler draws values."""
        uniform = random.random(n)
        if self.count is None:
            return uniform
        if self.log and self.count > 1:
            low, high = np.log(self.low - 0.5), np.log(self.high + 0.5)
            return self.points(np.clip(np.round(np.exp(low + uniform * (high - low))), self.low, self.high))
        steps = np.minimum(np.floor(uniform * self.count), self.count - 1)
        return steps if self.listed else steps / (self.count - 1)

    def near(self, column: Points, random: np.random.Generator) -> Points:
        """Other coordinates: mostly near ones where there is an order, at distances of every magnitude."""
        if self.count == 1:
            return column
        if self.listed and not self.dimension.ordered:
            assert self.count is not None
            return (column + random.integers(1, self.count, len(column))) % self.count
        distance = np.exp(random.uniform(np.log(0.002), np.log(0.4), len(column))) * random.normal(size=len(column))
        if self.listed:
            assert self.count is not None
            far = distance * (self.count - 1)
            moved = np.clip(column + np.sign(far) * np.ceil(np.abs(far)), 0, self.count - 1)
        else:
            moved = self._snapped(np.clip(column + distance, 0, 1))
        return np.where(random.random(len(column)) < 0.2, self.draw(len(column), random), moved)

    def _snapped(self, column: Points) -> Points:
        if self.count is None:
            return column
        if self.log:
            return self.points(np.clip(np.round(self.low * (self.high / self.low) ** column), self.low, self.high))
        return np.round(column * (self.count - 1)) / (self.count - 1)


def _count(distribution: BaseDistribution) -> int | None:
    """How many values there are; None for a continuous range."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case FloatDistribution(step=None):
            return 1 if distribution.single() else None
        case FloatDistribution(low=low, high=high, step=step):
            return 1 if step is None or distribution.single() else round((high - low) / step) + 1
        case IntDistribution(low=low, high=high, step=step):
            return (high - low) // step + 1
    return None


class Ground:
    """A search space with its budgets: what can be picked.

    `space` is the table that the distributions are of, or None; `cost` tells the costs of a candidate's values where it
    is.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        *,
        budgets: Mapping[str, Mapping[str, Bounds]],
        cost: CostFunction | None,
        candidates: int,
        seed: int,
        space: Space | None = None,
    ) -> None:
        self.distributions, self.budgets, self.cost, self.space = dict(distributions), budgets, cost, space
        self.candidates, self.seed = candidates, seed
        of = Domain.of(space) if space else None
        dimensions = [None] * len(distributions) if of is None else list(of.dimensions)
        self.axes = [Axis(name, d, dim) for (name, d), dim in zip(distributions.items(), dimensions, strict=True)]
        self._of = of
        self._remembered: dict[bytes, tuple[float, ...]] = {}
        self._names: tuple[str, ...] = ()
        self._rows: dict[Any, Points | None] = {}

    # points and values ----------------------------------------------------------------------------------------------

    def values(self, point: Points) -> dict[str, Any]:
        return {axis.name: axis.value(float(x)) for axis, x in zip(self.axes, point, strict=True)}

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Values as Optuna writes them, which JSON can hold whatever they are."""
        return {axis.name: axis.distribution.to_internal_repr(values[axis.name]) for axis in self.axes}

    def point(self, values: Mapping[str, Any]) -> Points | None:
        """The point of a trial's values; None where one is missing or lies outside."""
        try:
            return self.point_of(self.numbers(values))
        except (KeyError, ValueError):
            return None

    def point_of(self, numbers: Mapping[str, float]) -> Points | None:
        try:
            row = [float(numbers[axis.name]) for axis in self.axes]
        except KeyError:
            return None
        if not all(axis.distribution._contains(number) for axis, number in zip(self.axes, row, strict=True)):
            return None
        return np.array([axis.points(np.array([x]))[0] for axis, x in zip(self.axes, row, strict=True)], np.float64)

    def remembered_point(self, key: Any, values: Mapping[str, Any]) -> Points | None:
        """The same for a trial that will not change any more."""
        if key not in self._rows:
            self._rows[key] = self.point(values)
        return self._rows[key]

    # costs ----------------------------------------------------------------------------------------------------------

    def costs(self, points: Points) -> Costs:
        """Costs of the points by name: ``(n,)`` each."""
        if self.space is not None:
            counted = self.space.costs(np.ascontiguousarray(points, dtype=np.uint8))
            return {name: column.astype(np.float64) for name, column in counted.items()}
        if self.cost is None:
            return {}
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.clear()
        rows = []
        for point, key in zip(points, keys(points), strict=True):
            if key not in self._remembered:
                self._remembered[key] = self._told(self.values(point))
            rows.append(self._remembered[key])
        table = np.array(rows, np.float64).reshape(len(points), len(self._names))
        return {name: table[:, i] for i, name in enumerate(self._names)}

    def _told(self, values: dict[str, Any]) -> tuple[float, ...]:
        assert self.cost is not None
        try:
            told = self.cost(dict(values))
        except Exception as error:  # whatever a user's function does
            raise PynasError(f"cost: {type(error).__name__}: {error}, called with {values}") from error
        told = told if isinstance(told, Mapping) else {"cost": told}
        names = self._names or tuple(sorted(told))
        if tuple(sorted(told)) != names:
            raise PynasError(f"cost: {sorted(told)} for {values}; allowed: {list(names)}, as before")
        try:
            row = tuple(float(told[name]) for name in names)
        except (TypeError, ValueError):
            row = (np.nan,)
        if not row or not np.isfinite(row).all():
            raise PynasError(
                f"cost: {dict(told)} for {values}; allowed: finite numbers, by their names or a single one"
            )
        for name, bounds in self.budgets.items():
            if unknown := [cost for cost in bounds if cost not in names]:
                raise PynasError(f"budget {name}: unknown cost {unknown[0]!r}; allowed: {', '.join(names)}")
        self._names = names
        return row

    def costs_of(self, candidates: Sequence[Mapping[str, Any]]) -> Costs:
        """The same of values, which may hold more than this search space; of a table's space not."""
        table = np.array([self._told(dict(values)) for values in candidates], np.float64)
        return {name: table[:, i] for i, name in enumerate(self._names)}

    def within(self, costs: Costs, n: int) -> NDArray[np.bool_]:
        """Which points each budget admits: bool ``(budgets, n)``."""
        return np.array([self._excess(costs, n, bounds) <= 0 for bounds in self.budgets.values()]).reshape(-1, n)

    @staticmethod
    def _excess(costs: Costs, n: int, budget: Mapping[str, Bounds]) -> Points:
        """How far beyond a budget, in parts of its bounds, summed over the costs."""
        excess = np.zeros(n)
        for name, (low, high) in budget.items():
            if low is not None:
                excess += np.maximum(low - costs[name], 0) / max(abs(low), 1e-12)
            if high is not None:
                excess += np.maximum(costs[name] - high, 0) / max(abs(high), 1e-12)
        return excess

    def batch(self, points: Points, costs: Costs) -> Batch:
        columns = [np.log(np.maximum(costs[name], self._floor[name])) for name in self.domain.statistics]
        return Batch(points, np.stack(columns, axis=1) if columns else np.empty((len(points), 0)))

    @cached_property
    def domain(self) -> Domain:
        if self._of is not None:
            return self._of
        return Domain(tuple(axis.dimension for axis in self.axes), tuple(self.costs(self.pool)))

    @cached_property
    def _floor(self) -> dict[str, float]:
        """What costs of nothing count as, so that they have a logarithm."""
        floors = dict.fromkeys(self.domain.statistics, 1.0)
        for name, column in ({} if self.space else self.costs(self.pool)).items():
            floors[name] = float(column[column > 0].min(initial=np.inf))
        return {name: floor if np.isfinite(floor) else 1.0 for name, floor in floors.items()}

    # candidates -----------------------------------------------------------------------------------------------------

    @cached_property
    def everything(self) -> Points | None:
        """All points within any budget, where all together are no more than the candidates of a pick; else None."""
        total = 1
        for axis in self.axes:
            total *= axis.count or self.candidates + 1
            if total > self.candidates:
                return None
        columns = [np.arange(axis.count or 1) / (1 if axis.listed else (axis.count or 2) - 1) for axis in self.axes]
        points = np.stack([grid.reshape(-1) for grid in np.meshgrid(*columns, indexing="ij")], axis=1)
        costs = self.costs(points)
        within = self.within(costs, total)
        for name, admitted in zip(self.budgets, within, strict=True):
            if not admitted.any():
                raise PynasError(self._beyond(name, costs))
        return points[within.any(axis=0)]

    @cached_property
    def pool(self) -> Points:
        """Candidates that stay the same: the first trials are of these, and features are standardised over them."""
        return self.draw(self.candidates, "pool")

    def fresh(self, number: int) -> Points:
        """Candidates for a pick: others each time, unless their costs take a call each."""
        return self.pool if self.cost is not None else self.draw(self.candidates, "candidates", number)

    def draw(self, n: int, *purpose: str | int) -> Points:
        """About `n` random points, as many within each budget. Raises PynasError where a budget admits none."""
        if self.everything is not None:
            return self.everything
        part = -(-n // len(self.budgets))
        seed = derive_seed(self.seed, *purpose)
        if self.space is not None:
            samples = [
                self.space.sample(part, budget=Budget(**bounds), seed=derive_seed(seed, name))
                for name, bounds in self.budgets.items()
            ]
            return np.concatenate(samples).astype(np.float64)
        random = generator(seed, "points")
        points = np.stack([axis.draw(n, random) for axis in self.axes], axis=1)
        if not any(self.budgets.values()):
            return points
        costs = self.costs(points)
        found = [self._search(name, points, costs, part, random) for name in self.budgets]
        return np.concatenate(found)

    def _search(self, name: str, points: Points, costs: Costs, most: int, random: np.random.Generator) -> Points:
        """Points within one budget: of these, and where they are few, from there downhill."""
        budget = self.budgets[name]
        excess = self._excess(costs, len(points), budget)
        for _ in range(20):
            if np.count_nonzero(excess == 0) >= min(most, _ENOUGH):
                break
            best = points[np.argsort(excess, kind="stable")[:_ENOUGH]]
            more = self.mutants(best, min(most, 4 * _ENOUGH), random)
            known = set(keys(points))
            more = np.array([row for key, row in dict(zip(keys(more), more, strict=True)).items() if key not in known])
            if len(more) == 0:
                continue
            told = self.costs(more)
            points = np.concatenate([points, more])
            costs = {cost: np.concatenate([costs[cost], told[cost]]) for cost in costs}
            excess = self._excess(costs, len(points), budget)
        if not (excess == 0).any():
            raise PynasError(self._beyond(name, costs))
        return points[excess == 0][:most]

    def _beyond(self, name: str, costs: Costs) -> str:
        def text(cost: str) -> str:
            low, high = self.budgets[name].get(cost, (None, None))
            bounds = ":".join("" if bound is None else format_amount(bound) for bound in (low, high))
            ends = f"{format_amount(costs[cost].min())} to {format_amount(costs[cost].max())}"
            return f"{cost}={bounds}, found from {ends}"

        return f"budget {name}: no candidate found within it ({'; '.join(text(cost) for cost in self.budgets[name])})"

    def mutants(self, parents: Points, n: int, random: np.random.Generator) -> Points:
        """`n` points near `parents`, one or a few coordinates away."""
        rows = parents[random.integers(0, len(parents), n)]
        share = np.minimum(random.choice([1.0, 2.0, 4.0], n) / len(self.axes), 1)
        changed = random.random(rows.shape) < share[:, None]
        changed[np.arange(n), random.integers(0, len(self.axes), n)] = True
        moved = np.stack([axis.near(rows[:, i], random) for i, axis in enumerate(self.axes)], axis=1)
        return np.where(changed, moved, rows)


def keys(points: Points) -> Sequence[bytes]:
    """By which equal points are known, whatever their rounding."""
    return [row.tobytes() for row in np.round(points, 9) + 0.0]
