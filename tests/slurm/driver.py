"""A driver that kills itself with SIGKILL at a given instant: ``python driver.py FOLDER INSTANT COUNT``.

INSTANT is one of INSTANTS, or "watching": as soon as a task reports.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pynas.runtime import slurm, slurm_submit
from pynas.runtime.executor import Progress
from pynas.runtime.slurm_arrays import Array

INSTANTS = ("written down", "submitted", "held", "released")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(instant: str) -> None:
    """Replace what comes just after the instant by the end of the process."""
    match instant:
        case "written down":
            slurm_submit.outside_job = die  # type: ignore[assignment]
        case "submitted":
            Array.number = die  # type: ignore[assignment,method-assign]
        case "held":
            slurm.slurm_jobs.release = die  # type: ignore[assignment]
        case "released":
            write = Array.write

            def write_unless_free(array: Array) -> None:
                die() if array.stage == "free" else write(array)

            Array.write = write_unless_free  # type: ignore[method-assign]


def submit(executor: slurm.SlurmExecutor, folder: Path, count: int) -> None:
    for index in range(count):
        runs = str(folder / f"runs-{index}")
        executor.submit(f"1/{index}", "slurm_tasks:mark", {"runs": runs, "until": str(folder / "go"), "value": index})


def main(folder: Path, instant: str, count: int) -> None:
    arm(instant)
    executor = slurm.SlurmExecutor(folder / "tasks", 2)
    submit(executor, folder, count)
    for event in executor.outcomes():
        if isinstance(event, Progress):
            die()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
