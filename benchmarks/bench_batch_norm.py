"""Batch-norm with what follows it, fused against torch's layers: forward and backward in training, channels_last.

Sizes are those of the demo's candidates (32 images) and of FBNetV3-B (8 images). `pynas.ops.rules.batch_norm` decides
which of the two is taken. Times: torch's layers over fused, round by round.

    python benchmarks/bench_batch_norm.py --results
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

from pynas.nets.attention import SqueezeExcite
from pynas.ops import rules, using
from pynas.ops.sequence import in_sequence, norm_and_add
from pynas.train.memory import keep_freed_memory

SHAPES = ((32, 48, 3), (32, 288, 3), (32, 240, 6), (32, 64, 12), (8, 360, 14), (8, 1248, 7), (8, 200, 28), (8, 96, 56))
TOLERANCE = 1e-4  # of the norm of x's gradient; torch's own variance is the less exact
LAST = torch.channels_last


def layers(channels: int, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    norm, act = nn.BatchNorm2d(channels), nn.Hardswish()
    attention = SqueezeExcite(channels, max(8, channels // 4), "hswish")
    residual, keep = torch.randn_like(x), torch.ones(len(x))
    return {
        "norm": lambda: norm_and_add(norm, x),
        "norm, stochastic depth, residual": lambda: norm_and_add(norm, x, residual, keep),
        "norm, hswish": lambda: in_sequence((norm, act), x),
        "norm, hswish, SE": lambda: in_sequence((norm, act, attention), x),
    }


def main() -> None:
    options = harness.arguments(__doc__, rounds=25)
    around = harness.machine("torch")
    keep_freed_memory()
    rows, results, targets = [], {}, []
    for n, channels, size in SHAPES:
        torch.manual_seed(0)
        x = torch.randn(n, channels, size, size).contiguous(memory_format=LAST).requires_grad_()
        gradient = torch.randn(n, channels, size, size).contiguous(memory_format=LAST)
        for name, layer in layers(channels, x).items():

            def case(kind: Any, layer: Callable[[], Tensor] = layer, x: Tensor = x, dy: Tensor = gradient) -> Any:
                def step(_: int) -> Tensor:
                    rules.MEASURED = False
                    with using(kind):
                        return torch.autograd.grad(layer(), x, dy)[0]

                return step

            cases = {"torch": case("reference"), "fused": case("fused")}
            ours, stock = (cases[kind](0) for kind in ("fused", "torch"))
            assert (ours - stock).norm() <= TOLERANCE * stock.norm()
            runs = harness.measure(cases, options.rounds)
            rules.MEASURED = True
            found = {"torch": runs["torch"].summary(runs["fused"]), "fused": runs["fused"].summary()}
            key = f"{n} x {channels} @{size}, {name}"
            results[key] = found
            times = found["torch"]["ratio"]["median"]
            taken = name.endswith("SE") or not rules.batch_norm(x.numel(), alone=name == "norm")
            milliseconds = [f"{1e3 * found[who]['seconds']['median']:.3f}" for who in found]
            rows.append((key, str(x.numel()), *milliseconds, f"{times:.2f}", "fused" if taken else "torch"))
            good = times >= 0.9 if taken else times <= 1.1
            targets.append((f"{key}: the faster is taken, or one as fast within a tenth", f"{times:.2f}", good))
    columns = ("what", "values", "torch ms", "fused ms", "times", "taken")
    harness.report("batch_norm", options, around, columns, rows, targets, {"cases": results})


if __name__ == "__main__":
    main()
