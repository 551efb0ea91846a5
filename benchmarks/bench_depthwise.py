"""The depthwise convolution against torch's, in channels_last: forward, grad-input, grad-weight; then a layer's step.

Shapes are those that seven blocks of FBNetV3 have after their expansion, 8 images. `stock` is torch's own convolution
and its backward; `ours` is the kernel, also where pynas.ops.rules leaves the part to torch. Times: `stock`
over `ours`, round by round. `step` is forward and both gradients through the public function.

    PYNAS_BENCH_THREADS=2 python benchmarks/bench_depthwise.py --results
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor

from pynas import ops
from pynas.ops import depthwise, rules
from pynas.ops.reference_depthwise import depthwise_conv2d as reference

IMAGES = 8
SHAPES = (
    (64, 112, 3, 1), (64, 112, 5, 2), (96, 56, 5, 1), (200, 28, 5, 1),
    (360, 14, 3, 1), (768, 14, 5, 1), (1248, 7, 5, 1),
)  # fmt: skip
"""Channels, height and width, kernel, stride."""

TARGET = 8.0  # grad-weight with kernels of 5, float32
BF16_SHAPES = SHAPES[3:]  # torch's bf16 takes seconds for larger maps
LAST = torch.channels_last
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the largest value; torch's own is the less exact


def repeated(function: Callable[[], Any], times: int) -> Callable[[int], None]:
    def case(_: int) -> None:
        for _ in range(times):
            function()

    return case


def parts(x: Tensor, weight: Tensor, dy: Tensor, stride: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By part: torch's, ours."""
    channels, kernel = x.shape[1], weight.shape[2]
    padding = kernel // 2
    numbers = (stride, stride, padding, padding)

    def stock(*wanted: bool) -> Callable[[], Tensor]:
        mask = [*wanted, False]
        return lambda: torch.ops.aten.convolution_backward(
            dy, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels, mask
        )[mask.index(True)]

    def step(convolution: Callable[..., Tensor]) -> Callable[[], Any]:
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight)]
        return lambda: torch.autograd.grad(convolution(*leaves, (stride,) * 2, (padding,) * 2), leaves, dy)[1]

    ours = torch.ops.pynas
    return {
        "forward": (
            lambda: reference(x, weight, (stride,) * 2, (padding,) * 2),
            lambda: ours.depthwise_forward(x, weight, *numbers),
        ),
        "grad-input": (
            stock(True, False),
            lambda: ours.depthwise_grad_input(dy, weight, *x.shape[2:], *numbers),
        ),
        "grad-weight": (
            stock(False, True),
            lambda: ours.depthwise_grad_weight(dy, x, kernel, kernel, *numbers),
        ),
        "step": (step(reference), step(depthwise.depthwise_conv2d)),
    }


def main() -> None:
    options = harness.arguments(__doc__, rounds=9)
    ops.use("fused")
    around = harness.machine("torch")
    rows, results, targets = [], {}, []
    for dtype, shapes in ((torch.float32, SHAPES), (torch.bfloat16, BF16_SHAPES)):
        for channels, size, kernel, stride in shapes:
            torch.manual_seed(0)
            x = torch.randn(IMAGES, channels, size, size).to(dtype).contiguous(memory_format=LAST)
            weight = torch.randn(channels, 1, kernel, kernel).to(dtype)
            dy = torch.randn_like(reference(x, weight, (stride,) * 2, (kernel // 2,) * 2))
            for part, (stock, ours) in parts(x, weight, dy.contiguous(memory_format=LAST), stride).items():
                expected = stock()
                torch.testing.assert_close(
                    ours(), expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max())
                )
                cases = {"stock": repeated(stock, 1), "ours": repeated(ours, 1)}
                runs = harness.measure(cases, options.rounds if dtype == torch.float32 else min(options.rounds, 5))
                name = f"{channels}@{size} k{kernel} s{stride}"
                found = {"stock": runs["stock"].summary(runs["ours"]), "ours": runs["ours"].summary()}
                key = f"{str(dtype)[6:]} {name} {part}"
                results[key] = found
                times = found["stock"]["ratio"]["median"]
                milliseconds = [
                    f"{1e3 * found[who]['seconds'][what]:.2f}" for who in found for what in ("median", "min")
                ]
                rows.append((key, *milliseconds, f"{times:.2f}"))
                print(*rows[-1], file=sys.stderr, flush=True)
                if part == "grad-weight" and kernel == 5 and dtype == torch.float32:
                    targets.append((f"{key}: {TARGET:.0f} times as fast", f"{times:.1f}", times >= TARGET))
                taken = rules.depthwise_forward(dtype)
                if part in ("forward", "grad-input") and not taken:
                    targets.append((f"{key}: faster than torch, which is not taken", f"{times:.1f}", times >= 1))
    columns = ("what", "stock ms", "min", "ours ms", "min", "times")
    harness.report("depthwise", options, around, columns, rows, targets, {"images": IMAGES, "cases": results})


if __name__ == "__main__":
    main()
