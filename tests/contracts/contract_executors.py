"""The executors that the contract is tested on. A new one is added here and is tested by all of `test_executors.py`.

The default is what every machine can run. PYNAS_CONTRACT names another kind, which needs something around it: "mpi"
ranks (see tests/mpi/test_mpi_executor.py), "slurm" a cluster (see tests/slurm).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pynas.runtime.executor import Executor
from pynas.runtime.local import LocalExecutor


@dataclass(frozen=True)
class Kind:
    """How to make an executor with a number of slots on a folder, and what is to be expected of this kind."""

    make: Callable[[Path, int], Executor]
    notice: float = 1.0  # seconds within which news reach the driver
    ends_with_driver: bool = True  # whether tasks end where their driver is killed
    hears_signals: bool = True  # whether the reason of a lost task tells how its process ended, in the words of `local`
    extra_files: bool = False  # whether a task's folder holds more than payload, log and result


def local(folder: Path, slots: int) -> Executor:
    return LocalExecutor(folder, slots)


def mpi(folder: Path, slots: int) -> Executor:
    from mpi4py.futures import MPIPoolExecutor

    from pynas.runtime.mpi import MPIExecutor

    return MPIExecutor(folder, MPIPoolExecutor(), workers=slots)


def slurm(folder: Path, slots: int) -> Executor:
    from pynas.runtime.slurm import SlurmExecutor

    return SlurmExecutor(folder, workers=slots, parameters={"timeout_min": 5}, threads=1, retries=0)


KINDS = {
    "local": Kind(local),
    # A driver that is killed takes the ranks along by way of the launcher, which is tested with whole searches.
    "mpi": Kind(mpi, ends_with_driver=False, extra_files=True),
    "slurm": Kind(slurm, notice=10.0, ends_with_driver=False, hears_signals=False, extra_files=True),
}
CHOSEN = os.environ.get("PYNAS_CONTRACT", "local").split(",")
