"""What a rank does that serves an `MPIExecutor`: it runs tasks in a worker process of its own.

The worker is that of a `LocalExecutor`, so that a crash costs a task and no rank, and MPI never sees it. It stays for
the next task. The order to end running tasks is a message, for which a rank looks while it waits for its worker.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pynas.runtime import progress
from pynas.runtime.executor import Done, Failed, Progress, Started
from pynas.runtime.local import LocalExecutor
from pynas.runtime.task import TaskFolder

LISTEN = 0.25  # seconds between two looks of a busy rank for the order to end its task
CANCEL = 77  # tag of that order on MPI.COMM_WORLD; the messages of mpi4py.futures are on a communicator of their own

# The variables by which launchers tell a process its rank. SLURM_JOB_ID and what else tells of the job stay.
_PREFIXES = (
    *("PMI_", "PMIX_", "HYDI_", "HYDRA_", "MPI_LOCAL", "OMPI_", "PRTE_", "PALS_"),
    *("SLURM_STEP", "SLURM_SRUN_", "TORCHELASTIC_", "GROUP_", "ROLE_"),
)
_NAMES = {
    *(f"SLURM_{name}" for name in ("PROCID", "LOCALID", "NODEID", "GTIDS", "NTASKS", "NPROCS", "TASK_PID")),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
}


@dataclass(frozen=True)
class Call:
    """One task on its way to a rank."""

    executor: str  # which one sends it: a rank may serve several, one after the other
    tasks: str
    key: str
    function: str
    threads: int | None  # of the worker; None: the rank's share of the cores


class _Rank:
    """What this rank keeps between calls."""

    def __init__(self) -> None:
        self.share = 1  # threads
        self.worker: LocalExecutor | None = None
        self.serves: tuple[str, int] | None = None  # folder and threads of `worker`
        self.cancelled: set[str] = set()

    def worker_for(self, call: Call) -> LocalExecutor:
        wanted = (call.tasks, call.threads or self.share)
        if self.worker is None or self.serves != wanted:
            self.end_worker()
            self.worker = LocalExecutor(wanted[0], 1, wanted[1], environment=without_rank(os.environ))
            self.serves = wanted
        return self.worker

    def end_worker(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.close(cancel=True)

    def hear(self) -> set[str]:
        """The executors whose tasks are to end."""
        from mpi4py import MPI

        while MPI.COMM_WORLD.iprobe(tag=CANCEL):
            self.cancelled.add(MPI.COMM_WORLD.recv(tag=CANCEL))
        return self.cancelled


_rank = _Rank()


def set_share(threads: int) -> None:
    """How many threads a worker of this rank gets where the driver does not say."""
    _rank.share = threads


def run(call: Call) -> Done | Failed | None:
    """Run one task to its end; None if it was cancelled. The value of `Done` is left on disk."""
    folder = TaskFolder(Path(call.tasks), call.key)
    try:
        worker = _rank.worker_for(call)
        worker.submit(call.key, call.function, folder.read_payload())
        while call.executor not in _rank.hear():
            for event in worker.outcomes(LISTEN):
                match event:
                    case Started():
                        progress.begin(folder)
                    case Progress(value=value):
                        progress.append(folder, value)
                    case Done():
                        return Done(call.key, None)
                    case Failed():
                        return event
    except BaseException:
        _rank.end_worker()  # which may still be at the task
        raise
    _rank.end_worker()
    return None


def end_worker() -> int:
    """End this rank's worker process; returns the rank."""
    from mpi4py import MPI

    _rank.end_worker()
    _rank.hear()
    return int(MPI.COMM_WORLD.rank)


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is no rank: what it starts must not take itself for this one."""
    return {name: value for name, value in environment.items() if name not in _NAMES and not name.startswith(_PREFIXES)}
