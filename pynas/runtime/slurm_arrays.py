"""The job arrays that a driver has submitted, on disk before Slurm hears of them: STUDY/slurm/arrays/TOKEN.json.

An array is submitted under a name that holds its token, and held; it is let go once its id is on disk. A driver that is
killed at any instant therefore leaves either an array whose id its successor reads, or one of which no task has begun
and which is found by its name.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynas.errors import PynasError
from pynas.files import write_whole
from pynas.runtime import slurm_jobs
from pynas.runtime.progress import Tail
from pynas.runtime.task import Result, TaskFolder

CANNOT_OPEN = "0:53"  # Slurm's exit code of a job whose files for output it cannot open


@dataclass(slots=True)
class Job:
    """One task as a Slurm job. `attempt` counts from 1; `digest` tells what was asked."""

    folder: TaskFolder
    function: str
    digest: str
    attempt: int = 1
    id: str = ""  # "12_3"; empty until it is submitted
    array: str = ""  # the array's token
    state: slurm_jobs.JobState | None = None  # when Slurm was asked last
    begun: bool = False
    unknown: int = 0  # times in a row that Slurm did not know it
    over_since: float | None = None  # by time.monotonic(): since when Slurm has had it as ended, or not at all
    tail: Tail | None = None
    failed: bool = False

    @property
    def waits(self) -> bool:
        """Whether Slurm had it waiting when it was asked last."""
        return self.state is not None and self.state.state == "PENDING"

    def result(self) -> Result | None:
        """The result of what was asked, if it is there."""
        result = self.folder.read_result() if self.folder.result.exists() else None
        return result if result is not None and result.digest == self.digest else None

    def failure(self) -> str | None:
        """The exception that ended the run of this very array, if one did."""
        try:
            failure = json.loads(self.folder.failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(failure["reason"]) if failure.get("array") == self.array else None

    def look_anew(self) -> None:
        """Have a network file system show what other machines have put into the folder."""
        for _ in os.scandir(self.folder.path):
            pass

    def forget_runs(self) -> None:
        """Remove what earlier runs of the task have left."""
        for path in (self.folder.failure, self.folder.progress, self.folder.job):
            path.unlink(missing_ok=True)


@dataclass(slots=True, eq=False)
class Array:
    """An array of jobs, `limit` of which may run at once, under a name that no other has.

    `stage` is "new" (Slurm may or may not know it), "held", "free" or "cancelled".
    """

    path: Path
    name: str
    limit: int
    jobs: dict[str, Job]  # by key, in the order of their indices
    stage: str = "new"
    id: str = ""
    made: float = field(default_factory=time.time)  # seconds since the epoch
    left: set[str] = field(default_factory=set)  # keys of tasks without an outcome

    @classmethod
    def of(cls, folder: Path, jobs: list[Job], limit: int, prefix: str) -> Array:
        token = uuid.uuid4().hex[:12]
        by_key = {job.folder.key: job for job in jobs}
        return cls(folder / f"{token}.json", f"{prefix}-{token}", limit, by_key, left=set(by_key))

    @classmethod
    def read(cls, path: Path, tasks: Path) -> Array:
        """Raises ValueError, KeyError or TypeError where the file is none of ours."""
        values = json.loads(path.read_text(encoding="utf-8"))
        jobs = {entry["key"]: Job(TaskFolder(tasks, entry.pop("key")), **entry) for entry in values.pop("tasks")}
        number = values.pop("id")
        array = cls(path, jobs=jobs, left=set(jobs), **values)
        if number:
            array.number(number)
        return array

    @property
    def token(self) -> str:
        return self.path.stem

    @property
    def active(self) -> int:
        """How many of its tasks run or wait."""
        return sum(self.jobs[key].over_since is None for key in self.left)

    def number(self, job: str) -> None:
        """The array, or the only job, has got its id."""
        self.id = job
        for index, entry in enumerate(self.jobs.values()):
            entry.id = f"{job}_{index}" if len(self.jobs) > 1 else job
            entry.array = self.token
            entry.tail = Tail(entry.folder)

    def write(self) -> None:
        tasks = [
            {"key": job.folder.key, "function": job.function, "digest": job.digest, "attempt": job.attempt}
            for job in self.jobs.values()
        ]
        values = {name: getattr(self, name) for name in ("name", "limit", "stage", "id", "made")}
        write_whole(self.path, json.dumps({**values, "tasks": tasks}))

    def write_jobs(self) -> None:
        """Tell in the tasks' folders which job runs them, for people and `pynas status`."""
        for job in self.jobs.values():
            values: dict[str, Any] = {"job": job.id, "array": self.token, "attempt": job.attempt}
            # Nothing depends on it, so it need not be on disk before the next one is written.
            temporary = job.folder.path / f".job.{os.getpid()}.json"
            temporary.write_text(json.dumps(values), encoding="utf-8")
            os.replace(temporary, job.folder.job)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def errors(self, job: Job) -> Path:
        """The stderr of a job, as far as it is not the task's."""
        return self.path.parents[1] / f"{job.id}_0_log.err"

    def clean(self) -> None:
        """Remove what submitit keeps of its jobs; of those that failed, only the pickle they were given."""
        for job in self.jobs.values():
            names = ["submitted.pkl"] if job.failed else ["submitted.pkl", "0_result.pkl", "0_log.out", "0_log.err"]
            for name in names:
                (self.path.parents[1] / f"{job.id}_{name}").unlink(missing_ok=True)


def check_left(tasks: Path) -> None:
    """Before another executor takes up the tasks: make sure that no job of Slurm is at them still.

    What is on record of jobs that have all ended is removed. Raises PynasError where jobs run or wait, or Slurm is
    here and does not say. Without Slurm's clients this is another machine than the one they were submitted from.
    """
    records = sorted((tasks.absolute().parent / "slurm" / "arrays").glob("*.json"))
    if not records or shutil.which("squeue") is None:
        return
    arrays = []
    for path in records:
        with suppress(ValueError, KeyError, TypeError):  # not written by this version
            arrays.append(Array.read(path, tasks))
    jobs = {job.id for array in arrays for job in array.jobs.values() if job.id}
    found = slurm_jobs.states(jobs)
    named = [slurm_jobs.find(array.name) for array in arrays if not array.id]
    if found is None or None in named:
        raise PynasError(f"{tasks.parent}: Slurm does not say whether candidates of this study still run there")
    active = {slurm_jobs.parent(state.id) for state in found.values() if not state.ended}
    active |= {job for ids in named for job in ids or ()}
    if active:
        raise PynasError(
            f"{tasks.parent}: candidates of this study still run or wait on Slurm (jobs {', '.join(sorted(active))}); "
            f"go on with --executor slurm, or end them first: scancel {' '.join(sorted(active))}"
        )
    for path in records:
        path.unlink(missing_ok=True)


def reason(job: Job, errors: Path, lines: int = 3) -> str:
    """Why a job that ended without an outcome failed, in one line: where, state, exit code, what it said last."""
    state = job.state
    if state is None:
        head = f"job {job.id}: Slurm no longer knows it, and it left no result"
    else:
        where = f" on {state.node}" if state.node else ""
        meaning = slurm_jobs.ending(state.exit_code) if state.exit_code != CANNOT_OPEN else "Slurm's own"
        code = f", exit code {state.exit_code} ({meaning})" if state.exit_code else ""
        why = f", {state.reason}" if state.reason not in ("", "None", "NonZeroExitCode", "JobLaunchFailure") else ""
        result = " without a result" if state.state == slurm_jobs.COMPLETED else ""
        head = f"job {job.id}{where}: {state.state}{result}{code}{why}"
    said = (
        [*_last_lines(job.folder.log, lines), *_last_lines(errors, lines)] if job.begun else _last_lines(errors, lines)
    )
    if said:
        return f"{head}: {' | '.join(said)}"
    if state is not None and state.exit_code == CANNOT_OPEN and not job.begun:
        return (
            f"{head}: the node could not open the job's log in {errors.parent}; is the study on a shared file system?"
        )
    return f"{head}; see {job.folder.log}"


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip()[:200] for line in text.splitlines() if line.strip()][-count:]
