"""The sample pool: 20 000 genomes of 400M to 800M FLOPs from a scrambled Sobol sequence, imports done.

pynas.make_pool against the same in numpy and scipy: Sobol points, choices by a product, FLOPs looked up.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import harness
import numpy as np
from reference import FlopTables

import pynas
from pynas.nars.pool import make_pool

SIZE = 20_000
LOW, HIGH = 400_000_000, 800_000_000


def main() -> None:
    options = harness.arguments(__doc__, rounds=15)
    around = harness.machine("scipy")
    space = pynas.load_space("fbnetv3", pin={"ema": True})
    budget = pynas.Budget(flops=(LOW, HIGH))
    start = time.perf_counter()
    make_pool(space, SIZE, budget=budget, seed=0)  # imports scipy.stats
    cold = time.perf_counter() - start
    tables = FlopTables(space)
    choices = np.array([len(variable.values) for variable in space.variables])

    from scipy.stats import qmc

    def ours(i: int) -> Any:
        return make_pool(space, SIZE, budget=budget, seed=i).genomes

    def peer(i: int) -> Any:
        sobol = qmc.Sobol(len(choices), rng=np.random.default_rng(i))
        kept: list[Any] = []
        found = drawn = 0
        while found < SIZE:
            wanted = SIZE if not drawn else (SIZE - found) * drawn / max(found, 1) + 1
            points = sobol.random(2 ** math.ceil(math.log2(max(wanted, 256))))
            genomes = (points * choices).astype(np.uint8)
            flops = tables(genomes)
            kept.append(genomes[(flops >= LOW) & (flops <= HIGH)])
            drawn += len(points)
            found += len(kept[-1])
        return np.concatenate(kept)[:SIZE]

    warnings.simplefilter("ignore", UserWarning)  # scipy's, on balance
    runs = harness.measure({"pynas": ours, "scipy and numpy": peer}, options.rounds)
    for name, run in runs.items():
        for genomes in run.answers:
            flops = tables(genomes)
            assert genomes.shape == (SIZE, len(choices)), name
            assert flops.min() >= LOW, name
            assert flops.max() <= HIGH, name
    results = {name: run.summary(runs["pynas"]) for name, run in runs.items()}
    acceptance = make_pool(space, SIZE, budget=budget, seed=0)
    rows = [(name, *harness.milliseconds(r), f"{r['ratio']['median']:.2f}") for name, r in results.items()]
    rows.append(("pynas, first call (imports scipy)", f"{1e3 * cold:.2f}", "", "", "", ""))
    median = results["pynas"]["seconds"]["median"]
    targets = [(f"{SIZE} feasible genomes below 50 ms", f"{1e3 * median:.1f} ms", median < 0.050)]
    data = {"results": results, "cold_seconds": cold, "drawn": acceptance.drawn, "acceptance": acceptance.acceptance}
    harness.report("pool", options, around, ("pool", *harness.TIMES, "times pynas"), rows, targets, data)


if __name__ == "__main__":
    main()
