"""How an array of candidates is submitted: with which of submitit's parameters, and what sbatch may say to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pynas.errors import PynasError
from pynas.runtime import slurm_jobs
from pynas.runtime.slurm_arrays import Array
from pynas.runtime.slurm_task import run
from pynas.runtime.submit import auto_executor, check_parameters, outside_job, refusal

ONE_TASK = "a candidate is one task on one node"
RESERVED = {
    **dict.fromkeys(("nodes", "tasks_per_node", "slurm_nodes", "slurm_tasks_per_node"), ONE_TASK),
    "slurm_ntasks_per_node": ONE_TASK,
    "slurm_array_parallelism": "executor.workers tells how many candidates run at once",
    **dict.fromkeys(("slurm_job_name", "slurm_name"), "use name"),
    **dict.fromkeys(("stderr_to_stdout", "slurm_stderr_to_stdout"), "what a job says last is read from its stderr"),
}
RESERVED_EXTRA = ("array", "hold", "job-name", "job_name", "J")
BUSY = ("Unable to contact slurm controller", "Socket timed out", "temporarily", "Zero Bytes were transmitted")


class Submitter:
    """Submits arrays, held, whose tasks lie in `tasks`; submitit keeps its files in `home`.

    Raises PynasError for a parameter that submitit does not take or pynas sets itself, without submitit or sbatch.
    """

    def __init__(self, home: Path, tasks: Path, parameters: Mapping[str, Any], threads: int | None) -> None:
        check_parameters(parameters, reserved=RESERVED)
        for option in RESERVED_EXTRA:
            if option in (parameters.get("slurm_additional_parameters") or {}):
                raise PynasError(f"executor.slurm.slurm_additional_parameters.{option}: cannot be set, pynas sets it")
        self.prefix = parameters.get("name") or "pynas"  # of the names of arrays
        self._home, self._tasks = home, tasks
        self._parameters = {name: value for name, value in parameters.items() if name != "name"}
        self._threads = threads or "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}"
        self._executor(self.prefix, 1)  # a mistake shows before anything is submitted

    def submit(self, array: Array) -> str | None:
        """The id of the array in Slurm; None where Slurm has no time now and may or may not have taken it.

        Raises:
            PynasError: sbatch refuses it.
        """
        count = len(array.jobs)
        functions = [job.function for job in array.jobs.values()]
        try:
            with outside_job():
                jobs = self._executor(array.name, array.limit).map_array(
                    run, [str(self._tasks)] * count, [*array.jobs], functions, [array.token] * count
                )
        except RuntimeError as error:  # submitit's, with what sbatch has said
            said = refusal(error)
            if any(word in said for word in BUSY):
                return None
            raise PynasError(f"executor.slurm: sbatch refused the jobs: {said}") from error
        return slurm_jobs.parent(jobs[0].job_id)

    def _executor(self, name: str, limit: int) -> Any:
        return auto_executor(
            self._home,
            self._parameters,
            name=name,
            slurm_array_parallelism=limit,
            slurm_additional_parameters={"hold": True},
            slurm_use_srun=False,  # a job is one process; a step for it would cost time and a second log
            slurm_setup=[f"export {library}_NUM_THREADS={self._threads}" for library in ("OMP", "MKL", "OPENBLAS")],
        )
