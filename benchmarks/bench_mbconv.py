"""The GPU's fused inverted residual blocks beside torch's eager channels_last and torch.compile(mode="max-autotune").

The seven blocks of bench_blocks.py, 256 images, bfloat16 under autocast for the peers: training (forward and backward)
by the plan that `mbconv_plan` chooses and by each of both, inference, and what is kept for backward; the depthwise step
with its norms, forward and backward; Split-Attention of radix 2 and 4; FBNetV3-G's training step. By CUDA events, in
interleaved rounds, with and without CUDA graphs, and what the fused ones move a second by the plan's byte model as a
share of a device-to-device copy measured in the same run. Before anything is timed, outputs and gradients are compared
with those of the same block in float64.

`--device cpu --images 2` runs everything in plain torch, to see that this script works: its times say nothing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
from bench_blocks import LAST, SHAPES, block
from mbconv_works import Fused, depthwise_stage, fbnetv3_g, off_by, split_attention
from torch import Tensor, nn

from pynas.files import write_whole
from pynas.nets.blocks import MBConv
from pynas.ops import library, mbconv_kernels, mbconv_plan, reference_mbconv, using
from pynas.ops.inverted_residual import block_layers
from pynas.ops.mbconv import block_shape

Work = Callable[[], Any]
WORST, FLOOR = 2.0, 4e-3  # times eager's own error, and what one rounding to bfloat16 makes
TARGETS = {  # against eager, against compiled
    "training block": (2.5, 1.7),
    "inference block": (4.0, 2.0),
    "depthwise forward k3": (2.8, 2.0),
    "depthwise forward k5": (2.2, 1.6),
    "depthwise backward": (2.3, 1.8),
    "Split-Attention": (2.8, None),
    "FBNetV3-G training": (1.8, 1.4),
}
SAVED = 3.0
G_IMAGES = 64
GROUPS = ("blocks", "depthwise", "split-attention", "fbnetv3-g")


def step(network: nn.Module, x: Tensor, gradient: Tensor, autocast: bool) -> list[Tensor]:
    """Output, then gradients of x and of the parameters."""
    for value in (x, *network.parameters()):
        value.grad = None
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = network(x)
    y.backward(gradient)
    return [y, *(value.grad for value in (x, *network.parameters()) if value.grad is not None)]


def infer(network: nn.Module, x: Tensor, autocast: bool) -> Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        return network(x)


class Stock(nn.Module):
    """The network's own layers, called one by one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with using("reference"):
            return self.network(x)


def errors(network: MBConv, fused: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, float]:
    """The largest relative error against float64, on a few images, by both plans."""
    few, some = x[:8].detach().requires_grad_(), gradient[:8]
    exact = step(Stock(copy.deepcopy(network).double()), few.detach().double().requires_grad_(), some.double(), False)
    found = {"eager": step(Stock(network), few, some, True)}
    for plan in mbconv_plan.PLANS:
        with mbconv_plan.using(plan):
            found[plan] = step(fused, few, some, False)
    relative = {name: max(off_by(a, b) for a, b in zip(values, exact, strict=True)) for name, values in found.items()}
    assert all(relative[plan] <= WORST * relative["eager"] + FLOOR for plan in mbconv_plan.PLANS), relative
    return relative


def errors_in_inference(network: MBConv, fused: nn.Module, x: Tensor) -> dict[str, float]:
    """The same of the output in evaluation."""
    few = x[:8].detach()
    exact = infer(Stock(copy.deepcopy(network).double()), few.double(), False)
    found = {"eager": infer(Stock(network), few, True)}
    for plan in mbconv_plan.PLANS:
        with mbconv_plan.using(plan):
            found[plan] = infer(fused, few, False)
    relative = {name: off_by(value, exact) for name, value in found.items()}
    assert all(relative[plan] <= WORST * relative["eager"] + FLOOR for plan in mbconv_plan.PLANS), relative
    return relative


def graphed(work: Work) -> Work:
    """The work as a CUDA graph."""
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


def seconds(works: dict[str, Work], rounds: int, cuda: bool) -> dict[str, float]:
    """Medians over interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(3):
        for work in works.values():
            work()
    names = list(works)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:  # each round begins with another
            work = works[name]
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
    with hooks, torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        network(x)
    return sum(size for pointer, size in kept.items() if pointer not in own)


def copy_rate(device: str) -> float:
    """Bytes a second of a device-to-device copy, read and written ones counted."""
    given = torch.empty(1 << (30 if device == "cuda" else 26), dtype=torch.uint8, device=device)
    taken = torch.empty_like(given)
    return 2 * given.numel() / seconds({"copy": lambda: taken.copy_(given)}, 9, device == "cuda")["copy"]


class Table:
    """Rows of what was timed, and the ratios that targets are about: of single runs, and of CUDA graphs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.cuda = options, options.device == "cuda"
        self.rate = copy_rate(options.device)
        self.rows: list[list[str]] = []
        self.told: list[dict[str, Any]] = []
        self.ratios: dict[tuple[str, str], list[dict[str, float]]] = {}
        self.settings = {"images": options.images, "copy_bytes_per_second": self.rate}

    def add(
        self,
        group: str,
        name: str,
        works: dict[str, Work],
        moved: int | None = None,
        graphs_too: bool = True,
        **told: Any,
    ) -> None:
        """works: "eager", "compiled" where there is a GPU, "fused" and variants of it. moved: bytes, of "fused".
        graphs_too: whether CUDA graphs can be made of the works.
        """
        took = seconds(works, self.options.rounds, self.cuda)
        graphs = {}
        if self.cuda and graphs_too:
            graphs = seconds({key: graphed(work) for key, work in works.items()}, self.options.rounds, True)
        own = [
            1e3 * found[peer] for found in (took, graphs) for peer in ("eager", "compiled", "fused") if peer in found
        ]
        others = [
            f"{key} {1e3 * value:.3f}" for key, value in took.items() if key not in ("eager", "compiled", "fused")
        ]
        share = "" if moved is None else f"{100 * moved / took['fused'] / self.rate:.0f}%"
        self.rows.append([f"{group}: {name}", " ".join(f"{value:.3f}" for value in own), share, ", ".join(others)])
        self.told.append({"group": group, "name": name, "seconds": took, "graphs": graphs, "moved": moved, **told})
        for kind, times in (("", took), (", CUDA graphs", graphs)):
            ratio = {peer: times[peer] / times["fused"] for peer in ("eager", "compiled") if peer in times}
            self.ratios.setdefault((group, kind), []).append(ratio)
        print("  ".join(self.rows[-1]), file=sys.stderr)
        if self.options.json:  # should it end before its time, what was measured is there
            text = json.dumps({"settings": self.settings, "works": self.told}, indent=1)
            write_whole(self.options.json, text)
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()

    def targets(self, saved: list[float]) -> list[tuple[str, str, bool]]:
        found = []
        for group, wanted in TARGETS.items():
            for kind in ("", ", CUDA graphs"):
                for peer, least in zip(("eager", "compiled"), wanted, strict=True):
                    values = [ratio[peer] for ratio in self.ratios.get((group, kind), []) if peer in ratio]
                    if least is not None and values:
                        mean = math.exp(statistics.fmean(map(math.log, values)))
                        what = f"{group}{kind}, times of {peer} by fused's: at least {least}"
                        found.append((what, f"{mean:.2f}", mean >= least))
        if saved:
            mean = math.exp(statistics.fmean(map(math.log, saved)))
            what = f"bytes saved for backward, eager's by fused's: at least {SAVED}"
            found.append((what, f"{mean:.2f}", mean >= SAVED))
        return found


def add_block(table: Table, shape: tuple[int, ...], device: str, steps: Any) -> float:
    """A block's training and inference; how many times the fused one's saved bytes eager keeps."""
    channels, out, size, stride, expansion, kernel = shape
    images, cuda = table.options.images, device == "cuda"
    network = block(*shape).to(device).train()  # type: ignore[arg-type]
    stock, fused = Stock(network), Fused(network, steps)
    x = torch.randn(images, channels, size, size, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=LAST).requires_grad_()
    gradient = torch.randn(images, out, size // stride, size // stride, device=device).bfloat16()
    gradient = gradient.contiguous(memory_format=LAST)
    told = {"errors": errors(network, fused, x, gradient), "shape": shape}
    described = block_shape(x, block_layers(*network.parts()[:2]))
    plan = mbconv_plan.plan_for(described)
    saved = {"eager": saved_bytes(stock, x, True), "fused": saved_bytes(fused, x, False)}
    compiled: Any = torch.compile(stock, mode="max-autotune-no-cudagraphs") if cuda else None

    def planned(forced: Any) -> Work:
        def run() -> None:
            with mbconv_plan.using(forced):
                step(fused, x, gradient, False)

        return run

    works: dict[str, Work] = {"eager": lambda: step(stock, x, gradient, True), "fused": planned(None)}
    works |= {f"{one}{' (taken)' if one == plan else ''}": planned(one) for one in mbconv_plan.PLANS}
    if cuda:
        works["compiled"] = lambda: step(compiled, x, gradient, True)
    name = f"{channels}->{out}@{size} e{expansion} k{kernel} s{stride}"
    table.add("training block", name, works, mbconv_plan.traffic(described, plan), saved=saved, plan=plan, **told)
    network.eval()
    told = {"errors": errors_in_inference(network, fused, x), "shape": shape}
    works = {"eager": lambda: infer(stock, x, True), "fused": lambda: infer(fused, x, False)}
    if cuda:
        works["compiled"] = lambda: infer(compiled, x, True)
    plan = mbconv_plan.plan_for(described, training=False)
    table.add("inference block", name, works, mbconv_plan.traffic(described, plan, training=False), plan=plan, **told)
    return saved["eager"] / saved["fused"]


def print_kept(images: int) -> None:
    """Bytes kept for backward on a CPU, eager's by those of the chosen plans and of each plan."""
    for plan in (None, *mbconv_plan.PLANS):
        ratios = []
        for shape in SHAPES:
            network = block(*shape).train()
            x = torch.randn(images, shape[0], shape[2], shape[2], dtype=torch.bfloat16)
            x = x.contiguous(memory_format=LAST).requires_grad_()
            with mbconv_plan.using(plan):
                kept = saved_bytes(Fused(network, reference_mbconv), x, False)
            ratios.append(saved_bytes(Stock(network), x, True) / kept)
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"{plan or 'chosen'}: {mean:.2f} ({min(ratios):.1f} to {max(ratios):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--images", type=harness.at_least(1), default=256)
    parser.add_argument("--rounds", type=harness.at_least(1), default=15)
    parser.add_argument("--only", action="append", choices=GROUPS, help="groups of rows; may be given again; else all")
    parser.add_argument("--json", type=harness.writable, metavar="FILE", help="written after each row")
    parser.add_argument("--results", action="store_true", help="also to benchmarks/results/mbconv.json")
    parser.add_argument("--kept", action="store_true", help="only count the bytes kept for backward, on the CPU")
    options = parser.parse_args()
    if options.kept:
        if options.json or options.results:
            parser.error("--kept prints alone; allowed: without --json and --results")
        return print_kept(options.images)
    cuda = options.device == "cuda"
    if cuda and not (torch.cuda.is_available() and library.available() and torch.ops.pynas.has_cuda()):
        print("bench_mbconv: no GPU here, or a library without CUDA kernels", file=sys.stderr)
        raise SystemExit(2)
    around = harness.machine("torch") | {"gpu": torch.cuda.get_device_name() if cuda else None}
    torch.backends.cudnn.benchmark = True  # the peers' best
    steps: Any = mbconv_kernels if cuda else reference_mbconv
    table, only = Table(options), options.only or GROUPS
    saved = [add_block(table, shape, options.device, steps) for shape in SHAPES] if "blocks" in only else []
    for channels, _, size, stride, expansion, kernel in SHAPES if "depthwise" in only else ():
        shape = (options.images, channels * expansion, size, kernel, stride)
        for direction, works, moved in depthwise_stage(*shape, options.device, steps):
            name = f"{channels * expansion}@{size} k{kernel} s{stride}"
            group = f"depthwise {direction}" + (f" k{kernel}" if direction == "forward" else "")
            # Of a forward that is over and kept no graph can be made: autograd runs in the stream that it ran in.
            table.add(group, name, works, moved, graphs_too=direction == "forward")
    for radix in (2, 4) if "split-attention" in only else ():
        for name, works in split_attention(radix, options.images, options.device, steps):
            table.add("Split-Attention", f"radix {radix}, {name}", works)
    if "fbnetv3-g" in only:
        images = min(options.images, G_IMAGES) if cuda else 1  # what three graphs keep for backward fits 80 GB
        table.add("FBNetV3-G training", f"{images} images", fbnetv3_g(images, options.device, steps))
    columns = ("what", "eager, compiled, fused ms; the same as CUDA graphs", "of a copy's rate", "fused, by plan")
    data = {"settings": table.settings, "works": table.told}
    harness.report("mbconv", options, around, columns, table.rows, table.targets(saved), data)


if __name__ == "__main__":
    main()
