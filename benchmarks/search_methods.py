"""FP-NAS, NARS and random search in one space at equal training cost, on Fashion-MNIST: a table that no paper has.

All three look for a network of fbnetv2_f_28 below the same bound on FLOPs, on the same images of each seed. What they
may train is counted in passes: FLOPs of the network times images, a backward pass being two forward passes. What the
search in the supernet took (on the first half of the images for the weights, on the second for alpha) buys NARS its
candidates, and random search as many: it takes the best of them by validation accuracy. Passes that only tell how far
a search is are not counted, and the predictor and the evolution of NARS train no network; the seconds of the processor
told beside are those of everything. Candidates have at least 0.8 times the bound in FLOPs; FP-NAS has no such lower
bound. The three answers are trained from scratch alike.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import search_settings
import trainings
import yaml
from search_settings import BATCH, FLOPS, RECIPE, SPACE
from supernets import Search, from_scratch, search_all
from trainings import Difference, Results, accuracy, by_seed

from pynas.nars.config import NARSConfig
from pynas.nars.search import search
from pynas.space.table import find_table
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial

METHODS = ("FP-NAS", "NARS", "random")
PAIRS = (("FP-NAS", "random"), ("NARS", "random"), ("FP-NAS", "NARS"))
LOWEST = 0.8  # of the bound: where the candidates of NARS and random search begin
EPOCHS, ITERATIONS = 4, 3
FORWARD, BOTH = 1, 3


def supernet_passes(result: dict[str, Any], warmup: int, batch: int) -> float:
    """FLOPs of all that a search in a supernet computed: after the warm-up each sample also has a likelihood."""
    return sum(
        row["samples"] * batch * row["costs"]["flops"] * (BOTH if row["epoch"] <= warmup else BOTH + FORWARD)
        for row in result["history"]
    )


def candidate_passes(flops: float, images: int, epochs: int) -> float:
    """FLOPs of a candidate's training and of its validation at the end, on as many images."""
    return flops * images * (BOTH * epochs + FORWARD)


def table(path: Path) -> Path:
    """The space as NARS takes it: with a recipe, of one choice for each variable."""
    path.write_text(find_table(SPACE).read_text() + yaml.safe_dump({"recipe": RECIPE}, sort_keys=False))
    return path


def study(method: str, seed: int, count: int, space: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """NARS with `count` candidates or, with all of them in the first iteration, which is random, random search."""
    iterations = ITERATIONS if method == "NARS" else 1
    bounds = {"flops": [LOWEST * FLOPS, FLOPS]}
    config = NARSConfig(
        space=str(space),
        selection="paper",
        seed=seed,
        pool={"size": 5000, "budget": bounds},
        iterations=iterations,
        candidates=count // iterations,
        early_stop=1,  # what it would save depends on the candidates; so their number is known before
        budgets={"answer": bounds},
        data=search_settings.images(seed, quick),
        training={**search_settings.training(quick), "epochs": EPOCHS},
        executor={"workers": 1, "threads": 1},
    )
    told, whole = folder / "cpu_seconds", not folder.exists()
    begun = processor_seconds()
    results = search(config, folder)
    assert results is not None
    if whole:
        told.write_text(f"{processor_seconds() - begun:.2f}\n")
    trials = [trial for trial in Study.open(StudyDirectory.open(folder), read_only=True).trials() if trial.accuracy]
    best = max(trials, key=lambda trial: trial.accuracy or 0)
    genome = results["winners"]["answer"]["genome"] if method == "NARS" else best.genome
    checks = [entry["cross_validation"] for entry in results["iterations"]]
    fits = [{key: check[key] for key in ("labels", "mlp", "ridge")} for check in checks]  # Kendall tau
    return {
        "genome": genome,
        "cpu_seconds": float(told.read_text()) if told.exists() else None,
        "passes": sum(passes_of(trial, quick) for trial in trials),
        "trained": len(trials),
        "best_trained": best.accuracy,
        "validation": [trial.accuracy for trial in trials],
        "cross_validation": fits if method == "NARS" else None,
    }


def passes_of(trial: Trial, quick: bool) -> float:
    return candidate_passes(trial.costs["flops"], search_settings.images(0, quick)["train"], trial.epochs)


def processor_seconds() -> float:
    """Of this process and of all that it has started and that have ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def search_seed(seed: int, root: Path, options: Any) -> dict[str, dict[str, Any]]:
    """What each method found with one seed, and what it took."""
    config, data = search_settings.supernet(options.quick), search_settings.images(seed, options.quick)
    planned = Search("FP-NAS", seed, SPACE, {"flops": FLOPS}, config, data)
    found = {"FP-NAS": search_all([planned], options)["FP-NAS", seed]}
    found["FP-NAS"]["passes"] = supernet_passes(found["FP-NAS"], config["warmup_epochs"], BATCH)
    each = candidate_passes((1 + LOWEST) / 2 * FLOPS, data["train"], EPOCHS)
    count = ITERATIONS * max(2, round(found["FP-NAS"]["passes"] / each / ITERATIONS))
    space = table(root / "space.yaml")
    for method in ("NARS", "random"):
        folder = root / f"{method}-{seed}"
        found[method] = study(method, seed, count, space, folder, options.quick)
        print(
            f"{method}, seed {seed}: {found[method]['trained']} candidates, best {found[method]['best_trained']:.3f}",
            file=sys.stderr,
            flush=True,
        )
    return found


def costs(found: Results, seeds: int) -> dict[str, list[dict[str, int]]]:
    """Of each method's answers, seed by seed."""
    from pynas.space.space import load_space

    space = load_space(SPACE)
    genomes = {m: np.array([found[m, seed]["genome"] for seed in range(seeds)], np.uint8) for m in METHODS}
    counted = {method: space.costs(each) for method, each in genomes.items()}
    return {m: [{k: int(v[i]) for k, v in each.items()} for i in range(seeds)] for m, each in counted.items()}


def evaluate(found: Results, results: Results, seeds: int) -> tuple[list[tuple[str, ...]], dict[str, Difference]]:
    """The rows of the table, and differences of test accuracies seed by seed."""
    cells = by_seed(results, seeds, lambda result: result["test_accuracy"])
    answers = costs(found, seeds)
    rows: list[tuple[str, ...]] = []
    for method in METHODS:
        runs = [found[method, seed] for seed in range(seeds)]
        spent = [run["cpu_seconds"] for run in runs if run["cpu_seconds"] is not None]
        rows.append(
            (
                method,
                accuracy(cells[method]),
                " ".join(f"{100 * value:.2f}" for value in cells[method]),
                " ".join(f"{cost['flops'] / 1e3:.0f}k" for cost in answers[method]),
                f"{np.mean([cost['params'] for cost in answers[method]]) / 1e3:.0f}k",
                " ".join(f"{run['passes'] / 1e9:.0f}" for run in runs),
                " ".join(f"{value:.0f}" for value in spent),
            )
        )
    differences = {f"{a} less {b}": Difference.of(cells[a], cells[b]) for a, b in PAIRS}
    for what, difference in differences.items():
        by_each = " ".join(f"{100 * value:+.2f}" for value in difference.values)
        rows.append((what, str(difference), by_each, "", "", "", ""))
    return rows, differences


def main() -> None:
    options = trainings.arguments(__doc__, 4)
    around = harness.machine("torch", "scipy")
    root = options.dir or Path(tempfile.mkdtemp(prefix="pynas-methods-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        found: Results = {}
        for seed in range(options.seeds):
            for method, result in search_seed(seed, root, options).items():
                found[method, seed] = result
    finally:
        if options.dir is None:
            shutil.rmtree(root, ignore_errors=True)
    planned = [
        from_scratch(method, seed, SPACE, result["genome"], *search_settings.final(seed, options.quick))
        for (method, seed), result in found.items()
    ]
    results = trainings.train_all(planned, options)
    rows, differences = evaluate(found, results, options.seeds)
    trained = [found["NARS", seed]["trained"] for seed in range(options.seeds)]
    settings = {
        **search_settings.told(options.quick),
        "candidates of NARS and of random search, by seed": trained,
        "cross-validated Kendall tau of NARS's last predictor, by seed": [
            round(found["NARS", seed]["cross_validation"][-1]["mlp"], 2) for seed in range(options.seeds)
        ],
        "a candidate": f"{EPOCHS} epochs, {LOWEST * FLOPS:.0f} to {FLOPS} FLOPs; NARS in {ITERATIONS} iterations",
    }
    for key, value in settings.items():
        print(f"{key}: {value}")
    print()
    data = {
        "settings": {"seeds": options.seeds, "quick": options.quick, **settings},
        "differences": {what: list(difference.values) for what, difference in differences.items()},
        "searches": [{"method": m, "seed": s, **result} for (m, s), result in found.items()],
        "trainings": [{"cell": m, "seed": s, **result} for (m, s), result in sorted(results.items())],
    }
    columns = ("", "test accuracy", "by seed", "FLOPs by seed", "params", "G passes by seed", "cpu s by seed")
    targets = [
        (f"{what}: above 0 by more than the noise", str(difference), difference.mean > difference.half)
        for what, difference in list(differences.items())[:2]
    ]
    harness.report("search_methods", options, around, columns, rows, targets, data)


if __name__ == "__main__":
    main()
