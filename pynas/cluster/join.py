"""The ranks of a training: placed by mpi4py or torchrun, checked, and joined into a `World`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pynas.errors import PynasError
from pynas.listener import Listener
from pynas.ranks.beat import SET_UP
from pynas.ranks.launch import Launch
from pynas.ranks.requeue import in_slurm_job, requeue

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from pynas.ranks.placement import Placement
    from pynas.train.world import World

FAILURE = "failure.json"
"""In the directory of a training: the rank that ended it, its host and the cause."""

CONNECTING = timedelta(seconds=60)  # for the store of torch.distributed, once all ranks are known to be there


@contextmanager
def joined(launch: Launch, path: Path, *, heartbeat: float, device: str = "auto") -> Iterator[World]:
    """The `World` of this rank; all ranks share the directory `path`, which rank 0 makes.

    heartbeat: seconds without progress in any rank after which the supervisors end all; 0 for none. device: "auto",
    "cpu" or "cuda", as in a recipe. Raises PynasError, alike on all ranks, for what is wrong with their start.
    """
    from pynas.ops.reduce import MPIReducer
    from pynas.ranks.placement import place
    from pynas.ranks.startup import check
    from pynas.ranks.supervisor import beat
    from pynas.train.device import choose_device
    from pynas.train.world import World

    placement = place(launch)
    failed = placement.broadcast(_make(path) if placement.rank == 0 else None)
    if failed:
        raise PynasError(failed)
    check(placement, [path])
    if placement.rank == 0:
        (path / FAILURE).unlink(missing_ok=True)  # of the run before
    beat().failure_file(path / FAILURE)
    kind = choose_device(device)
    over_mpi = kind.type == "cpu" and placement.comm is not None
    world = World.join(
        rank=placement.rank,
        size=placement.size,
        local_rank=placement.local_rank,
        nodes=placement.nodes,
        store=_store(placement),
        device=kind,
        reducer=MPIReducer(placement.comm.Dup()) if over_mpi else None,
        advance=beat().advance,
        unhurried=partial(_unhurried, heartbeat),
    )
    beat().allow(heartbeat)
    yield world
    # On the good path alone: a rank that failed leaves at once, for the others may be stuck in a collective.
    world.leave()
    placement.close()


@contextmanager
def _unhurried(heartbeat: float) -> Iterator[None]:
    from pynas.ranks.supervisor import beat

    beat().allow(max(heartbeat, SET_UP) if heartbeat else 0.0)
    yield
    beat().allow(heartbeat)


@contextmanager
def requeued(world: World | None, listener: Listener) -> Iterator[None]:
    """A job of Slurm that a signal stops within the block goes back into the queue, unless it has got nowhere.

    Raises `Stopped` all the same, and PynasError for a job whose time is too short for a single step.
    """
    from pynas.train.signals import Stopped

    try:
        yield
    except Stopped as stopped:
        if in_slurm_job() and stopped.signal != signal.SIGINT and (world is None or world.first):
            if not stopped.steps_made:
                raise PynasError(
                    f"{stopped}; not requeued, for not one step was made since it last began: ask for more time"
                ) from None
            listener.say(f"{stopped}; {requeue()}")
        raise


def _make(path: Path) -> str:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{path}: cannot be made a directory: {error.strerror}"
    return ""


def _store(placement: Placement) -> TCPStore:
    """Where the ranks meet: rank 0 listens on a free port of the address at which all others reach it."""
    from torch.distributed import TCPStore

    address = placement.addresses[0]
    if placement.rank == 0:
        store = TCPStore(address, 0, placement.size, is_master=True, wait_for_workers=False, timeout=CONNECTING)
        placement.broadcast(store.port)
        return store
    return TCPStore(address, placement.broadcast(None), placement.size, is_master=False, timeout=CONNECTING)
