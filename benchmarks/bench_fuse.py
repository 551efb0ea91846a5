"""Networks of timm and torchvision, as they are and after `pynas.ops.fuse`: a training step and inference on this CPU.

8 images of 224 pixels (4 for training), float32, channels_last; training is forward and backward in training mode, in
a process that keeps its freed memory, as pynas's trainings do. Before anything is timed, the outputs and gradients of
both are compared with those of the same network in float64.

Wants timm and torchvision: pip install --no-deps timm==1.0.31 torchvision==0.28.0.
"""

from __future__ import annotations

import copy
import math
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("PYNAS_BENCH_THREADS", "2")

import harness
import torch
from torch import Tensor, nn

from pynas.ops import fuse
from pynas.train.memory import keep_freed_memory

LAST = torch.channels_last
NETWORKS = ("timm efficientnet_b0", "timm mobilenetv3_large_100", "timm fbnetv3_b")
NETWORKS += ("torchvision mobilenet_v2", "torchvision mobilenet_v3_large")
IMAGES = {"training": 4, "inference": 8}
WORST, FLOOR = 2.0, 1e-5  # times the network's own error against float64, and of what is compared
KINDS = ("as it is", "fused")


def make(name: str) -> nn.Module:
    import timm
    import torchvision

    torch.manual_seed(0)
    source, _, kind = name.partition(" ")
    made = timm.create_model(kind) if source == "timm" else getattr(torchvision.models, kind)(dropout=0.0)
    return made.to(memory_format=LAST)


def step(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.train().zero_grad()
    torch.manual_seed(1)
    y = network(x)
    y.square().mean().backward()
    return [y.detach(), *(value.grad for value in network.parameters() if value.grad is not None)]


def infer(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [network.eval()(x)]


WORKS: dict[str, Callable[[nn.Module, Tensor], list[Tensor]]] = {"training": step, "inference": infer}


def errors(networks: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """The largest relative error of each against float64, of output and gradients, on two small images."""
    small = x[:2, :, :96, :96].contiguous(memory_format=LAST)
    found = {}
    exact = [work(copy.deepcopy(networks[KINDS[0]]).double(), small.double()) for work in WORKS.values()]
    for kind, network in networks.items():
        mine = [work(copy.deepcopy(network), small) for work in WORKS.values()]
        pairs = [(a, b) for one, other in zip(mine, exact, strict=True) for a, b in zip(one, other, strict=True)]
        # Together: a gradient that is zero but for rounding has no relative error of its own.
        off, size = (math.sqrt(sum(v.square().sum().item() for v in values)) for values in split(pairs))
        found[kind] = off / size
    assert found["fused"] <= WORST * found[KINDS[0]] + FLOOR, found
    return found


def split(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [a.double() - b for a, b in pairs], [b for _, b in pairs]


def main() -> None:
    options = harness.arguments(__doc__, rounds=9)
    keep_freed_memory()
    torch.set_num_threads(harness.THREADS)
    library = torch.library.Library("torchvision", "DEF")  # its operators are CUDA's, its networks need their names
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor d, Tensor s, float t) -> Tensor")
    around = harness.machine("torch", "timm", "torchvision")
    rows, told, ratios = [], [], {mode: [] for mode in WORKS}
    for name in NETWORKS:
        network = make(name)
        networks = {KINDS[0]: network, "fused": copy.deepcopy(network)}
        done = fuse(networks["fused"])
        x = torch.randn(IMAGES["inference"], 3, 224, 224, generator=torch.Generator().manual_seed(2))
        x = x.contiguous(memory_format=LAST)
        off = errors(networks, x)
        for mode, work in WORKS.items():
            given = x[: IMAGES[mode]].contiguous(memory_format=LAST)
            cases = {kind: (lambda _, n=one, w=work, g=given: w(n, g) and None) for kind, one in networks.items()}
            runs = harness.measure(cases, options.rounds)
            plain = runs[KINDS[0]].summary(than=runs["fused"])
            fused = runs["fused"].summary()
            ratio = plain["ratio"]
            ratios[mode].append(ratio["median"])
            milliseconds = [f"{1e3 * one['seconds']['median']:.0f}" for one in (plain, fused)]
            spread = f"{ratio['median']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}"
            rows.append([f"{name}, {mode}", len(done.replaced), *milliseconds, *spread])
            told.append({"network": name, "mode": mode, "blocks": len(done.replaced), "errors": off})
            told[-1] |= {KINDS[0]: plain, "fused": fused}
    targets: list[Any] = []
    for mode, values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        targets.append((f"{mode}, times as fast as the network as it is, geometric mean", f"{mean:.2f}", mean > 1.0))
    columns = ("network", "blocks fused", "as it is ms", "fused ms", "times as fast", "least to most")
    harness.report("fuse", options, around, columns, rows, targets, {"networks": told})


if __name__ == "__main__":
    main()
