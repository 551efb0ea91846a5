"""What the benchmarks of several ranks share: ranks that mpiexec starts, and that meet over gloo as well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = (1, 2, 4)
AS_RANK = "--as-rank"


def run_ranks(script: str, size: int, rounds: int) -> dict[str, Any]:
    """What rank 0 of `size` ranks of a script hands to `answer`."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        raise SystemExit("no mpiexec here: pip install mpi4py mpich")
    with tempfile.TemporaryDirectory() as folder:
        command = [mpiexec, "-n", str(size), sys.executable, script, AS_RANK, folder, str(rounds)]
        subprocess.run(command, check=True, timeout=900)
        return json.loads((Path(folder) / "answer.json").read_text())


def as_rank(work: Callable[[Any, Any, int], dict[str, Any]]) -> bool:
    """Whether this process is a rank; it then has done `work(world, communicator, rounds)`, with gloo beneath the world
    and an mpi4py communicator beside it.
    """
    if len(sys.argv) < 2 or sys.argv[1] != AS_RANK:
        return False
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    from pynas.train.world import World

    torch.set_num_threads(1)
    folder, rounds = Path(sys.argv[2]), int(sys.argv[3])
    communicator = MPI.COMM_WORLD.Dup()
    rank, size = communicator.rank, communicator.size
    store = dist.FileStore(str(folder / "store"), size)
    world = World.join(rank=rank, size=size, local_rank=rank, nodes=1, store=store, device=torch.device("cpu"))
    found = work(world, communicator, rounds)
    if world.first:
        (folder / "answer.json").write_text(json.dumps(found))
    world.barrier()
    world.leave()
    return True
