"""Short trainings on Fashion-MNIST with whole blocks by the fused plan and with layers one by one: the same curves?

Two networks of the demo's space, each with its recipe, trained as examples/demo.yaml says (1000 images) for 10 epochs
with each seed: once with every block computed whole by `pynas.ops.mbconv`, y1 stored or made anew as its shape says,
once by `pynas.ops.use("reference")`. Weights, data and draws are the same; the arithmetic is not, so curves of one seed
part as those of two seeds would. Accuracies are of the 1000 validation images after each epoch.

On a GPU whole blocks are the CUDA kernels; `--device cpu` has their steps in plain torch, which shows the plan's
gradients and statistics in training, not the kernels.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import harness
import torch
from bench_candidate import payloads
from scipy.stats import t

from pynas.ops import mbconv_choice, reference_mbconv, using
from pynas.train.candidate import train_candidate

NETWORKS, EPOCHS = 2, 10
KINDS = ("whole blocks", "layers")


def curve(payload: dict[str, Any], kind: str, device: str) -> tuple[list[float], int]:
    """Accuracy after each epoch, and how many blocks were computed whole."""
    blocks = 0
    before = mbconv_choice.steps_for

    def steps_for(x: torch.Tensor) -> Any:
        nonlocal blocks
        found = before(x) if device == "cuda" else reference_mbconv
        blocks += found is not None
        return found

    if kind == "layers":
        with using("reference"):
            return train_candidate(payload, lambda _: None)["curve"], 0
    mbconv_choice.steps_for = steps_for
    try:
        return train_candidate(payload, lambda _: None)["curve"], blocks
    finally:
        mbconv_choice.steps_for = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seeds", type=harness.at_least(2), default=6)
    parser.add_argument("--json", type=harness.writable, metavar="FILE")
    parser.add_argument("--results", action="store_true", help="also to benchmarks/results/curve_mbconv.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; allowed: --device cpu")
    around = harness.machine("torch")
    rows, told, targets = [], [], []
    for number, given in enumerate(payloads()[:NETWORKS]):
        given["training"] |= {"epochs": EPOCHS, "device": options.device}
        given["epochs"] = EPOCHS
        curves: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for seed in range(options.seeds):
            for kind in KINDS:
                found, blocks = curve(given | {"seed": seed}, kind, options.device)
                assert kind == "layers" or blocks > 0
                curves[kind].append(found)
        for epoch in range(EPOCHS):
            whole, layers = ([one[epoch] for one in curves[kind]] for kind in KINDS)
            differences = [a - b for a, b in zip(whole, layers, strict=True)]
            of_t = float(t.ppf(0.975, len(differences) - 1))
            half = of_t * statistics.stdev(differences) / len(differences) ** 0.5
            mean = statistics.mean(differences)
            cells = [f"{100 * statistics.mean(v):.2f} ± {100 * statistics.stdev(v):.2f}" for v in (whole, layers)]
            rows.append([f"network {number}, epoch {epoch + 1}", *cells, f"{100 * mean:+.2f} ± {100 * half:.2f}"])
        spread = statistics.stdev([one[-1] for one in curves["layers"]])
        what = f"network {number}: the last accuracies' 95% interval holds 0, or they differ by less than two seeds'"
        targets.append((what, f"{100 * mean:+.2f} against {100 * spread:.2f}", abs(mean) <= max(half, spread)))
        told.append({"network": number, "curves": curves})
    columns = ("%", *KINDS, "difference (95%)")
    data = {"device": options.device, "seeds": options.seeds, "networks": told}
    harness.report("curve_mbconv", options, around, columns, rows, targets, data)


if __name__ == "__main__":
    main()
