"""Weak scaling of a training step of FBNetV3-B on this machine, and a model of it on 8 nodes of 8 GPUs.

Measured: 1, 2 and 4 processes of one thread each with 8 images of 64 x 64, a whole step of `Trainer` with SyncBatchNorm
and DistributedDataParallel; gradients go over gloo, batch-norm's sums over gloo or MPI. On a machine of two cores four
processes have half a core each: at best the step takes twice as long there.

Modelled, not measured: what the exchange costs on --nodes nodes of --gpus GPUs, from the number of batch-norms
and bytes, the latency of one small all-reduce over all ranks and each GPU's share of the bandwidth between nodes. A
ring carries 2 (R - 1) / R times the bytes. None of it overlaps with computing, so it is an upper bound for gradients;
batch-norm's sums cannot overlap. --latency, --bandwidth and --step are assumptions about the cluster.
"""

from __future__ import annotations

import sys
from typing import Any

import harness
import over_ranks
import torch
from torch import nn

from pynas.data.batches import Batch
from pynas.nets.load import read_model
from pynas.ops.reduce import MPIReducer
from pynas.train.config import TrainingRecipe
from pynas.train.loop import Trainer, preserved_random_state
from pynas.train.world import World

IMAGES, RESOLUTION = 8, 64
CPU = torch.device("cpu")


def network() -> nn.Module:
    return read_model("fbnetv3_b", resolution=RESOLUTION, classes=10, input_channels=3).build()


def work(world: World, communicator: Any, rounds: int) -> dict[str, Any]:
    worlds = {"gloo": world}
    if world.size > 1:
        worlds["MPI"] = World(world.rank, world.size, world.rank, 1, device=CPU, reducer=MPIReducer(communicator))
    recipe = TrainingRecipe(epochs=1, batch_size=IMAGES * world.size)
    generator = torch.Generator().manual_seed(world.rank)
    images = torch.randn(IMAGES, 3, RESOLUTION, RESOLUTION, generator=generator)
    batch = Batch(images.contiguous(memory_format=torch.channels_last), torch.arange(IMAGES))

    def case(trainer: Trainer) -> Any:
        def step(_: int) -> float:
            world.barrier()
            start = harness.time.perf_counter()
            trainer.update(batch)
            return harness.time.perf_counter() - start

        return step

    cases = {
        name: case(Trainer(network(), recipe, classes=10, steps_per_epoch=1000, seed=0, device=CPU, world=one))
        for name, one in worlds.items()
    }
    with preserved_random_state(CPU):
        runs = harness.measure(cases, rounds)
    agreeing = []
    for _ in range(50):
        start = harness.time.perf_counter()
        world.agree(IMAGES, None)
        agreeing.append(harness.time.perf_counter() - start)
    return {"steps": {name: run.answers for name, run in runs.items()}, "agree": agreeing}


def modelled(given: dict[str, float]) -> dict[str, Any]:
    """The exchange of a step on given["nodes"] nodes of given["gpus"] GPUs."""
    made = read_model("fbnetv3_b").build()
    channels = [module.num_features for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = 2 * len(channels)
    sum_bytes = sum(8 * (2 * c + 1) + 4 * 2 * c for c in channels)  # float64 forward, float32 backward
    gradient_bytes = 4 * sum(parameter.numel() for parameter in made.parameters())
    ranks = given["nodes"] * given["gpus"]
    seconds_a_byte = 2 * (ranks - 1) / ranks / (given["bandwidth"] * 1e9)
    norms = sums * given["latency"] * 1e-6 + sum_bytes * seconds_a_byte
    gradients = gradient_bytes * seconds_a_byte + given["latency"] * 1e-6 * -(-gradient_bytes // 25_000_000)  # buckets
    step = given["step"] * 1e-3
    return {
        "given": given, "sums_a_step": sums, "sum_bytes": sum_bytes, "gradient_bytes": gradient_bytes,
        "batch_norm_ms": 1e3 * norms, "gradients_ms": 1e3 * gradients,
        "efficiency_no_overlap": step / (step + norms + gradients),
        "efficiency_gradients_hidden": step / (step + norms),
    }  # fmt: skip


def main() -> None:
    given = {"nodes": 8.0, "gpus": 8.0, "latency": 40.0, "bandwidth": 25.0, "step": 150.0}  # us, GB/s, ms
    rest = []
    for argument in sys.argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name in given and value:
            given[name] = float(value)
        else:
            rest.append(argument)
    sys.argv[1:] = rest
    options = harness.arguments(__doc__, rounds=9)
    around = harness.machine("torch", "mpi4py", "mpich")
    found = {size: over_ranks.run_ranks(__file__, size, options.rounds) for size in over_ranks.SIZES}
    alone = harness.spread(found[1]["steps"]["gloo"])
    rows: list[tuple[Any, ...]] = []
    results: dict[str, Any] = {}
    for size, answer in found.items():
        for name, seconds in answer["steps"].items():
            took = harness.spread(seconds)
            efficiency = alone["median"] / took["median"]
            possible = 1 / max(1.0, size / around["cores"])
            results[f"{size} ranks, {name}"] = {
                "seconds": took, "efficiency": efficiency, "of_possible": efficiency / possible,
                "agree_seconds": harness.spread(answer["agree"]),
            }  # fmt: skip
            cells = [f"{1e3 * took[key]:.0f}" for key in ("median", "min", "max")]
            speed = size * IMAGES / took["median"]
            rows.append((f"{size} ranks, {name}", *cells, f"{speed:.1f}", f"{efficiency:.2f}",
                         f"{efficiency / possible:.2f}"))  # fmt: skip
    model = modelled(given)
    for latency in sorted({20.0, given["latency"], 80.0}):
        other = modelled({**given, "latency": latency})
        print(
            f"model, {given['nodes']:.0f} x {given['gpus']:.0f} GPUs, {latency:.0f} us, {given['bandwidth']:.0f} GB/s: "
            f"{other['sums_a_step']} sums of {other['sum_bytes'] / 1e3:.0f} kB in all {other['batch_norm_ms']:.1f} ms, "
            f"{other['gradient_bytes'] / 1e6:.0f} MB of gradients {other['gradients_ms']:.1f} ms; of a step of "
            f"{given['step']:.0f} ms that leaves {100 * other['efficiency_no_overlap']:.0f} to "
            f"{100 * other['efficiency_gradients_hidden']:.0f}%"
        )
        slowest = given["step"] + other["batch_norm_ms"] + other["gradients_ms"]
        efficiency = f"{other['efficiency_no_overlap']:.2f} to {other['efficiency_gradients_hidden']:.2f}"
        name = f"modelled: {given['nodes']:.0f} x {given['gpus']:.0f} GPUs, {latency:.0f} us a sum"
        least = given["step"] + other["batch_norm_ms"]
        rows.append((name, f"{slowest:.0f}", f"{least:.0f}", f"{slowest:.0f}", "", efficiency, ""))
    two = results["2 ranks, MPI"]["of_possible"]
    targets = [("2 ranks: 80% of twice the images a second", f"{100 * two:.0f}%", two >= 0.8)]
    columns = ("step", "ms", "min", "max", "images/s", "efficiency", "of what the cores allow")
    harness.report("scaling", options, around, columns, rows, targets, {"results": results, "model": model})


if __name__ == "__main__" and not over_ranks.as_rank(work):
    main()
