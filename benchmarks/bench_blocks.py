"""Fused operators against stock torch: MBConv with squeeze-and-excite, and FBNetV3-B, on this machine's CPU.

The seven blocks of FBNetV3 that hold most of its bytes, 8 images, channels_last: a training step is forward and
backward in training mode. FBNetV3-B at its resolution of 248, 4 images: a training step, and inference, for which the
fused network is `pynas.nets.inference.folded`. It is `pynas.ops.use("fused")` against "reference", which calls torch's
own layers one by one in eager mode, in a process that keeps its freed memory, as trainings do. Before anything is timed
the outputs and gradients of both are compared with those of the same network in float64.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("PYNAS_BENCH_THREADS", "2")

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional

from pynas.nets.blocks import MBConv
from pynas.nets.inference import folded
from pynas.nets.load import read_model
from pynas.ops import using
from pynas.space.architecture import Block
from pynas.train.memory import keep_freed_memory

KINDS = ("fused", "reference")
LAST = torch.channels_last
IMAGES, NETWORK_IMAGES = 8, 4
SHAPES = (  # in, out, size, stride, expansion, kernel
    (16, 16, 112, 1, 4, 3),
    (16, 24, 112, 2, 4, 5),
    (24, 24, 56, 1, 4, 5),
    (40, 40, 28, 1, 5, 5),
    (72, 72, 14, 1, 5, 3),
    (128, 128, 14, 1, 6, 5),
    (208, 208, 7, 1, 6, 5),
)
WORST = 2.0  # times the reference's own error against float64
FLOOR = 1e-6  # of what is compared, below which errors are rounding


def block(channels: int, out: int, size: int, stride: int, expansion: int, kernel: int) -> MBConv:
    mid = channels * expansion
    hidden = max(8, (mid // 4 + 4) // 8 * 8)
    described = Block(
        0,
        "mbconv",
        kernel,
        stride,
        kernel // 2,
        channels,
        mid,
        out,
        hidden,
        "hswish",
        size,
        size // stride,
        0,
        0,
        0,
        0,
        1,
    )
    torch.manual_seed(0)
    return MBConv(described).to(memory_format=LAST)


def step(network: nn.Module, x: Tensor, gradient: Tensor) -> Tensor:
    for parameter in network.parameters():
        parameter.grad = None
    x.grad = None
    y = network(x)
    y.backward(gradient)
    return y


def checked(network: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, float]:
    """The largest error of output and gradients against float64, as a share of the largest value, by kind."""

    def answers(kind: str, dtype: torch.dtype) -> list[Tensor]:
        one, given = copy.deepcopy(network).to(dtype), x.detach().to(dtype).requires_grad_()
        with using(kind):  # type: ignore[arg-type]
            y = step(one, given, gradient.to(dtype))
        assert given.grad is not None
        found = [y.detach(), given.grad, *(p.grad for p in one.parameters() if p.grad is not None)]
        return [tensor.double() for tensor in found]

    exact = answers("reference", torch.float64)
    errors = {
        kind: max(
            ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
            for a, b in zip(answers(kind, torch.float32), exact, strict=True)
        )
        for kind in KINDS
    }
    assert errors["fused"] <= max(WORST * errors["reference"], FLOOR), errors
    return errors


def cases(run: Callable[[], Any]) -> dict[str, Callable[[int], None]]:
    def case(kind: str) -> Callable[[int], None]:
        def timed(_: int) -> None:
            with using(kind):  # type: ignore[arg-type]
                run()

        return timed

    return {kind: case(kind) for kind in KINDS}


def main() -> None:
    options = harness.arguments(__doc__, rounds=15)
    around = harness.machine("torch")
    keep_freed_memory()
    rows: list[tuple[Any, ...]] = []
    results: dict[str, Any] = {}

    def record(name: str, runs: dict[str, harness.Runs], errors: dict[str, float]) -> float:
        summaries = {kind: run.summary(runs["fused"]) for kind, run in runs.items()}
        gain = summaries["reference"]["ratio"]["median"]
        results[name] = {**summaries, "errors": errors}
        rows.append(
            (
                name,
                *(f"{1e3 * summaries[kind]['seconds']['median']:.1f}" for kind in KINDS),
                f"{gain:.2f}",
                f"{summaries['reference']['ratio']['min']:.2f} to {summaries['reference']['ratio']['max']:.2f}",
                *(f"{errors[kind]:.0e}" for kind in KINDS),
            )
        )
        return gain

    gains = []
    for shape in SHAPES:
        channels, out, size, stride, expansion, kernel = shape
        network = block(*shape)
        x = torch.randn(IMAGES, channels, size, size).contiguous(memory_format=LAST).requires_grad_()
        gradient = torch.randn(IMAGES, out, size // stride, size // stride).contiguous(memory_format=LAST)
        errors = checked(network, x, gradient)
        name = f"{channels}@{size}{f' -> {out} s{stride}' if stride > 1 else ''} e{expansion} k{kernel}"
        runs = harness.measure(cases(lambda n=network, x=x, g=gradient: step(n, x, g)), options.rounds)  # type: ignore[misc]
        gains.append(record(name, runs, errors))
    mean = math.exp(sum(map(math.log, gains)) / len(gains))

    network = read_model("fbnetv3_b").build().to(memory_format=LAST)
    size = 248
    images = torch.randn(NETWORK_IMAGES, 3, size, size).contiguous(memory_format=LAST)
    labels = torch.randint(0, 1000, (NETWORK_IMAGES,))

    def train() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        functional.cross_entropy(network(images), labels).backward()

    whole = record(
        "FBNetV3-B, training step", harness.measure(cases(train), options.rounds), _logits_errors(network, images)
    )
    network.eval()

    networks = {"fused": folded(network), "reference": network}

    def infer(kind: str) -> Callable[[int], None]:
        def timed(_: int) -> None:
            with using(kind), torch.no_grad():  # type: ignore[arg-type]
                networks[kind](images)

        return timed

    inferring = harness.measure({kind: infer(kind) for kind in KINDS}, options.rounds)
    inferred = record("FBNetV3-B, inference", inferring, _logits_errors(network, images, folded))
    targets = [
        ("blocks, geometric mean at least 2 times stock torch", f"{mean:.2f}", mean >= 2.0),
        ("FBNetV3-B training step at least 1.7 times", f"{whole:.2f}", whole >= 1.7),
        ("FBNetV3-B inference at least 1.4 times", f"{inferred:.2f}", inferred >= 1.4),
    ]
    columns = ("ms", "fused", "stock torch", "times as fast", "least to most", "error", "stock's error")
    harness.report("blocks", options, around, columns, rows, targets, {"results": results, "geometric_mean": mean})


def _logits_errors(
    network: nn.Module, images: Tensor, fuse: Callable[[nn.Module], nn.Module] = nn.Module.float
) -> dict[str, float]:
    def logits(kind: str, dtype: torch.dtype) -> Tensor:
        one = copy.deepcopy(network).to(dtype)
        with using(kind), torch.no_grad():  # type: ignore[arg-type]
            return (fuse(one) if kind == "fused" else one)(images.to(dtype)).double()

    exact = logits("reference", torch.float64)
    errors = {kind: ((logits(kind, torch.float32) - exact).norm() / exact.norm()).item() for kind in KINDS}
    assert errors["fused"] <= max(WORST * errors["reference"], FLOOR), errors
    return errors


if __name__ == "__main__":
    main()
