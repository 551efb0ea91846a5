"""What the tables of trainings share: every cell trained for several seeds, in worker processes of one thread each, and
differences compared seed by seed.

Import it before numpy and torch: like `harness` it sets their number of threads.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness

CONFIDENCE = 0.95
KEPT = ("accuracy", "raw_accuracy", "test_accuracy", "curve", "raw_curve", "seconds")

Results = dict[tuple[str, int], dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """One training as plain values. `teacher` is the cell whose network, trained with the same seed, it learns from."""

    cell: str
    seed: int
    model: dict[str, Any] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    teacher: str | None = None

    @property
    def folder(self) -> str:
        return f"{self.cell}-{self.seed}".replace(" ", "_").replace("/", "_")


def arguments(description: str | None, seeds: int, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """The options of every table; `more` are an own option's name and its keywords."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=None, help=f"trainings of each cell (default {seeds}; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny trainings, only to see that it works")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each (default 2)")
    parser.add_argument("--dir", type=Path, help="keep the runs here, and go on there with those that were cut off")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--results", action="store_true", help="also write them to benchmarks/results/<name>.json")
    for name, keywords in more:
        parser.add_argument(name, **keywords)
    options = parser.parse_args()
    if options.quick and options.results:
        parser.error("--results: not of --quick, which says nothing")
    options.seeds = options.seeds or (2 if options.quick else seeds)
    return options


def train_all(trainings: Sequence[Training], options: argparse.Namespace) -> Results:
    """Run directories' results by cell and seed, trained in the order given, teachers before who learns from them."""
    root = options.dir or Path(tempfile.mkdtemp(prefix="pynas-trainings-"))
    planned = {(training.cell, training.seed): training for training in trainings}
    results: Results = {}
    running: dict[Future[dict[str, Any]], Training] = {}
    begun = time.perf_counter()
    try:
        with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            while planned or running:
                ready = [key for key, t in planned.items() if t.teacher is None or (t.teacher, t.seed) in results]
                for training in map(planned.pop, ready):
                    running[pool.submit(_train, training, str(root))] = training
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    training = running.pop(future)
                    results[training.cell, training.seed] = result = future.result()
                    print(
                        f"{time.perf_counter() - begun:6.0f} s  {training.cell}, seed {training.seed}: "
                        f"{100 * result['accuracy']:.2f}% of validation in {result['seconds']:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
    finally:
        if options.dir is None:
            shutil.rmtree(root, ignore_errors=True)
    return results


def _train(training: Training, root: str) -> dict[str, Any]:
    """In a worker: train one network in its folder under `root`; of its state only the weights are left."""
    import torch

    from pynas.data.config import DataConfig
    from pynas.nets.load import ModelSpec
    from pynas.train.config import TrainingRecipe
    from pynas.train.run import train_model
    from pynas.train.two_step import read_teacher

    torch.set_num_threads(harness.THREADS)
    data = DataConfig(**training.data)
    taught = training.teacher and Training(training.teacher, training.seed, {}, {}, {}).folder
    folder = Path(root) / training.folder
    result = train_model(
        ModelSpec.from_dict(training.model),
        TrainingRecipe(**training.recipe),
        data,
        folder,
        seed=training.seed,
        teacher=read_teacher(str(Path(root) / taught), data) if taught else None,
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {key: result[key] for key in KEPT}


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, seed by seed: its mean and the half of its 95% interval (Student's t)."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], than: Sequence[float]) -> Difference:
        return cls(tuple(a - b for a, b in zip(values, than, strict=True)))

    def __sub__(self, other: Difference) -> Difference:
        return Difference.of(self.values, other.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def half(self) -> float:
        from scipy.stats import t

        n = len(self.values)
        if n < 2:
            return math.inf
        return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(self.values) / math.sqrt(n)

    def verdict(self, paper: float) -> str:
        """Whether the sign is that of the paper's difference, where it is larger than the noise over seeds."""
        if abs(self.mean) <= self.half:
            return "cannot tell"
        return "agrees" if self.mean * paper > 0 else "the opposite"

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} ± {100 * self.half:.2f}"


def accuracy(values: Sequence[float]) -> str:
    """A cell: the mean over seeds and their standard deviation, in per cent."""
    deviation = f" (sd {100 * statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


@dataclass(frozen=True)
class Claim:
    """A difference that the paper reports in points, or whose sign alone it tells, and the same one here."""

    what: str
    paper: float
    here: Difference
    sign_only: bool = False

    @property
    def verdict(self) -> str:
        return self.here.verdict(self.paper)

    def target(self) -> tuple[str, str, bool]:
        """As `harness.report` tells it: reached where the sign is the paper's by more than the noise."""
        paper = ("above 0" if self.paper > 0 else "below 0") if self.sign_only else f"{self.paper:+.1f}"
        what = f"{self.what} (paper {paper})"
        return what, f"{self.here}, {self.verdict}", self.verdict == "agrees"

    def to_dict(self) -> dict[str, Any]:
        interval = self.here.half if math.isfinite(self.here.half) else None
        values = {"mean": self.here.mean, "half_interval": interval, "by_seed": list(self.here.values)}
        paper = {"paper_sign" if self.sign_only else "paper_points": self.paper}
        return {"claim": self.what, **paper, **values, "verdict": self.verdict}


def conclusion(claims: Sequence[Claim], seeds: int) -> str:
    """The honest sentence at the end."""
    parts = [f"Over {seeds} seeds, paired by seed, noise being the 95% interval"]
    for verdict, text in (
        ("agrees", "beyond the noise and with the paper's sign"),
        ("the opposite", "beyond the noise and opposite to the paper"),
        ("cannot tell", "cannot tell from noise"),
    ):
        found = [claim for claim in claims if claim.verdict == verdict]
        signs = ""
        if found and verdict == "cannot tell":
            signed = [claim for claim in found if claim.paper]
            same = sum(claim.here.mean * claim.paper > 0 for claim in signed)
            signs = f" (the mean has the paper's sign in {same} of {len(signed)})"
        parts.append(f"{text}{signs}: {', '.join(claim.what for claim in found) or 'none'}")
    return f"{'; '.join(parts)}."


def order(means: Mapping[str, float]) -> str:
    """Names from the lowest to the highest."""
    return " < ".join(sorted(means, key=means.__getitem__))


def report(
    name: str,
    options: argparse.Namespace,
    around: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    claims: Sequence[Claim],
    results: Results,
    settings: Mapping[str, Any],
    remarks: Sequence[str] = (),
) -> None:
    """Print settings, table, claims and conclusion, and write them where asked to."""
    for key, value in settings.items():
        print(f"{key}: {value}")
    print()
    said = " ".join([conclusion(claims, options.seeds), *remarks])
    if options.quick:
        said = f"(quick: says nothing about the paper) {said}"
    data = {
        "settings": {"seeds": options.seeds, "quick": options.quick, **settings},
        "claims": [claim.to_dict() for claim in claims],
        "conclusion": said,
        "trainings": [
            {"cell": cell, "seed": seed, **result}
            for (cell, seed), result in sorted(results.items(), key=lambda item: item[0])
        ],
    }
    harness.report(name, options, around, columns, rows, [claim.target() for claim in claims], data)
    print(f"\n{said}")


def by_seed(results: Results, seeds: int, value: Callable[[dict[str, Any]], float]) -> dict[str, list[float]]:
    """A value of every cell's trainings, in the order of the seeds."""
    cells = dict.fromkeys(cell for cell, _ in results)
    return {cell: [value(results[cell, seed]) for seed in range(seeds)] for cell in cells}
