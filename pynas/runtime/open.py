"""Which executor a configuration means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pynas.cores import available_cores
from pynas.errors import PynasError
from pynas.ranks.launch import detect
from pynas.runtime.executor import Executor
from pynas.runtime.slurm_arrays import check_left

if TYPE_CHECKING:
    from mpi4py.futures import MPIPoolExecutor

JOBS = 64  # candidates at once on Slurm, where the configuration does not say


def alone(kind: str) -> None:
    """Raises PynasError where a launcher started several processes of a driver whose executor needs one."""
    if (launch := detect(os.environ)) is not None:
        raise PynasError(
            f"executor {kind}: {launch.launcher} started {launch.size} processes of this search, "
            "which needs one; --executor mpi has them train candidates"
        )


def open_executor(
    kind: Literal["local", "slurm", "mpi"],
    folder: str | os.PathLike[str],
    *,
    workers: int | None = None,
    threads: int | None = None,
    retries: int = 2,
    slurm: Mapping[str, Any] | None = None,
    ranks: MPIPoolExecutor | None = None,
) -> AbstractContextManager[Executor]:
    """An executor whose tasks lie in `folder`. Closed at the end of its ``with`` block; an error there cancels tasks.

    What does not concern the kind is ignored, so that a study changes its executor by one word.

    Args:
        kind: local, slurm or mpi.
        folder: of the tasks, usually ``STUDY/tasks``.
        workers: tasks at once; None: one a core (local), all ranks but the first (mpi), 64 (slurm).
        threads: of each worker; None: the cores shared out (local, mpi), or what Slurm gave (slurm).
        retries: how often a task is submitted again that Slurm lost.
        slurm: parameters of submitit's AutoExecutor.
        ranks: of `pynas.runtime.mpi.pool`, for mpi.

    Raises:
        PynasError: a number is too small, a package is missing, Slurm's parameters are wrong, or jobs of Slurm are
            still at the tasks that another kind is to take up.
    """
    if kind == "slurm":
        from pynas.runtime.slurm import SlurmExecutor

        return SlurmExecutor(
            folder, workers=workers or JOBS, parameters=dict(slurm or {}), threads=threads, retries=retries
        )
    check_left(Path(folder))
    if kind == "mpi":
        from pynas.runtime.mpi import MPIExecutor

        if ranks is None:
            raise ValueError("an executor of kind mpi needs the ranks of pynas.runtime.mpi.pool")
        return MPIExecutor(folder, ranks, workers, threads)
    from pynas.runtime.local import LocalExecutor

    return LocalExecutor(folder, available_cores() if workers is None else workers, threads)
