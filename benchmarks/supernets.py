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
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import harness
from trainings import Difference, Results, Training

from pynas.train.run import Silent

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
    """In a worker: one search in its folder under `root`; `cpu_seconds` is None where it went on after a stop."""
    import torch

    from pynas.data.config import DataConfig
    from pynas.fpnas.config import SupernetConfig
    from pynas.fpnas.run import search_supernet
    from pynas.space.space import load_space

    torch.set_num_threads(harness.THREADS)
    folder, clock = Path(root) / search.folder, _Clock()
    whole, told = not folder.exists(), folder / "cpu_seconds"
    result = search_supernet(
        load_space(search.space),
        SupernetConfig(**search.config),
        search.targets,
        DataConfig(**search.data),
        folder,
        seed=search.seed,
        listener=clock,
    )
    if whole:
        told.write_text(f"{clock.spent:.2f}\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {key: result[key] for key in KEPT} | {"cpu_seconds": float(told.read_text()) if told.exists() else None}


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


def samples_after(result: dict[str, Any], warmup_epochs: int) -> int:
    """Architectures drawn after the warm-up."""
    return sum(row["samples"] for row in result["history"] if row["epoch"] > warmup_epochs)


def change(values: Sequence[float], than: Sequence[float]) -> Difference:
    """By what share values are more than others, seed by seed."""
    return Difference(tuple(a / b - 1 for a, b in zip(values, than, strict=True)))


def mean(values: Sequence[float], digits: int = 0) -> str:
    """A cell: the mean over seeds and their standard deviation."""
    deviation = f" (sd {statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"
