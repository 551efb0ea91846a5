"""Which launcher started this process as one of several ranks, told from environment variables alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Launcher = Literal["torchrun", "mpirun", "srun"]


@dataclass(frozen=True)
class Launch:
    """What the launcher says of this process. The rank is a hint until `ranks.place` has asked the library itself."""

    launcher: Launcher
    rank: int
    size: int  # how many ranks were started, 2 at least


def detect(environment: Mapping[str, str]) -> Launch | None:
    """The launch that this process is part of, or None where it was started alone or as a single rank.

    A batch script and a shell of `salloc` are no ranks: they have the variables of a job, not those of a step.
    """
    # Whoever stands nearer to the process is asked first: torchrun and mpirun start their own helpers through srun.
    launches: list[tuple[Launcher, str, str, str]] = [
        ("torchrun", "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"),
        ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("mpirun", "MPI_LOCALNRANKS", "PMI_RANK", "PMI_SIZE"),  # hydra: of MPICH, MVAPICH and Intel MPI
        ("srun", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ("mpirun", "PMI_RANK", "PMI_RANK", "PMI_SIZE"),
    ]
    for launcher, sign, rank, size in launches:
        if sign in environment:
            numbers = _number(environment, rank), _number(environment, size)
            if numbers[0] is not None and numbers[1] is not None:
                return Launch(launcher, numbers[0], numbers[1]) if numbers[1] > 1 else None
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None
