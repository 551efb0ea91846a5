"""The GPU's fused MBConv blocks, training, beside torch's eager channels_last and torch.compile(mode="max-autotune").

The seven blocks of bench_blocks.py, 256 images, bfloat16 under autocast for the peers: forward and backward, by CUDA
events, in interleaved rounds, with and without CUDA graphs; then bytes saved for backward, and what each step moves a
second as a share of a device-to-device copy measured in the same run. Before anything is timed, outputs and gradients
are compared with those of the same block in float64.

`--device cpu --images 2` runs the plan in plain torch, to see that this script works: its times say nothing.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from bench_blocks import LAST, SHAPES, block
from torch import Tensor, nn

from pynas.nets.attention import SqueezeExcite
from pynas.nets.blocks import MBConv
from pynas.ops import library, mbconv_kernels, reference_mbconv, using
from pynas.ops.gate import GateLayers
from pynas.ops.mbconv import MBConvLayers, mbconv

PEERS = ("eager", "compiled")
WORST, FLOOR = 2.0, 4e-3  # times eager's own error, and what one rounding to bfloat16 makes


def layers_of(network: MBConv) -> MBConvLayers:
    expand, norm1, _, depthwise, norm2, _, gate, project = network.branch
    assert isinstance(gate, SqueezeExcite)
    found: Any = (
        expand,
        norm1,
        depthwise,
        norm2,
        GateLayers(gate.reduce, "hswish", gate.expand),
        project,
        network.norm,
    )
    return MBConvLayers(*found, act="hswish")


class Fused(nn.Module):
    def __init__(self, network: MBConv, steps: Any) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, x: Tensor) -> Tensor:
        return mbconv(x, layers_of(self.network), self.network.residual, steps=self.steps)


def step(network: nn.Module, x: Tensor, gradient: Tensor, autocast: bool) -> list[Tensor]:
    """Output, then gradients of x and of the parameters."""
    for value in (x, *network.parameters()):
        value.grad = None
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast), using("reference"):
        y = network(x)
    y.backward(gradient)
    return [y, *(value.grad for value in (x, *network.parameters()) if value.grad is not None)]


def errors(network: MBConv, fused: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, float]:
    """The largest relative error against float64, on a few images."""
    few, some = x[:8].detach().requires_grad_(), gradient[:8]
    exact = step(copy.deepcopy(network).double(), few.detach().double().requires_grad_(), some.double(), False)
    found = {"eager": step(network, few, some, True), "fused": step(fused, few, some, False)}
    relative = {
        name: max(
            ((a.double() - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in zip(values, exact, strict=True)
        )
        for name, values in found.items()
    }
    assert relative["fused"] <= WORST * relative["eager"] + FLOOR, relative
    return relative


def graphed(work: Callable[[], Any]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(works: dict[str, Callable[[], Any]], rounds: int, cuda: bool) -> dict[str, float]:
    """Medians over interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(3):
        for work in works.values():
            work()
    for _ in range(rounds):
        for name, work in works.items():
            if not cuda:
                (runs,) = harness.measure({name: lambda _, work=work: work()}, 1).values()
                found[name].append(runs.wall[0])
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            found[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in found.items()}


def saved_bytes(network: nn.Module, x: Tensor, autocast: bool) -> int:
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
    with hooks, torch.autocast(x.device.type, torch.bfloat16, enabled=autocast), using("reference"):
        network(x)
    return sum(size for pointer, size in kept.items() if pointer not in own)


def copy_rate(device: str) -> float:
    """Bytes a second of a device-to-device copy, read and written ones counted."""
    given = torch.empty(1 << (30 if device == "cuda" else 26), dtype=torch.uint8, device=device)
    taken = torch.empty_like(given)
    return 2 * given.numel() / seconds({"copy": lambda: taken.copy_(given)}, 9, device == "cuda")["copy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--results", action="store_true", help="also to benchmarks/results/mbconv.json")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if cuda and not (torch.cuda.is_available() and library.available() and torch.ops.pynas.has_cuda()):
        print("bench_mbconv: no GPU here, or a library without CUDA kernels", file=sys.stderr)
        raise SystemExit(2)
    around = harness.machine("torch") | {"gpu": torch.cuda.get_device_name() if cuda else None}
    rate = copy_rate(options.device)
    rows, told, ratios = [], [], []
    for shape in SHAPES:
        channels, out, size, stride, expansion, _ = shape
        network = block(*shape).to(options.device).train()
        fused = Fused(network, mbconv_kernels if cuda else reference_mbconv)
        made = torch.randn(options.images, channels, size, size, device=options.device, dtype=torch.bfloat16)
        x = made.contiguous(memory_format=LAST).requires_grad_()
        gradient = torch.randn(options.images, out, size // stride, size // stride, device=options.device).bfloat16()
        gradient = gradient.contiguous(memory_format=LAST)
        found = errors(network, fused, x, gradient)
        works: dict[str, Callable[[], Any]] = {"eager": lambda: step(network, x, gradient, True)}  # noqa: B023
        if cuda:
            compiled: Any = torch.compile(network, mode="max-autotune-no-cudagraphs")
            works["compiled"] = lambda: step(compiled, x, gradient, True)  # noqa: B023
        works["fused"] = lambda: step(fused, x, gradient, False)  # noqa: B023
        took = seconds(works, options.rounds, cuda)
        replayed = seconds({k: graphed(w) for k, w in works.items()}, options.rounds, True) if cuda else {}
        saved = {"eager": saved_bytes(network, x, True), "fused": saved_bytes(fused, x, False)}
        # The byte model of the plan, of X, H, D and O numbers of 2 bytes: 4 X + 6 H + 7 D + 8 O.
        pixels = options.images * size * size
        made_of = (4 * channels + 6 * channels * expansion) * pixels
        made_of += (7 * channels * expansion + 8 * out) * pixels // stride**2
        share = 2 * made_of / took["fused"] / rate
        name = f"{channels}->{out}@{size} e{expansion} k{shape[5]} s{stride}"
        cells = [f"{1e3 * took[peer]:.3f}" if peer in took else "" for peer in (*PEERS, "fused")]
        cells += [f"{1e3 * replayed[peer]:.3f}" if replayed else "" for peer in ("compiled", "fused")]
        rows.append([name, *cells, f"{saved['eager'] / saved['fused']:.1f}", f"{100 * share:.0f}%"])
        told.append({"shape": shape, "seconds": took, "graphs": replayed, "saved": saved, "errors": found})
        ratios.append({peer: took[peer] / took["fused"] for peer in PEERS if peer in took})
        ratios[-1]["saved"] = saved["eager"] / saved["fused"]
        print("  ".join(rows[-1]), file=sys.stderr)
    targets = []
    wants = {"eager": ("times of eager", 2.5), "compiled": ("times of compiled", 1.7), "saved": ("bytes saved", 3.0)}
    for name, (what, wanted) in wants.items():
        if all(name in ratio for ratio in ratios):
            mean = math.exp(statistics.fmean(math.log(ratio[name]) for ratio in ratios))
            targets.append((f"training blocks, {what} by fused's: at least {wanted}", f"{mean:.2f}", mean >= wanted))
    columns = (
        "block",
        "eager ms",
        "compiled ms",
        "fused ms",
        "compiled, graph",
        "fused, graph",
        "saved",
        "of a copy's rate",
    )
    settings = {"images": options.images, "copy_bytes_per_second": rate}
    harness.report("mbconv", options, around, columns, rows, targets, {"settings": settings, "blocks": told})


if __name__ == "__main__":
    main()
