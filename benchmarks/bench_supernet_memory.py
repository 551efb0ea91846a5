"""FP-NAS: peak memory of a search's steps, against the number of choices, of architectures a step, and its peers.

Every case is a process of its own that makes one supernet of rows of fbnetv2_f at 112 x 112 and takes two steps with
batches of 32 images, as `pynas search` takes them: the likelihoods of K architectures, their gradients, SGD with
momentum. The last of the K is always the largest architecture, which no choice that is added makes larger, and the
others are drawn at random.

*tensors* is the most that torch's tensors hold at a time, weights, gradients and momentum included. *peak* is the
process's (VmHWM), less what it had before the supernet was made; on CUDA that of torch's allocator. On a CPU it has on
top what the C library's malloc keeps between pieces: searches and trainings tell it to keep all that is freed
(`pynas.train.memory`).

- *alone*: the largest architecture as a network of `pynas.nets`, the same batch and SGD.
- *every choice*: what DARTS and FBNetV2 hold: every block that a place can have, kernels, attention and activations,
  is computed of the same input, and their outputs are weighted by a softmax. The blocks are pynas's, as wide as the
  widest: choices of widths and of expansions cost nothing here, as if by FBNetV2's masks.

Before a figure is told, the path of the largest architecture, and the choice of it among all, are compared with the
network built alone with the same weights.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from live import Live
from torch import Tensor, nn
from torch.nn import functional

import pynas
from pynas.data.batches import MEMORY_FORMAT, Batch
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.search import Search
from pynas.nets.build import build_network, make_block
from pynas.space.architecture import Block
from pynas.space.space import Space
from pynas.space.table import find_table, parse_table
from pynas.train.memory import keep_freed_memory

SIZE, BATCH, STEPS, SAMPLES = 112, 32, 2, 2
LARGEST = {"k": "5", "e": "4.5", "se": "1", "act": "swish"}
SPACES: dict[str, tuple[str, ...]] = {  # what has choices, of the largest of which every space has the same
    "one row's activation": ("act of one",),  # a space without a choice is none
    "kernels 0, 3, 5": ("k",),
    "and attention, activations": ("k", "se", "act"),
    "and expansions, widths": ("k", "se", "act", "e", "c"),
}
FEWEST, _, BLOCKS, ALL = SPACES
COUNTS = (1, 6)


def make_space(choices: tuple[str, ...]) -> Space:
    """fbnetv2_f with the largest of every variable that has no choices."""
    lines = find_table("fbnetv2_f").read_text().replace("resolution: 224", f"resolution: {SIZE}").splitlines()
    begin = next(i for i, line in enumerate(lines) if "| block" in line)
    columns = [cell.strip() for cell in lines[begin].split("|")]
    for i, line in enumerate(lines[begin:], begin):
        cells = [cell.strip() for cell in line.split("|")]
        for j, name in enumerate(columns):
            if name in choices or not cells[j].startswith(("[", "(")):
                continue
            if name == "act" and "act of one" in choices and i == len(lines) - 3:
                continue
            cells[j] = LARGEST.get(name) or cells[j].strip("()").split(",")[1].strip()
        lines[i] = "  " + " | ".join(cells).strip()
    return Space(parse_table("\n".join(lines), "choices.yaml"))


def largest(space: Space) -> np.ndarray[Any, Any]:
    """The genome of the largest architecture."""
    order = ("relu", "swish")
    sizes = [[order.index(v) if v in order else float(v) for v in variable.values] for variable in space.variables]
    genome = np.array([np.argmax(values) for values in sizes], np.uint8)
    assert space.costs(space.sample(1000, seed=0))["flops"].max() <= space.costs(genome[None])["flops"][0]
    return genome


# what runs in a process of its own -----------------------------------------------------------------------------------


class Alone:
    """The largest architecture, trained by itself."""

    def __init__(self, space: Space, device: torch.device) -> None:
        self.architecture, _ = space.decode(largest(space))
        self.network = self.build(space).to(device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, 0.9)

    def build(self, space: Space) -> nn.Module:
        return build_network(self.architecture)

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.network(batch.images), batch.labels).backward()
        self.optimizer.step()

    def largest(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """What has the parameters of the largest architecture in their order, and what computes it."""
        return self.network, self.network


class EveryChoice(nn.Module):
    def __init__(self, places: list[list[Block]]) -> None:
        super().__init__()
        self.places = nn.ModuleList(nn.ModuleList(map(make_block, choices)) for choices in places)
        self.logits = nn.ParameterList(torch.zeros(len(choices)) for choices in places)

    def forward(self, x: Tensor) -> Tensor:
        for blocks, logits in zip(self.places, self.logits, strict=True):
            if len(blocks) == 1:
                x = blocks[0](x)
            else:
                x = sum(weight * block(x) for weight, block in zip(logits.softmax(0), blocks, strict=True))
        return x


class Every(Alone):
    """Every block that a place can have, computed and held."""

    def build(self, space: Space) -> nn.Module:
        return EveryChoice(places(space))

    def largest(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        with torch.no_grad():
            for logits in self.network.logits:
                logits.copy_(torch.tensor([-torch.inf] * (len(logits) - 1) + [0.0]))
        return nn.Sequential(*(blocks[-1] for blocks in self.network.places)), self.network


def places(space: Space) -> list[list[Block]]:
    """Every block that can stand in each place, at its largest width and expansion; the largest last."""
    columns = [[i for i, v in enumerate(space.variables) if v.name.endswith(f".{name}")] for name in ("k", "se", "act")]
    genome, found = largest(space), []
    choices = [range(max((len(space.variables[i].values) for i in column), default=1)) for column in columns]
    for choice in itertools.product(*choices):
        for column, which in zip(columns, choice, strict=True):
            genome[column] = which
        found.append(space.decode(genome)[0].blocks())
    # What a skip would have had of attention and activations makes no other block of it.
    kinds = [{block if block.kind != "skip" else "skip": block for block in place} for place in zip(*found)]
    return [list(place.values()) for place in kinds]


class Sampled:
    """The search: the largest architecture and count - 1 others a step."""

    def __init__(self, space: Space, count: int, device: torch.device) -> None:
        drawn: dict[str, Any] = {"sampling": "fixed", "samples": count, "distribution": "factorised"}
        config = SupernetConfig(epochs=2, warmup_epochs=0, batch_size=BATCH, lr=0.01, **drawn)
        self.search = Search(space, config, {}, steps_per_epoch=STEPS, seed=0, device=device)
        genome, self.count = largest(space), count
        self.architecture, _ = space.decode(genome)

        def sample(count: int, _: Any) -> Any:
            return np.concatenate([space.sample(count, seed=self.search.step)[1:], genome[None]])

        self.search.distribution.sample = sample  # type: ignore[method-assign]
        self.network = self.search.supernet

    def step(self, batch: Batch) -> None:
        assert len(self.search.update(batch, batch).losses) == self.count, "not all architectures were trained"

    def largest(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        return self.network.path(self.architecture)[0], lambda images: self.network(images, self.architecture)


def random_batch(images: int, channels: int, size: int, device: torch.device) -> Batch:
    random = torch.Generator().manual_seed(0)
    drawn = torch.randn(images, channels, size, size, generator=random).contiguous(memory_format=MEMORY_FORMAT)
    return Batch(drawn.to(device), torch.randint(0, 10, (images,), generator=random).to(device))


def resident(name: str) -> float:
    """VmRSS or VmHWM, what a process has now and what it had at most, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def run(kind: str, choices: str, count: int) -> dict[str, float]:
    """Two steps of a case; peak and weights, MiB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(harness.THREADS)
    space = make_space(SPACES[choices])
    batch = random_batch(BATCH, 3, SIZE, device)
    small = pynas.load_space("fbnetv2_f_28")
    Alone(small, device).step(random_batch(2, 1, 28, device))  # what libraries need once is no supernet's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        keep_freed_memory()  # as trainings and searches do
        before = resident("VmRSS")
        if before + 50 < resident("VmHWM"):
            raise RuntimeError("the process had more memory before the supernet was made than it has now")
    case: Alone | Sampled
    with Live([batch.images, batch.labels]) as live:
        if kind == "sampled":
            case = Sampled(space, count, device)
        else:
            case = {"alone": Alone, "every choice": Every}[kind](space, device)
    with live:
        for _ in range(STEPS):
            case.step(batch)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident("VmHWM")
    check(case, random_batch(4, 3, SIZE, device), device)
    weights = sum(weight.numel() * weight.element_size() for weight in case.network.parameters()) / 2**20
    return {
        "peak": peak - before,
        "weights": weights,
        "tensors": live.peak / 2**20,
        "architectures": math.prod(len(variable.values) for variable in space.variables),
    }


def check(case: Alone | Sampled, batch: Batch, device: torch.device) -> None:
    with torch.no_grad():
        weights, compute = case.largest()
        network = build_network(case.architecture).to(device)
        for mine, theirs in zip(network.parameters(), weights.parameters(), strict=True):
            mine.copy_(theirs)
        torch.testing.assert_close(compute(batch.images), network(batch.images))


# the driver ----------------------------------------------------------------------------------------------------------


def measured(case: tuple[str, str, int]) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(run(*json.loads(sys.argv[2]))))
        return
    options = harness.arguments(__doc__, rounds=1)
    around = harness.machine("torch")
    alone, most = ("alone", ALL, 1), ("sampled", ALL, SAMPLES)
    cases = [alone, *(("sampled", name, SAMPLES) for name in SPACES), *(("sampled", ALL, count) for count in COUNTS)]
    cases += [("every choice", name, 1) for name in SPACES if name != ALL]
    rounds = [{case: measured(case) for case in cases} for _ in range(options.rounds)]
    peaks = {case: harness.spread([found[case]["peak"] for found in rounds]) for case in cases}
    found = {case: {**rounds[0][case], "peak": peaks[case]["median"]} for case in cases}

    def row(case: tuple[str, str, int]) -> tuple[Any, ...]:
        kind, name, count = case
        one, peak = found[case], peaks[case]
        what = "the largest alone" if case == alone else f"{kind}: {name}"
        return (
            what,
            count if kind == "sampled" else "",
            "" if case == alone else f"{one['architectures']:.1e}".replace("e+", "e"),
            f"{one['weights']:.1f}",
            f"{one['tensors']:.0f}",
            f"{one['tensors'] / found[alone]['tensors']:.2f}",
            f"{peak['median']:.0f}",
            *([f"{peak['min']:.0f}", f"{peak['max']:.0f}"] if options.rounds > 1 else []),
            f"{peak['median'] / found[alone]['peak']:.2f}",
        )

    def more_weights(one: tuple[str, str, int], than: tuple[str, str, int]) -> float:
        """By how much weights, gradients and momentum are larger, MiB."""
        return 3 * (found[one]["weights"] - found[than]["weights"])

    fewest, every, blocks = ("sampled", FEWEST, SAMPLES), ("every choice", BLOCKS, 1), ("sampled", BLOCKS, SAMPLES)
    many = ("sampled", ALL, COUNTS[-1])
    targets = []
    for what in ("tensors", "peak"):
        size = {case: found[case][what] for case in cases}
        bound, allowed = size[alone] + more_weights(most, alone), more_weights(most, fewest)
        grown, times = size[most] - size[fewest], size[every] / size[blocks]
        targets += [
            (
                f"{what}: K = {SAMPLES}, all choices: within 10% of the largest alone and of the weights, gradients "
                "and momentum that it has not",
                f"{size[most]:.0f} MiB, {size[most] / bound:.2f} of {bound:.0f}",
                size[most] <= 1.1 * bound,
            ),
            (
                f"{what}: from 2 architectures to all: by no more than weights, gradients and momentum, and 2%",
                f"{grown:+.0f} MiB, of which these are {allowed:.0f}",
                grown <= allowed + 0.02 * size[fewest],
            ),
            (
                f"{what}: from K = {SAMPLES} to {many[2]}: by no more than 5%",
                f"{size[many] / size[most] - 1:+.1%}",
                size[many] <= 1.05 * size[most],
            ),
            (
                f"{what}: every block of kernels, attention and activations computed takes 4 times as much",
                f"{times:.2f}",
                times >= 4,
            ),
        ]
    extremes = ("min", "max") if options.rounds > 1 else ()
    columns = ("what is trained", "K", "architectures", "weights", "tensors", "times", "peak MiB", *extremes, "times")
    results = [{"kind": k, "choices": n, "K": c, **found[k, n, c], "peak": peaks[k, n, c]} for k, n, c in cases]
    harness.report(
        "supernet_memory", options, around, columns, [row(case) for case in cases], targets, {"results": results}
    )


if __name__ == "__main__":
    main()
