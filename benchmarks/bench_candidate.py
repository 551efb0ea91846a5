"""Training a candidate of the demo from beginning to end, with fused operators and with stock torch.

Five networks of the demo's space within its budget, each with a recipe and a seed of its own, trained as
examples/demo.yaml says (Fashion-MNIST, 1000 images, 5 epochs, one thread), with `pynas.ops.use("fused")` and
"reference" in turn. Accuracy is that of the 1000 validation images, as the search takes it; the two kinds' differ as
those of two seeds would, and should not on average.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

import pynas
from pynas.nars.pool import make_pool
from pynas.nets.load import ModelSpec
from pynas.ops import using
from pynas.search.config import read_config
from pynas.train.candidate import train_candidate

SEEDS = 5
KINDS = ("fused", "reference")
DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


def payloads() -> list[dict[str, Any]]:
    config = read_config(DEMO)
    space = pynas.load_space(config.space)
    pool = make_pool(space, 256, budget=pynas.Budget.of(config.pool.budget), seed=1)
    return [
        {
            "model": ModelSpec.of(architecture).to_dict(),
            "recipe": recipe.to_dict(),
            "data": config.data.model_dump(mode="json"),
            "training": config.training.model_dump(),
            "epochs": config.training.epochs,
            "seed": seed,
            "test": False,
        }
        for seed, (architecture, recipe) in enumerate(map(space.decode, pool.genomes[:SEEDS]))
    ]


def main() -> None:
    options = harness.arguments(__doc__, rounds=SEEDS)
    around = harness.machine("torch")
    given = payloads()

    def case(kind: str) -> Callable[[int], Any]:
        def train(i: int) -> Any:
            with using(kind):  # type: ignore[arg-type]
                return train_candidate(given[i % SEEDS], lambda epoch: None)["accuracy"]

        return train

    runs = harness.measure({kind: case(kind) for kind in KINDS}, options.rounds)
    # A seed that comes again has the same accuracy again.
    accuracies = {kind: [float(answer) for answer in run.answers[:SEEDS]] for kind, run in runs.items()}
    differences = [a - b for a, b in zip(*accuracies.values(), strict=True)]
    half = 2.776 * statistics.stdev(differences) / len(differences) ** 0.5  # Student's t of 4 degrees of freedom
    mean = statistics.mean(differences)
    summaries = {kind: run.summary(runs["fused"]) for kind, run in runs.items()}
    gain = summaries["reference"]["ratio"]["median"]
    rows = [
        (
            kind,
            *(f"{summaries[kind]['seconds'][key]:.2f}" for key in ("median", "min", "max")),
            f"{summaries[kind]['ratio']['median']:.2f}",
            f"{100 * statistics.mean(accuracies[kind]):.2f}%",
        )
        for kind in KINDS
    ]
    rows.append(("difference", "", "", "", "", f"{100 * mean:+.2f} ± {100 * half:.2f}"))
    targets = [
        ("at least 1.5 times as fast as stock torch", f"{gain:.2f}", gain >= 1.5),
        (
            "accuracy no different (95% interval holds 0)",
            f"{100 * mean:+.2f} ± {100 * half:.2f}",
            abs(mean) <= half,
        ),
    ]
    data = {"results": summaries, "accuracies": accuracies}
    columns = ("a candidate, s", "median", "min", "max", "times fused", "accuracy")
    harness.report("candidate", options, around, columns, rows, targets, data)


if __name__ == "__main__":
    main()
