"""How long networks take on a device: what latency models are fitted to.

N networks.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pynas.errors import PynasError
from pynas.nets.build import build_network
from pynas.nets.inference import folded
from pynas.randomness import derive_seed, generator
from pynas.space.architecture import Architecture
from pynas.space.latency import LEAST, LatencyModel
from pynas.space.space import Space, check_seed

HELD = 250_000_000
"""Parameters of the networks that are held, and take turns, at once (1 GB), or a single network's."""

PASSES = 3
"""Times that networks are made anew where not all can be held: a slow minute is then not all that is seen of a few."""

WARM_UP = 2
"""Calls of every network before the first that counts: oneDNN lays weights out, CUDA chooses kernels."""


def measure_latency(
    architectures: Sequence[Architecture],
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    threads: int = 1,
    rounds: int = 30,
    advance: Callable[[float], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Milliseconds that each network takes for a batch of float32 images, (N,): the lower quartile of `rounds` calls.

    A network is as one would deploy it: in evaluation mode, channels_last, on a CPU folded
    (`pynas.nets.inference.folded`). Its weights are initial ones, for time does not depend on them. Networks take
    turns, so that a slow moment of the machine is one call of many networks rather than all calls of one. Whatever else
    runs only adds, so the calls that count are the fast ones; the fastest of all is a chance that few networks get. On
    a busy machine quartiles of two measurements agreed within 2.5%, least and median times within 3% to 5%.

    On a CPU with one thread it is the processor's time that counts, which is the latency less what other processes
    took; otherwise it is wall-clock time, on CUDA with the device synchronised. `advance` is told of the share that is
    done. Torch's number of threads is as before in the end.

    Raises PynasError for a device that is not there and for numbers below 1.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads), ("rounds", rounds)):
        if value < 1:
            raise PynasError(f"latency: {name}: {value}; allowed: at least 1")
    device = _device(device)
    clock = time.thread_time if device.type == "cpu" and threads == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in architectures]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for group, turns in _groups(architectures, rounds):
            calls = {i: _call(architectures[i], batch_size, device) for i in group}
            for call in [*calls.values()] * WARM_UP:
                call()
            for _ in range(turns):
                for i, call in calls.items():
                    begun = clock()
                    call()
                    seconds[i].append(clock() - begun)
                advance(sum(map(len, seconds)) / (rounds * len(seconds)))
            del calls, call  # before the next are made: only as many as HELD says are held
    finally:
        torch.set_num_threads(before)
    return np.array([1e3 * np.quantile(times, 0.25) for times in seconds])


def measure_space(
    space: Space,
    networks: int = 200,
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    threads: int = 1,
    rounds: int = 30,
    seed: int = 0,
    advance: Callable[[float], None] = lambda done: None,
) -> LatencyModel:
    """The latency model of a space, fitted to that many random networks, measured as `measure_latency` does.

    Which they are depends on the space and on `seed` alone. Raises PynasError for fewer networks than can be fitted to,
    and what `measure_latency` raises.
    """
    if networks < LEAST:
        raise PynasError(f"latency: networks: {networks}; allowed: at least {LEAST}")
    setting = {"device": device_name(device), "threads": threads, "batch_size": batch_size, "dtype": "float32"}
    setting |= {"rounds": rounds, "seed": check_seed(seed), "torch": torch.__version__}
    genomes = space.sample(networks, seed=derive_seed(seed, "latency"))
    architectures = [space.decode(genome)[0] for genome in genomes]
    shared: dict[str, Any] = {"batch_size": batch_size, "device": device, "threads": threads, "rounds": rounds}
    return LatencyModel.fit(space, genomes, measure_latency(architectures, **shared, advance=advance), setting)


def device_name(device: torch.device | str) -> str:
    """The device as its maker calls it: of a CUDA device, or of the CPU as Linux tells it.

    Raises PynasError for a device that is not there.
    """
    device = _device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    there = torch.cuda.device_count()
    if found is None or found.type not in ("cpu", "cuda") or (found.type == "cuda" and (found.index or 0) >= there):
        names = ["cpu", *(["cuda"] if there else []), *(f"cuda:{i}" for i in range(there))]
        raise PynasError(f"latency: device {str(device)!r}; allowed here: {', '.join(names)}")
    return found


def _groups(architectures: Sequence[Architecture], rounds: int) -> Iterator[tuple[list[int], int]]:
    """Networks to hold at once, by index, and the rounds to measure them in; each pass puts others together."""
    parameters = [architecture.cost()["parameters"] for architecture in architectures]
    passes = 1 if sum(parameters) <= HELD else min(PASSES, rounds)
    for number in range(passes):
        turns = rounds // passes + (number < rounds % passes)
        group: list[int] = []
        for i in generator(0, "latency", number).permutation(len(parameters)).tolist():
            if group and sum(parameters[j] for j in group) + parameters[i] > HELD:
                yield group, turns
                group = []
            group.append(i)
        if group:
            yield group, turns


def _call(architecture: Architecture, batch_size: int, device: torch.device) -> Callable[[], None]:
    """A call of the network on a batch, which returns when that is computed."""
    layout = torch.channels_last
    built = build_network(architecture).eval().to(device).to(memory_format=layout)  # type: ignore[call-overload]
    network = folded(built) if device.type == "cpu" else built
    shape = (batch_size, architecture.input_channels, architecture.resolution, architecture.resolution)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, memory_format=layout)

    @torch.inference_mode()
    def call() -> None:
        network(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call
