"""Where a study stands, read off its directory while a driver works there, and after it has died."""

from __future__ import annotations

import json
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pynas.errors import PynasError
from pynas.report.tables import percent
from pynas.runtime.progress import Tail
from pynas.runtime.slurm_jobs import LOST, JobState, states
from pynas.runtime.task import TaskFolder
from pynas.search.config import LATER
from pynas.search.opening import open_config
from pynas.search.results import plain
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial
from pynas.train.directory import RunDirectory
from pynas.train.log import read_log

State = Literal["running", "waiting", "finished", "failed"]
STATES: tuple[State, ...] = ("running", "waiting", "finished", "failed")
ORDINARY = ("", "None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime")  # reasons to wait that will pass
ASK = 5.0  # seconds that Slurm gets to answer
WIDTH = 160  # characters of a line where there is no terminal


@dataclass(frozen=True)
class Candidate:
    """One training of a study. `seconds` are those of its training; `news` is the age of its last sign of life in
    seconds, where it runs. `recorded`: whether the journal has its outcome; if not, the next driver takes it in."""

    study: str
    key: str
    state: State
    epoch: int
    epochs: int
    accuracy: float | None
    seconds: float | None
    news: float | None
    job: str | None
    job_state: str | None
    reason: str | None
    recorded: bool
    log: str


@dataclass(frozen=True)
class Status:
    """A study. `driver` is who holds it, None where nobody does; `finished`: whether there is nothing left to do."""

    directory: str
    driver: str | None
    finished: bool
    counts: dict[State, int]
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> Any:
        return plain(self)


def read_status(path: str | Path) -> Status:
    """The status of the study at `path`; changes nothing there. Raises PynasError where there is no study."""
    directory = StudyDirectory.open(path)
    config = open_config(directory)
    driver = directory.holder()
    left = any((directory.path / "slurm" / "arrays").glob("*.json"))  # of a driver that died, whatever the next one is
    on_slurm = config.executor.kind == "slurm" or left
    # In a supernet all of a search is one training, whose trials are its epochs.
    in_supernet = config.method == "fpnas"
    found = [_search(directory, name, on_slurm) for name in config.budgets] if in_supernet else []
    found += [
        _candidate(name, trial, TaskFolder(directory.tasks, f"{name}/{trial.key}"), on_slurm)
        for name in (LATER if in_supernet else (config.JOURNAL, *LATER))
        for trial in _trials(directory, name)
    ]
    jobs = _ask_slurm({c.job for c in found if c.job is not None and not c.recorded})
    candidates = tuple(_settled(candidate, jobs, driver) for candidate in found)
    over = all((directory.winners / f"{name}.yaml").is_file() for name in config.budgets)
    return Status(
        directory=str(directory.path),
        driver=driver,
        finished=over and driver is None and all(c.recorded for c in candidates),
        counts=_counts(candidates),
        candidates=candidates,
    )


def _trials(directory: StudyDirectory, name: str) -> tuple[Trial, ...]:
    try:
        return Study.open(directory, name, read_only=True).trials()
    except PynasError:
        if name not in LATER:
            raise
        return ()  # the search has not come that far, or nobody has asked


def _candidate(study: str, trial: Trial, folder: TaskFolder, on_slurm: bool) -> Candidate:
    """What journal and task folder say; whether an unfinished candidate runs is left open."""
    job = _read(folder.job).get("job") if on_slurm else None
    candidate = Candidate(
        study=study,
        key=trial.key,
        state="finished" if trial.state == "complete" else trial.state,
        epoch=len(trial.curve),
        epochs=trial.epochs,
        accuracy=trial.accuracy if trial.finished or not trial.curve else trial.curve[-1],
        seconds=trial.seconds,
        news=None,
        job=str(job) if job else None,
        job_state=None,
        reason=trial.reason,
        recorded=trial.finished,
        log=str(folder.log),
    )
    if trial.finished:
        return candidate
    if (result := folder.read_result()) is not None and isinstance(result.value, dict):
        value = result.value
        return replace(
            candidate,
            state="finished",
            epoch=len(value.get("curve", ())),
            accuracy=value.get("accuracy"),
            seconds=value.get("seconds"),
        )
    if on_slurm and (reason := _read(folder.failure).get("reason")):
        return replace(candidate, state="failed", reason=str(reason))
    return _with_progress(candidate, folder)


def _search(directory: StudyDirectory, name: str, on_slurm: bool) -> Candidate:
    """The search of a budget in a supernet: what its log and its task's folder say."""
    run, folder = RunDirectory(directory.searches / name), TaskFolder(directory.tasks, f"search/{name}")
    rows = [row for row in read_log(run.log) if row.get("event") == "epoch"]
    settings = _read(run.settings).get("search", {})
    result = run.read_result()
    job = _read(folder.job).get("job") if on_slurm else None
    reason = _read(folder.failure).get("reason") if on_slurm and result is None else None
    times = [file.stat().st_mtime for file in (run.log, run.settings) if file.exists()]
    return Candidate(
        study="search",
        key=name,
        state="finished" if result else "failed" if reason else "running" if times else "waiting",
        epoch=len(rows),
        epochs=settings.get("epochs", 0),
        accuracy=rows[-1]["accuracy"] if rows else None,
        seconds=sum(row["seconds"] for row in rows) if result else None,
        news=max(0.0, round(time.time() - max(times), 1)) if times and not result else None,
        job=str(job) if job else None,
        job_state=None,
        reason=reason,
        recorded=result is not None,
        log=str(folder.log),
    )


def _with_progress(candidate: Candidate, folder: TaskFolder) -> Candidate:
    tail = Tail(folder)
    reported = tail.new()
    if tail.begun:
        candidate = replace(candidate, state="running")
    if reported and reported[-1]["epoch"] > candidate.epoch:
        candidate = replace(candidate, epoch=reported[-1]["epoch"], accuracy=reported[-1]["accuracy"])
    times = [file.stat().st_mtime for file in (folder.progress, folder.log) if file.exists()]
    return replace(candidate, news=max(0.0, round(time.time() - max(times), 1)) if times else None)


def _settled(candidate: Candidate, jobs: dict[str, JobState], driver: str | None) -> Candidate:
    """With what Slurm says of its job; without a job, what is not finished runs only while there is a driver."""
    if candidate.recorded or candidate.state in ("finished", "failed"):
        return candidate
    job = jobs.get(candidate.job or "")
    if job is not None:
        why = job.reason if job.state == "PENDING" and job.reason not in ORDINARY else ""
        candidate = replace(candidate, job_state=f"{job.state} {why}".strip())
        if job.state in LOST or job.state == "PENDING":
            candidate = replace(candidate, state="waiting")
        elif job.ended and job.state != "COMPLETED":
            candidate = replace(candidate, state="failed", reason=f"job {job.id}: {job.state}")
        else:
            candidate = replace(candidate, state="running")
    elif candidate.job is None and driver is None:
        candidate = replace(candidate, state="waiting")
    return candidate if candidate.state == "running" else replace(candidate, news=None)


def _ask_slurm(ids: set[str]) -> dict[str, JobState]:
    """What Slurm says of the jobs within a few seconds; nothing where it is slow or absent."""
    answer: list[dict[str, JobState]] = []
    if ids:
        asking = threading.Thread(target=lambda: answer.append(states(ids) or {}), daemon=True)
        asking.start()
        asking.join(ASK)
    return answer[0] if answer else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _counts(candidates: Iterable[Candidate]) -> dict[State, int]:
    counted = Counter(candidate.state for candidate in candidates)
    return {state: counted[state] for state in STATES}


# As text --------------------------------------------------------------------------------------------------------------


def as_lines(status: Status, width: int, only: Iterable[str] = ()) -> list[str]:
    """The status for people, in lines of at most `width` characters where words allow; `only` some states."""
    wanted = {*only} or {*STATES}
    lines = []
    for study in dict.fromkeys(candidate.study for candidate in status.candidates):
        of_study = [candidate for candidate in status.candidates if candidate.study == study]
        if shown := [candidate for candidate in of_study if candidate.state in wanted]:
            lines += [f"{study}, logs under {Path(status.directory).name}/tasks/{study}/", *_table(shown, width)]
            lines.append("")
    total = ", ".join(f"{number} {state}" for state, number in status.counts.items() if number) or "no candidates yet"
    return [*lines, f"{status.directory}: {total}", _driver(status)]


def _driver(status: Status) -> str:
    if status.driver is not None:
        return f"driven by {status.driver}"
    if status.finished:
        return "the search is finished"
    waiting = sum(not candidate.recorded and candidate.state == "finished" for candidate in status.candidates)
    jobs = sum(candidate.job is not None and candidate.state == "running" for candidate in status.candidates)
    facts = [f"{jobs} jobs go on by themselves"] * bool(jobs) + [f"{waiting} results are to be taken in"] * bool(
        waiting
    )
    return f"no driver is running{''.join(f', {fact}' for fact in facts)}; go on with the command that began the study"


def _table(candidates: list[Candidate], width: int) -> list[str]:
    with_jobs = any(candidate.job for candidate in candidates)
    heading = ["key", "state", "epoch", "acc. %", "time", *(["job"] if with_jobs else []), "log"]
    rows = [heading]
    for c in candidates:
        row = [c.key, c.state, f"{c.epoch}/{c.epochs}", percent(c.accuracy), _time(c)]
        row += [f"{c.job or '–'} {c.job_state or ''}".strip()] if with_jobs else []
        rows.append([*row, f"{c.key}/{Path(c.log).name}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heading))]
    right = {"epoch", "acc. %", "time"}
    lines = []
    for row, candidate in zip(rows, [None, *candidates], strict=True):
        cells = [
            cell.rjust(w) if name in right else cell.ljust(w)
            for cell, w, name in zip(row, widths, heading, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
        if candidate is not None and candidate.reason:
            lines += textwrap.wrap(
                candidate.reason, max(width, 40), initial_indent="      ", subsequent_indent="      ", max_lines=3
            )
    return lines


def _time(candidate: Candidate) -> str:
    if candidate.seconds is not None:
        return _duration(candidate.seconds)
    return f"{_duration(candidate.news)} ago" if candidate.news is not None else "–"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
