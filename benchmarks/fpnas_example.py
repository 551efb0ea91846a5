"""FP-NAS's example study over several seeds: each budget's winner beside a random network of as many FLOPs.

`examples/fpnas.yaml` as `pynas search` runs it: 12 epochs of 31 steps, then 8 epochs from scratch for the mode and for
an architecture drawn at random with 95 to 100% of its FLOPs, with the same images in the same order. A seed also
draws the images. Nothing was chosen by the outcome: the settings were the example's before it was first run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import harness
import trainings
from trainings import Claim, Difference, accuracy

from pynas.search.config import read_config, search_of

STUDY = Path(__file__).parents[1] / "examples" / "fpnas.yaml"


def study(seed: int, root: str, quick: bool) -> dict[str, Any]:
    """The results of the example with another seed, searched and trained in one process of one thread."""
    config = read_config(STUDY)
    data, final = ({**images.model_dump(), "seed": seed} for images in (config.data, config.final_data))
    values = config.model_dump(by_alias=True) | {"seed": seed, "data": data, "executor": {"workers": 1, "threads": 1}}
    values["final"] = {**config.final.model_dump(), "data": final}
    if quick:
        values["search"] |= {"epochs": 3, "warmup_epochs": 1, "theta": 2}
        values["data"] |= {"train": 96, "validation": 96}
        values["final"] |= {"epochs": 1}
    results = search_of(config)(type(config)(**values), Path(root) / str(seed))
    assert results is not None
    return results


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of every seed, `options.workers` at a time."""
    root = options.dir or Path(tempfile.mkdtemp(prefix="pynas-example-"))
    begun = time.perf_counter()
    found = []
    try:
        with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            task = partial(study, root=str(root), quick=options.quick)
            for seed, results in enumerate(pool.map(task, range(options.seeds))):
                found.append(results)
                print(f"{time.perf_counter() - begun:6.0f} s  seed {seed}", file=sys.stderr, flush=True)
    finally:
        if options.dir is None:
            shutil.rmtree(root, ignore_errors=True)
    return found


def evaluate(found: list[dict[str, Any]]) -> tuple[list[tuple[str, ...]], list[Claim]]:
    """The rows of the table, and whether searching has paid."""
    rows: list[tuple[str, ...]] = []
    gaps: list[Difference] = []
    for budget in found[0]["winners"]:
        winners = [results["winners"][budget] for results in found]
        searches = [results["searches"][budget] for results in found]
        tested = {run: [winner[run]["test_accuracy"] for winner in winners] for run in ("final", "baseline")}
        gaps.append(Difference.of(tested["final"], tested["baseline"]))
        flops = " ".join(f"{winner['costs']['flops'] / 1e3:.0f}k" for winner in winners)
        ends = " ".join(f"{search['history'][-1]['entropy']:.1f}" for search in searches)
        samples = " ".join(str(sum(row["samples"] for row in search["history"])) for search in searches)
        cells = (accuracy(tested["final"]), accuracy(tested["baseline"]), str(gaps[-1]))
        rows.append((budget, *cells, flops, ends, samples))
    both = Difference(tuple(sum(values) / len(values) for values in zip(*(gap.values for gap in gaps), strict=True)))
    what = "test accuracy of winners less that of random networks of as many FLOPs, both budgets"
    return rows, [Claim(what, 1, both, sign_only=True)]


def main() -> None:
    options = trainings.arguments(__doc__, 8)
    around = harness.machine("torch", "scipy")
    found = run(options)
    rows, claims = evaluate(found)
    columns = ("budget", "winner", "random", "difference", "FLOPs by seed", "entropy at the end", "samples")
    results = {
        (f"{budget}, {run}", seed): results["winners"][budget][run]
        for seed, results in enumerate(found)
        for budget in results["winners"]
        for run in ("final", "baseline")
    }
    trainings.report("fpnas_example", options, around, columns, rows, claims, results, {"study": STUDY.name})


if __name__ == "__main__":
    main()
