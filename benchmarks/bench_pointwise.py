"""The 1x1 convolution as a matrix product, against oneDNN's convolution, channels_last: forward alone (inference), and
with both gradients (training).

Shapes are those of the demo's candidates (32 images) and of FBNetV3-B (8 images), from few pixels to many, where
`pynas.ops.rules.pointwise` says what is taken. Times: convolution over product, round by round. Of processors with
AVX-512, which the rule tells apart, the results are pointwise_avx512.json.

    PYNAS_BENCH_THREADS=2 python benchmarks/bench_pointwise.py --results
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional

from pynas.ops import rules
from pynas.ops.pointwise import pointwise_conv2d
from pynas.train.memory import keep_freed_memory

SHAPES = (  # images, channels, maps, height and width
    (32, 336, 256, 1), (32, 288, 48, 3), (32, 48, 288, 3), (8, 208, 1248, 7), (8, 1248, 208, 7), (32, 64, 40, 6),
    (32, 40, 240, 6), (8, 72, 360, 14), (8, 768, 128, 14), (32, 16, 64, 12), (8, 40, 200, 28), (8, 200, 40, 28),
    (8, 24, 96, 56), (8, 96, 24, 56), (8, 16, 64, 112),
)  # fmt: skip
TOLERANCE = 1e-5  # of a gradient's norm


def product(x: Tensor, weight: Tensor) -> Tensor:
    """As `pointwise_conv2d`, for any number of pixels."""
    return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)


def without_gradients(convolve: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        return convolve(x, weight)


def main() -> None:
    options = harness.arguments(__doc__, rounds=15)
    around = harness.machine("torch")
    keep_freed_memory()
    rows, results, targets = [], {}, []
    for n, channels, maps, size in SHAPES:
        torch.manual_seed(0)
        x = torch.randn(n, channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(maps, channels, 1, 1).requires_grad_()
        dy = torch.randn(n, maps, size, size).contiguous(memory_format=torch.channels_last)

        def train(convolve: Callable[..., Tensor], x: Tensor = x, weight: Tensor = weight, dy: Tensor = dy) -> Any:
            return lambda _: torch.autograd.grad(convolve(x, weight), (x, weight), dy)

        def infer(convolve: Callable[..., Tensor], x: Tensor = x, weight: Tensor = weight) -> Any:
            return lambda _: (without_gradients(convolve, x, weight),)

        pixels = n * size * size
        taken = not rules.pointwise(pixels, pixels * channels * maps)
        assert taken == ("Permute" in type(pointwise_conv2d(x, weight).grad_fn).__name__)
        for mode, case in (("training", train), ("inference", infer)):
            cases = {"convolution": case(functional.conv2d), "product": case(product)}
            for ours, stock in zip(cases["product"](0), cases["convolution"](0), strict=True):
                assert (ours - stock).norm() <= TOLERANCE * stock.norm()
            runs = harness.measure(cases, options.rounds)
            found = {"convolution": runs["convolution"].summary(runs["product"]), "product": runs["product"].summary()}
            name = f"{n} x {channels} to {maps} @{size}, {mode}"
            results[name] = found
            times = found["convolution"]["ratio"]["median"]
            milliseconds = [f"{1e3 * found[who]['seconds']['median']:.2f}" for who in found]
            rows.append((name, str(pixels), *milliseconds, f"{times:.2f}", "product" if taken else "convolution"))
            good = times >= 0.9 if taken else times <= 1.1
            targets.append((f"{name}: the faster one is taken, or one as fast within a tenth", f"{times:.2f}", good))
    columns = ("what", "pixels", "convolution ms", "product ms", "times", "taken")
    harness.report(
        "pointwise_avx512" if rules.AVX512 else "pointwise", options, around, columns, rows, targets, {"cases": results}
    )


if __name__ == "__main__":
    main()
