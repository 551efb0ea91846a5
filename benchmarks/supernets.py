"""What the tables of FP-NAS share: searches in supernets, for several arms and seeds, and trainings from scratch of
what they found.

    found = search_all([Search(arm, seed, space, targets, config, data), ...], options)  # results by (arm, seed)
    planned = [from_scratch(arm, seed, space, result["genome"], recipe, data) for (arm, seed), result in found.items()]
    trained = trainings.train_all(planned, options)  # results by (arm, seed)

Plans go seed by seed, so that arms of a seed run next to each other and what else the machine does hits them alike.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import harness
from trainings import Claim, Difference, Results, Training, accuracy, train_all

from pynas.listener import Silent

EQUAL = 0.01
"""Accuracies that differ by less are called equal."""

KEPT = ("genome", "costs", "accuracy", "entropy", "samples", "seconds", "history")


@dataclass(frozen=True)
class Search:
    """One search as plain values: `config` of `SupernetConfig`, `data` of `DataConfig`."""

    arm: str
    seed: int
    space: str
    targets: dict[str, float] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    data: dict[str, Any] = field(repr=False)

    @property
    def folder(self) -> str:
        return f"search-{self.space}-{self.arm}-{self.seed}".replace(" ", "_").replace("/", "_")


def search_all(searches: Sequence[Search], options: argparse.Namespace) -> Results:
    """What the searches found, by arm and seed, run in the order given, `options.workers` at a time."""
    root = options.dir or Path(tempfile.mkdtemp(prefix="pynas-searches-"))
    results: Results = {}
    begun = time.perf_counter()
    try:
        with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for search, found in zip(searches, pool.map(partial(_search, root=str(root)), searches), strict=True):
                results[search.arm, search.seed] = found
                print(
                    f"{time.perf_counter() - begun:6.0f} s  {search.arm}, seed {search.seed}: {found['samples']} "
                    f"samples, entropy {found['entropy']:.1f}, {found['costs']['flops']} FLOPs in "
                    f"{found['seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        if options.dir is None:
            shutil.rmtree(root, ignore_errors=True)
    return results


class _Clock(Silent):
    """Seconds of the processor from the first step of a search to its last epoch's end."""

    begun = spent = 0.0

    def begin(self, bar: str, total: float) -> None:
        self.begun = time.process_time()

    def advance(self, bar: str, done: float, note: str = "") -> None:
        self.spent = time.process_time() - self.begun


def _search(search: Search, root: str) -> dict[str, Any]:
    """In a worker: one search in its folder under `root`; one that was cut off begins anew: its time is to be whole."""
    import torch

    from pynas.data.config import DataConfig
    from pynas.fpnas.config import SupernetConfig
    from pynas.fpnas.run import search_supernet
    from pynas.space.space import load_space

    torch.set_num_threads(harness.THREADS)
    folder, clock = Path(root) / search.folder, _Clock()
    told = folder / "cpu_seconds"
    if not told.exists():
        shutil.rmtree(folder, ignore_errors=True)
    result = search_supernet(
        load_space(search.space),
        SupernetConfig(**search.config),
        search.targets,
        DataConfig(**search.data),
        folder,
        seed=search.seed,
        listener=clock,
    )
    if not told.exists():
        told.write_text(f"{clock.spent:.2f}\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {key: result[key] for key in KEPT} | {"cpu_seconds": float(told.read_text())}


def from_scratch(
    arm: str, seed: int, space: str, genome: Sequence[int], recipe: dict[str, Any], data: dict[str, Any]
) -> Training:
    """The training from scratch of what an arm found."""
    import numpy as np

    from pynas.nets.load import ModelSpec
    from pynas.space.space import load_space

    architecture, _ = load_space(space).decode(np.array(genome, np.uint8))
    return Training(arm, seed, ModelSpec.of(architecture, name=space).to_dict(), recipe, data)


def random_genomes(space: str, count: int, flops: tuple[float, float], seed: int) -> list[list[int]]:
    """Uniform genomes of no fewer and no more FLOPs than given."""
    from pynas.space.space import load_space

    loaded = load_space(space)
    genomes = loaded.sample(4096, seed=seed)
    costs = loaded.costs(genomes)["flops"]
    return [genome.tolist() for genome in genomes[(flops[0] <= costs) & (costs <= flops[1])][:count]]


# the searches of tables 4 and 5 -----------------------------------------------------------------------------------

FIXED: dict[str, Any] = {"sampling": "fixed", "samples": 14, "distribution": "joint"}
PRINTED, SAME_START = 0.25, 0.54
"""lambda of the paper, and the one that starts fbnetv2_f_28, of 27.3 nats, from the same K = 14 as 1/4 starts the
paper's FBNetV2-F, of 59.4."""

TARGET = {"flops": 1.2e6}
IMAGES = 160
RANDOM = ((0.4e6, 0.6e6), (0.6e6, 0.8e6), (0.8e6, 1.2e6))  # FLOPs of the random architectures of a seed
SEARCH = {
    "epochs": 14,
    "warmup_epochs": 2,
    "theta": 4,
    "batch_size": 16,
    "lr": 0.1,
    "alpha_lr": 0.25,
    "augment": "none",
}
DATA = {"train": 2000, "validation": 100}
RECIPE = {
    **{"epochs": 5, "batch_size": 64, "optimizer": "SGD", "lr": 0.1, "schedule": "cosine", "weight_decay": 4e-5},
    **{"ema": False, "dropout": 0.0, "stochastic_depth": 0.0, "mixup": 0.0, "augment": "basic"},
}
QUICK: tuple[dict[str, Any], ...] = (
    {"epochs": 3, "warmup_epochs": 2, "theta": 2},
    {"train": 64, "validation": 50},
    {"epochs": 1, "batch_size": 32},
)


def adaptive(scale: float, distribution: str) -> dict[str, Any]:
    return {"sampling": "adaptive", "lambda": scale, "distribution": distribution}


def plan_searches(arms: Mapping[str, tuple[str, dict[str, Any]]], seeds: int, quick: bool) -> list[Search]:
    """Every seed's arms, each a space and what of `SupernetConfig` is its own."""
    images = 32 if quick else IMAGES
    config = {**SEARCH, **(QUICK[0] if quick else {})}
    return [
        Search(
            arm, seed, space, TARGET, {**config, **own}, _data(seed, train=images, validation=images, withhold="half")
        )
        for seed in range(seeds)
        for arm, (space, own) in arms.items()
    ]


def plan_trainings(
    arms: Mapping[str, tuple[str, dict[str, Any]]], found: Results, seeds: int, quick: bool
) -> list[Training]:
    """What every arm found, and random architectures of the arms' first space, one of each range of FLOPs."""
    data, recipe = {**DATA, **(QUICK[1] if quick else {})}, {**RECIPE, **(QUICK[2] if quick else {})}
    planned = []
    first = next(iter(arms.values()))[0]
    for seed in range(seeds):
        genomes = {arm: (space, found[arm, seed]["genome"]) for arm, (space, _) in arms.items()}
        for i, flops in enumerate(RANDOM):
            genomes[f"random {i}"] = first, random_genomes(first, 1, flops, seed)[0]
        planned += [
            from_scratch(arm, seed, space, genome, recipe, _data(seed, **data))
            for arm, (space, genome) in genomes.items()
        ]
    return planned


def _data(seed: int, **values: Any) -> dict[str, Any]:
    return {"name": "fashion-mnist", "seed": seed, **values}


def run(
    arms: Mapping[str, tuple[str, dict[str, Any]]], options: argparse.Namespace
) -> tuple[Results, list[Training], Results]:
    """All searches, then all trainings: what was found, the trainings' plan and what came of them."""
    found = search_all(plan_searches(arms, options.seeds, options.quick), options)
    planned = plan_trainings(arms, found, options.seeds, options.quick)
    return found, planned, train_all(planned, options)


# what is told of them -------------------------------------------------------------------------------------------------


def tell(planned: Sequence[Training], found: Results, trained: Results) -> Results:
    """By arm and seed: FLOPs, test accuracy, and of a search its cost and its distribution's entropy."""
    told: Results = {}
    for training in planned:
        key = training.cell, training.seed
        told[key] = {"flops": flops_of(training), "accuracy": trained[key]["test_accuracy"]}
        if key in found:
            rows = found[key]["history"]
            told[key] |= {name: found[key][name] for name in ("genome", "samples", "seconds", "cpu_seconds", "entropy")}
            told[key]["after"] = sum(row["samples"] for row in rows[SEARCH["warmup_epochs"] :])
            told[key]["entropy_by_epoch"] = [row["entropy"] for row in rows]
            told[key]["samples_by_epoch"] = [row["samples"] for row in rows]
            told[key]["flops_by_epoch"] = [row["costs"]["flops"] for row in rows]
            told[key]["accuracy_in_supernet"] = found[key]["accuracy"]
    return told


def flops_of(training: Training) -> int:
    from pynas.nets.load import ModelSpec

    return int(ModelSpec.from_dict(training.model).architecture.cost()["flops"])


def seeds_of(told: Results, arm: str, name: str) -> list[float]:
    """A value of an arm, seed by seed."""
    return [value[name] for (cell, _), value in sorted(told.items()) if cell == arm]


@dataclass(frozen=True)
class Trend:
    """Accuracy of random architectures by the logarithm of their FLOPs: a line for each seed, of one slope for all."""

    slope: float  # points in [0, 1] for each e-fold
    middle: tuple[float, ...]  # by seed, of the accuracies
    at: tuple[float, ...]  # by seed, of the logarithms

    @classmethod
    def of(cls, told: Results) -> Trend:
        cells = [f"random {i}" for i in range(len(RANDOM))]
        accuracies = list(zip(*(seeds_of(told, cell, "accuracy") for cell in cells), strict=True))
        flops = list(zip(*(seeds_of(told, cell, "flops") for cell in cells), strict=True))
        logs = [[math.log(value) for value in row] for row in flops]
        at, middle = [statistics.fmean(row) for row in logs], [statistics.fmean(row) for row in accuracies]
        x = [value - a for row, a in zip(logs, at, strict=True) for value in row]
        y = [value - m for row, m in zip(accuracies, middle, strict=True) for value in row]
        slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
        return cls(slope, tuple(middle), tuple(at))

    def beyond(self, told: Results, arm: str) -> Difference:
        """What an arm's networks have over random ones of as many FLOPs."""
        both = zip(seeds_of(told, arm, "accuracy"), seeds_of(told, arm, "flops"), self.middle, self.at, strict=True)
        return Difference(tuple(y - middle - self.slope * (math.log(x) - at) for y, x, middle, at in both))


@dataclass(frozen=True)
class Equal(Claim):
    """That two arms are equally accurate: agrees where the interval is within EQUAL; the opposite where it is not and
    leaves out zero.
    """

    @property
    def verdict(self) -> str:
        mean, half = abs(self.here.mean), self.here.half
        if mean + half <= EQUAL:
            return "agrees"
        return "the opposite" if mean > half else "cannot tell"

    def target(self) -> tuple[str, str, bool]:
        return f"{self.what} (paper: equal)", f"{self.here}, {self.verdict}", self.verdict == "agrees"


def change(values: Sequence[float], than: Sequence[float]) -> Difference:
    """By what share values are more than others, seed by seed."""
    return Difference(tuple(a / b - 1 for a, b in zip(values, than, strict=True)))


def mean(values: Sequence[float], digits: int = 0) -> str:
    """A cell: the mean over seeds and their standard deviation."""
    deviation = f" (sd {statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


COLUMNS = ("", "samples", "after warm-up", "cpu s", "s", "final entropy", "MFLOPs", "test accuracy", "over random")


def row(told: Results, trend: Trend, arm: str) -> tuple[str, ...]:
    """An arm's row under COLUMNS."""
    cells = [mean(seeds_of(told, arm, name)) for name in ("samples", "after", "cpu_seconds", "seconds")]
    megaflops = [value / 1e6 for value in seeds_of(told, arm, "flops")]
    return (
        arm,
        *cells,
        mean(seeds_of(told, arm, "entropy"), 1),
        mean(megaflops, 2),
        accuracy(seeds_of(told, arm, "accuracy")),
        str(trend.beyond(told, arm)),
    )


def random_rows(told: Results) -> list[tuple[str, ...]]:
    rows = []
    for i, (low, high) in enumerate(RANDOM):
        arm = f"random {i}"
        megaflops = [value / 1e6 for value in seeds_of(told, arm, "flops")]
        name = f"random, {low / 1e6:.1f} to {high / 1e6:.1f} MFLOPs"
        rows.append((name, "", "", "", "", "", mean(megaflops, 2), accuracy(seeds_of(told, arm, "accuracy")), ""))
    return rows


def settings(arms: Mapping[str, tuple[str, dict[str, Any]]], planned: Sequence[Training]) -> dict[str, Any]:
    return {
        "arms": {arm: {"space": space, **own} for arm, (space, own) in arms.items()},
        "search": f"{IMAGES} training images of Fashion-MNIST for the weights, as many for alpha, drawn anew for each "
        f"seed; target {TARGET['flops'] / 1e6:g} MFLOPs; {SEARCH}",
        "training": f"{planned[0].data['train']} images, accuracy on the 10 000 test images",
        "recipe": planned[0].recipe,
    }
