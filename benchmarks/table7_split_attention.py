"""Table 7 of FP-NAS: searched Split-Attention against the same number of splits everywhere, on Fashion-MNIST.

FP-NAS searches fbnetv2_f_28, whose rows have squeeze-and-excite or nothing, and fbnetv2_fpp_28, whose rows have 0, 1, 2
or 4 splits, with the same bound on FLOPs and the same settings. In the network found in the first, every
squeeze-and-excite is replaced by Split-Attention of 2 and of 4 splits (section 5.5), which costs FLOPs that no search
has bounded. All four are trained from scratch alike. The paper's numbers are those of its smallest networks, S1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness
import numpy as np
import search_settings
import trainings
from search_settings import FLOPS, SPACE
from supernets import Search, from_scratch, search_all
from trainings import Claim, Difference, Results, Training, accuracy, by_seed

from pynas.nets.load import ModelSpec
from pynas.space.architecture import Architecture

SEARCHED = {"FP-NAS": SPACE, "FP-NAS++": "fbnetv2_fpp_28"}
UNIFORM = {"2 splits": 2, "4 splits": 4}
PAPER = {"FP-NAS": (58, 68.6), "2 splits": (65, 69.3), "4 splits": (79, 69.5), "FP-NAS++": (66, 70.0)}  # MFLOPs, %


def uniform(architecture: Architecture, splits: int) -> Architecture:
    """Every squeeze-and-excite replaced by Split-Attention."""
    rows = [replace(row, se=splits) if row.block == "mbconv" and row.se is True else row for row in architecture.rows]
    return replace(architecture, rows=tuple(rows))


def plan(found: Results, seeds: int, quick: bool) -> list[Training]:
    """The four trainings of every seed."""
    planned = []
    for seed in range(seeds):
        recipe, data = search_settings.final(seed, quick)
        first, other = (
            from_scratch(arm, seed, space, found[arm, seed]["genome"], recipe, data) for arm, space in SEARCHED.items()
        )
        planned.append(first)
        architecture = ModelSpec.from_dict(first.model).architecture
        assert architecture is not None
        for arm, splits in UNIFORM.items():
            spec = ModelSpec.of(uniform(architecture, splits), name=f"{SPACE} with {arm}")
            planned.append(Training(arm, seed, spec.to_dict(), recipe, data))
        planned.append(other)
    return planned


def attention(model: dict[str, Any]) -> str:
    """The splits of a network's MBConv rows from the input on; - stands for a row that is left out."""
    architecture = ModelSpec.from_dict(model).architecture
    assert architecture is not None
    rows = [row for row in architecture.rows if row.block == "mbconv"]
    return "".join("-" if row.k == (0, 0) else str(int(row.se)) for row in rows)


def evaluate(planned: list[Training], results: Results, seeds: int) -> tuple[list[tuple[str, ...]], list[Claim]]:
    """The rows of the table and what the paper says of it."""
    cells = by_seed(results, seeds, lambda result: result["test_accuracy"])
    rows: list[tuple[str, ...]] = []
    for arm, (flops, top1) in PAPER.items():
        over = "" if arm == "FP-NAS" else f"{top1 - PAPER['FP-NAS'][1]:+.1f}"
        rows.append((f"paper: {arm}", f"{flops}M", "", f"{top1:.1f}", over, ""))
    for arm in PAPER:
        models = [training.model for training in planned if training.cell == arm]
        costs = [ModelSpec.from_dict(model).architecture.cost() for model in models]  # type: ignore[union-attr]
        counts = [f"{np.mean([cost[key] for cost in costs]) / 1e3:.0f}k" for key in ("flops", "params")]
        over = "" if arm == "FP-NAS" else str(Difference.of(cells[arm], cells["FP-NAS"]))
        rows.append((f"here: {arm}", *counts, accuracy(cells[arm]), over, " ".join(map(attention, models))))
    claims = []
    for arm, than in (
        ("2 splits", "FP-NAS"),
        ("4 splits", "FP-NAS"),
        ("FP-NAS++", "FP-NAS"),
        ("FP-NAS++", "2 splits"),
        ("FP-NAS++", "4 splits"),
    ):
        points = PAPER[arm][1] - PAPER[than][1]
        claims.append(Claim(f"{arm} over {than}", points, Difference.of(cells[arm], cells[than])))
    return rows, claims


def main() -> None:
    options = trainings.arguments(__doc__, 4)
    around = harness.machine("torch", "scipy")
    supernet = search_settings.supernet(options.quick)
    searches = [
        Search(arm, seed, space, {"flops": FLOPS}, supernet, search_settings.images(seed, options.quick))
        for seed in range(options.seeds)
        for arm, space in SEARCHED.items()
    ]
    found = search_all(searches, options)
    planned = plan(found, options.seeds, options.quick)
    results = trainings.train_all(planned, options)
    rows, claims = evaluate(planned, results, options.seeds)
    settings = search_settings.told(options.quick)
    for arm in SEARCHED:
        runs = [found[arm, seed] for seed in range(options.seeds)]
        settings[f"searches, {arm}"] = [
            f"{run['samples']} samples, entropy {run['history'][0]['entropy']:.1f} to {run['entropy']:.1f}, "
            f"{run['costs']['flops']} FLOPs, {run['cpu_seconds']} s of the processor"
            for run in runs
        ]
    columns = ("", "FLOPs", "params", "test accuracy", "over FP-NAS", "splits by row, seed by seed")
    trainings.report("table7_split_attention", options, around, columns, rows, claims, results, settings)


if __name__ == "__main__":
    main()
