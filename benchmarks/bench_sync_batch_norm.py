"""Batch-norm over ranks, against batch-norm of each rank alone: a layer, and a training step of FBNetV3-B.

1, 2 and 4 processes of one thread each, on this machine's cores. `gloo` and `MPI` are pynas's SyncBatchNorm with one
packed sum forward and one backward; `gather` is the scheme of torch.nn.SyncBatchNorm (which takes no CPU tensors)
written out on the same kernels: an all-gather of every rank's mean, invstd and count forward, a sum backward; `kernels`
is pynas's with the exchange left out. A layer is forward and backward. A step is forward, backward and SGD of FBNetV3-B
at 64 x 64, 4 images a rank, its gradients averaged by DistributedDataParallel over gloo in every case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import harness
import over_ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from pynas.nets.load import read_model
from pynas.ops import sync_batch_norm as ops
from pynas.ops.reduce import MPIReducer, ProcessGroupReducer
from pynas.train.world import World

IMAGES, RESOLUTION = 4, 64
SHAPES = ((16, 32, 32), (120, 8, 8), (360, 4, 4), (720, 4, 4))
"""Channels, height and width of layers that FBNetV3-B has there."""

REPEATS = 20  # of a layer in a round
LAST = torch.channels_last


class NoExchange:
    """Of two ranks, says it, and does nothing."""

    size = 2

    def all_reduce(self, tensor: Tensor) -> None: ...


class Gathering(torch.autograd.Function):
    """torch/nn/modules/_functions.py: SyncBatchNorm, without its host-side mask of empty ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = ops.local_statistics(x)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=mean.dtype)
        mine = torch.cat([mean, torch.rsqrt(variance + eps), count])
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        means, invstds, counts = torch.stack(every).split([len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = ((invstds**-2 - eps + (means - mean) ** 2) * counts).sum(0) / total
        invstd = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, invstd, total)
        scale = invstd * weight
        return ops.affine(x, scale, bias - mean * scale), mean, variance * (total / (total - 1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, invstd, total = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAST)
        sums = torch.stack(ops.local_gradient_sums(gradient, x, mean, invstd))
        weight_gradient, bias_gradient = sums[1].clone(), sums[0].clone()
        dist.all_reduce(sums)
        x_gradient = ops.input_gradient(gradient, x, weight, mean, invstd, sums, total)
        return x_gradient, weight_gradient, bias_gradient, None


class GatheringBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y, mean, variance = Gathering.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return y


def gathering(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GatheringBatchNorm
    return network


def kinds(world: World, communicator: Any) -> dict[str, Callable[[nn.Module], nn.Module]]:
    if world.size == 1:
        return {"local": lambda m: m, "kernels": lambda m: ops.convert_sync_batchnorm(m, NoExchange())}
    gloo, mpi = ProcessGroupReducer(dist.new_group()), MPIReducer(communicator)
    return {
        "local": lambda m: m,
        "kernels": lambda m: ops.convert_sync_batchnorm(m, NoExchange()),
        "gloo": lambda m: ops.convert_sync_batchnorm(m, gloo),
        "MPI": lambda m: ops.convert_sync_batchnorm(m, mpi),
        "gather": gathering,
    }


def checked(world: World, made: dict[str, nn.Module], channels: int, x: Tensor) -> None:
    """All that synchronise equal one batch-norm of all images, in float64."""
    if world.size == 1:
        return
    every = torch.cat(world.gather(x.detach()))
    expected = nn.BatchNorm2d(channels).double()(every.double())[world.rank * IMAGES :][:IMAGES]
    for name in ("gloo", "MPI", "gather"):
        torch.testing.assert_close(made[name](x).double(), expected, rtol=1e-4, atol=1e-5)


def work(world: World, communicator: Any, rounds: int) -> dict[str, Any]:
    def timed(function: Callable[[], None], repeats: int) -> Callable[[int], float]:
        def case(_: int) -> float:
            world.barrier()
            start = harness.time.perf_counter()
            for _ in range(repeats):
                function()
            return (harness.time.perf_counter() - start) / repeats

        return case

    found: dict[str, Any] = {"layers": {}}
    for channels, height, width in SHAPES:
        generator = torch.Generator().manual_seed(world.rank)
        x = torch.randn(IMAGES, channels, height, width, generator=generator).contiguous(memory_format=LAST)
        x, gradient = x.requires_grad_(), torch.randn_like(x)
        made = {name: make(nn.BatchNorm2d(channels)) for name, make in kinds(world, communicator).items()}
        checked(world, made, channels, x)
        cases = {
            name: timed(lambda layer=layer, x=x, gradient=gradient: layer(x).backward(gradient), REPEATS)
            for name, layer in made.items()
        }
        runs = harness.measure(cases, rounds)
        found["layers"][f"{channels} x {height} x {width}"] = {name: run.answers for name, run in runs.items()}
    network = (
        read_model("fbnetv3_b", resolution=RESOLUTION, classes=10, input_channels=3).build().to(memory_format=LAST)
    )
    images = torch.randn(IMAGES, 3, RESOLUTION, RESOLUTION).contiguous(memory_format=LAST)
    labels = torch.randint(10, (IMAGES,))

    def step_of(copied: nn.Module) -> Callable[[], None]:
        wrapped = world.wrapped(copied)
        optimizer = torch.optim.SGD(copied.parameters(), 1e-3, foreach=True)

        def step() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(wrapped(images), labels).backward()
            optimizer.step()

        return step

    cases = {name: timed(step_of(make(copy.deepcopy(network))), 1) for name, make in kinds(world, communicator).items()}
    found["step"] = {name: run.answers for name, run in harness.measure(cases, rounds).items()}
    found["norms"] = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    return found


def main() -> None:
    options = harness.arguments(__doc__, rounds=7)
    around = harness.machine("torch", "mpi4py", "mpich")
    found = {size: over_ranks.run_ranks(__file__, size, options.rounds) for size in over_ranks.SIZES}
    rows, results = [], {}
    for size, answer in found.items():
        for what, times in (*answer["layers"].items(), ("step of FBNetV3-B", answer["step"])):
            for name, seconds in times.items():
                ratio = harness.spread([a / b for a, b in zip(seconds, times["local"], strict=True)])
                took = harness.spread(seconds)
                results[f"{size} ranks, {what}, {name}"] = {"seconds": took, "times_local": ratio}
                cells = [f"{1e3 * took[key]:.3f}" for key in ("median", "min", "max")]
                rows.append((f"{what}", size, name, *cells, f"{ratio['median']:.2f}"))
    targets = []
    for size in over_ranks.SIZES[1:]:
        for what in (*found[size]["layers"], "step of FBNetV3-B"):
            one = {name: results[f"{size} ranks, {what}, {name}"]["seconds"] for name in ("gloo", "gather", "MPI")}
            against = one["gather"]["median"] / one["gloo"]["median"]
            targets.append((f"{size} ranks, {what}: no slower than torch's scheme, both over gloo",
                            f"{against:.2f} times as fast", against >= 1))  # fmt: skip
        step = {name: results[f"{size} ranks, step of FBNetV3-B, {name}"] for name in ("gloo", "MPI")}
        for name, result in step.items():
            share = 1 - 1 / result["times_local"]["median"]
            targets.append((f"{size} ranks over {name}: less than 10% of a step", f"{100 * share:.0f}%", share < 0.1))
    columns = ("what", "ranks", "batch-norm", "ms", "min", "max", "times local")
    harness.report("sync_batch_norm", options, around, columns, rows, targets,
                   {"results": results, "norms": found[1]["norms"], "images": IMAGES})  # fmt: skip


if __name__ == "__main__" and not over_ranks.as_rank(work):
    main()
