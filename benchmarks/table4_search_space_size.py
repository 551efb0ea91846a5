"""Table 4: fixed against adaptive sampling in a small and in a large space, on Fashion-MNIST.

fbnetv2_f_28 has 7e11 architectures (27.3 nats), fbnetv2_f_fine_28, in which every block has a choice of its own,
1.2e18 (41.6 nats). K = 14 is the same in both, lambda is too: 0.54, which starts the small one from 14, as the paper's
1/4 does there, and the large one from 22 (the paper's from 25). Distributions are joint. With the same `--dir` the
small space's runs are those of table5_sampling.py, where settings are explained; random architectures are the small
space's.
"""

from __future__ import annotations

from typing import Any

import harness
import supernets
import trainings
from supernets import SAME_START, Equal, Trend
from trainings import Claim, Results

SMALL, LARGE = "fbnetv2_f_28", "fbnetv2_f_fine_28"
NAMES = ("K = 14, joint", f"lambda = {SAME_START}, joint")
SETTINGS = (supernets.FIXED, supernets.adaptive(SAME_START, "joint"))
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (SMALL, own) for name, own in zip(NAMES, SETTINGS, strict=True)},
    **{f"fine: {name}": (LARGE, own) for name, own in zip(NAMES, SETTINGS, strict=True)},
}
PAPER = [
    ("paper: FBNetV2-F, K = 14", "", "", "", "", "", "56", "68.3", ""),
    ("paper: FBNetV2-F, lambda = 0.25", "", "", "", "", "", "58", "68.6", ""),
    ("paper: FBNetV2-F-Fine, K = 14", "", "", "", "", "", "50", "66.3", ""),
    ("paper: FBNetV2-F-Fine, lambda = 0.25", "", "", "", "", "", "51", "67.2", ""),
]


def evaluate(told: Results) -> tuple[list[tuple[str, ...]], list[Claim]]:
    """The rows of the table and what the paper says of it."""
    trend = Trend.of(told)
    rows = [*PAPER, *(supernets.row(told, trend, name) for name in ARMS), *supernets.random_rows(told)]
    fixed, adaptive, large_fixed, large_adaptive = ARMS
    small = trend.beyond(told, adaptive) - trend.beyond(told, fixed)
    large = trend.beyond(told, large_adaptive) - trend.beyond(told, large_fixed)
    claims = [
        Equal("accuracy of adaptive less fixed in the small space, at equal FLOPs", 0.0, small),
        Claim("accuracy of adaptive less fixed in the large space, at equal FLOPs", 0.9, large),
        Claim("that less the same in the small space", 0.6, large - small),
    ]
    return rows, claims


def main() -> None:
    options = trainings.arguments(__doc__, 4)
    around = harness.machine("torch", "scipy")
    found, planned, trained = supernets.run(ARMS, options)
    told = supernets.tell(planned, found, trained)
    rows, claims = evaluate(told)
    settings = supernets.settings(ARMS, planned)
    trainings.report("table4_search_space_size", options, around, supernets.COLUMNS, rows, claims, told, settings)


if __name__ == "__main__":
    main()
