"""A training that submits itself: one Slurm job whose ranks run the same command, found again and followed.

RUN/slurm/job.json        {"job": "12", "nodes", "tasks_per_node", "trains"} of the last job
RUN/slurm/12_0_log.out    what rank 0 printed, and beside it every rank's stdout (.out) and stderr (.err)
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.errors import PynasError
from pynas.files import FileLock, Locked, write_whole

if TYPE_CHECKING:
    from pynas.runtime.slurm_jobs import JobState

SIGNAL_DELAY = 90
"""Seconds before its limit at which a job is told to write a checkpoint."""

FORGOTTEN = "not known to Slurm any more"

PATIENCE = 60.0  # seconds to wait for another process that submits the same training
SILENCE = 120.0  # seconds without an answer from Slurm after which whoever follows a job is told
LOOK_EVERY = 1.0  # seconds between two looks at a job that is followed


@dataclass(frozen=True)
class TrainingJob:
    """A submitted training: its job, a hash of what that trains, and the folder of its logs."""

    job: str
    nodes: int
    tasks_per_node: int
    trains: str
    folder: Path

    @property
    def errors(self) -> Path:
        return self.folder / f"{self.job}_0_log.err"

    def record(self) -> None:
        values = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_whole(_record(self.folder), json.dumps(values) + "\n")

    @classmethod
    def recorded(cls, folder: Path) -> TrainingJob | None:
        """The last job that was submitted for this training, running or not; None where there was none."""
        try:
            return cls(**json.loads(_record(folder).read_text(encoding="utf-8")), folder=folder)
        except (OSError, ValueError, TypeError):
            return None


def _record(folder: Path) -> Path:
    return folder / "job.json"


@contextmanager
def submitting(run: Path) -> Iterator[None]:
    """Hold the lock under which a training is looked for and submitted, so that it has one job at a time.

    Raises PynasError where another process has it, or the directory cannot be made.
    """
    folder = run / "slurm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PynasError(f"{run}: cannot be made a directory: {error.strerror}") from None
    lock = FileLock(folder / "lock", f"the submission of {run}")
    deadline = time.monotonic() + PATIENCE
    while not lock.held:
        try:
            lock.acquire()
        except Locked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)  # sbatch takes another process a moment
    try:
        yield
    finally:
        lock.release()


def running(run: Path, nodes: int, tasks_per_node: int, trains: str) -> TrainingJob | None:
    """The training's job, where it has one that waits or runs.

    Raises PynasError where Slurm does not say, or where that job trains something else than `trains`. One whose id was
    not written down, for its driver was killed in that instant, is found by its name.
    """
    from pynas.runtime.slurm_jobs import find

    folder = run / "slurm"
    job = TrainingJob.recorded(folder)
    state = None if job is None else state_of(job.job)
    found = find(job_name(run)) if shutil.which("squeue") else []
    if found is None or (job is not None and state is None):
        raise PynasError(f"Slurm does not answer, so whether {run} has a job already is not known; try again later")
    if job is not None and state is not None and not is_over(state):
        if job.trains != trains:
            raise PynasError(
                f"{run}: job {job.job} is at it with other settings; wait for it, end it with scancel {job.job}, or "
                "name another directory with --dir"
            )
        return job
    if not found:
        return None
    job = TrainingJob(found[-1], nodes, tasks_per_node, trains, folder)
    job.record()
    return job


def submit(
    command: Sequence[str], run: Path, nodes: int, tasks_per_node: int, trains: str, parameters: Mapping[str, Any]
) -> TrainingJob:
    """Submit ``pynas COMMAND`` as one job of nodes x tasks_per_node ranks.

    `parameters` are those of submitit's AutoExecutor by name. Raises PynasError where Slurm or submitit refuse.
    """
    from pynas.runtime.submit import auto_executor, check_parameters, outside_job, refusal

    folder = run / "slurm"
    own = parameters.get("slurm_srun_args") or []
    if isinstance(own, str):
        raise PynasError(f"--slurm slurm_srun_args: {own!r} came; allowed is a list, such as [--exclusive]")
    shape = {"nodes": nodes, "tasks_per_node": tasks_per_node}
    set_here = {
        "slurm_signal_delay_s": SIGNAL_DELAY,
        **parameters,
        "name": job_name(run),
        "slurm_srun_args": ["--kill-on-bad-exit=1", *_mpi_option(), *own],  # of two the later counts
    }
    reserved = {
        **dict.fromkeys(("nodes", "slurm_nodes"), "--nodes says it"),
        **dict.fromkeys(
            ("tasks_per_node", "slurm_tasks_per_node", "slurm_ntasks_per_node"), "--tasks-per-node says it"
        ),
        **dict.fromkeys(("name", "slurm_name", "slurm_job_name"), "by its name a training's job is found again"),
    }
    for option in ("nodes", "ntasks", "ntasks-per-node", "job-name", "array"):
        if option in (parameters.get("slurm_additional_parameters") or {}):
            raise PynasError(f"--slurm slurm_additional_parameters: {option} cannot be set, pynas sets it")
    check_parameters(parameters, where="--slurm", reserved=reserved)
    executor = auto_executor(folder, {**set_here, **shape}, where="--slurm")
    try:
        with outside_job():
            job = executor.submit(run_command, list(command), os.getcwd())
    except Exception as error:  # submitit raises its own and subprocess's errors, with sbatch's words inside
        raise PynasError(f"sbatch refused the job: {refusal(error)}") from error
    submitted = TrainingJob(str(job.job_id), nodes, tasks_per_node, trains, folder)
    submitted.record()
    return submitted


def job_name(run: Path) -> str:
    """The name of a training's job in Slurm: no other directory's has it."""
    return f"pynas-{run.absolute().name}-{hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]}"


def resubmitted(arguments: Sequence[str]) -> list[str]:
    """The command line for the ranks: as it was given here, less what says that it is to be submitted."""
    with_value, alone = ("--nodes", "--tasks-per-node", "--slurm"), ("--detach",)
    kept: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument in with_value:
            position += 1
        elif argument not in alone and not argument.startswith(tuple(f"{name}=" for name in with_value)):
            kept.append(argument)
        position += 1
    return kept


def run_command(command: list[str], folder: str) -> None:
    """What each of the job's tasks runs: the command line, as if srun had started it there."""
    # submitit would answer the signals of the time limit itself, by requeuing before there is a checkpoint.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(folder)
    sys.argv = ["pynas", *command]
    runpy.run_module("pynas", run_name="__main__", alter_sys=True)  # as python -m pynas does


def _mpi_option() -> list[str]:
    """How srun has to start ranks for the MPI library that mpi4py was built with or found; nothing where unsure."""
    look = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        library = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60).stdout
        kinds = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    wanted = "pmix" if "Open MPI" in library else "pmi2" if "MPICH" in library or "Intel" in library else ""
    return [f"--mpi={wanted}"] if wanted and wanted in (kinds.stdout + kinds.stderr).split() else []


def state_of(job: str) -> JobState | None:
    """What Slurm knows of the job; of one it has forgotten, that. None where it does not answer."""
    from pynas.runtime.slurm_jobs import JobState, query

    found = query([job])
    return None if found is None else found.get(job, JobState(job, FORGOTTEN))


def is_over(state: JobState) -> bool:
    return state.ended or state.state == FORGOTTEN


def follow(job: TrainingJob, say: Callable[[str], None]) -> str:
    """Pass on what the job's rank 0 prints until the job has ended; returns Slurm's state, such as "COMPLETED".

    A job that requeues itself is waited for. KeyboardInterrupt leaves the job running.
    """
    tail = _Tail(job.errors)
    told, over, answered = "", False, time.monotonic()
    while not over:
        found = state_of(job.job)
        if found is not None:
            answered = time.monotonic()
        elif time.monotonic() - answered > SILENCE:
            say(f"job {job.job}: Slurm has not answered for {SILENCE / 60:.0f} minutes; still asking")
            answered = time.monotonic()
        if found is not None and found.state != told:
            told = found.state
            say(f"job {job.job}: {told}" + (f" ({found.reason})" if found.reason not in ("", "None") else ""))
        over = found is not None and is_over(found)
        for line in tail.lines():
            say(line)
        if not over:
            time.sleep(LOOK_EVERY)
    return told


class _Tail:
    """The lines that are added to a file, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def lines(self) -> list[str]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.decode(errors="replace").splitlines()
