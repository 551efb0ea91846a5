"""Ranks to train with: processes of this machine that meet over gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DistributedDataParallel does so, for seconds: once here, not in every process
import torch.distributed as dist

from pynas.train.world import World

CPU = torch.device("cpu")


def join(folder: Path, rank: int, size: int, nodes: int = 1, **more: Any) -> World:
    store = dist.FileStore(str(folder / "store"), size)
    return World.join(
        rank=rank, size=size, local_rank=rank % (size // nodes), nodes=nodes, store=store, device=CPU, **more
    )


def start(folder: Path, size: int, function: Callable[[World], Any], nodes: int = 1) -> list[BaseProcess]:
    """`function(world)` in `size` processes, forked: a new interpreter takes seconds to import torch.

    What each returns or raises is pickled into `folder`, which holds nothing else.
    """
    folder.mkdir(parents=True)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        world = join(folder, rank, size, nodes)
        try:
            outcome: tuple[str, Any] = ("value", function(world))
            world.leave()
        except BaseException as error:
            outcome = ("error", (type(error).__name__, str(error), traceback.format_exc()))
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(outcome))
        os._exit(0)  # without what pytest would do at its exit

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def finish(folder: Path, processes: list[BaseProcess]) -> list[tuple[str, Any]]:
    """What each rank came to: ("value", value) or ("error", (type, text, traceback))."""
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, (process.exitcode, process.kill())
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(len(processes))]


def together(folder: Path, size: int, function: Callable[[World], Any], nodes: int = 1) -> list[Any]:
    """What `function(world)` returns on each of `size` ranks."""
    outcomes = finish(folder, start(folder, size, function, nodes))
    for kind, value in outcomes:
        assert kind == "value", value[2]
    return [value for _, value in outcomes]
