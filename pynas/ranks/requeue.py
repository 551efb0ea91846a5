"""Whether and how a job of Slurm puts itself back into the queue."""

from __future__ import annotations

import os
import re
import subprocess
import time

TRIES, WAIT, TIMEOUT = 3, 2.0, 20.0  # how often Slurm is asked, and seconds between two tries and for each


def in_slurm_job() -> bool:
    """Whether this process belongs to a job of Slurm."""
    return "SLURM_JOB_ID" in os.environ


def restarts() -> int:
    """How often Slurm has started this job again, 0 the first time."""
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() else 0


def requeue() -> str:
    """Put this process's job back into the queue, unless it was cancelled; returns in one line what came of it.

    Never raises. The job ends at once when this succeeds, so it is the last thing to do. Takes at most about a minute.
    """
    if not in_slurm_job():
        return "not requeued: this is no job of Slurm"
    job = _job_id()
    said = "Slurm did not say why"
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT)
        state, said = _state()
        if state is None:
            continue
        if state in ("CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"):
            return f"not requeued: job {job} is {state}"
        if state in ("PREEMPTED", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return f"job {job} is {state}: Slurm itself requeues what it may"
        done, said = _run("scontrol", "requeue", job)
        if done:
            return f"job {job} is requeued"
        if "disabled" in said.lower():  # "Requested operation is presently disabled": the job asked for --no-requeue
            break
    return f"job {job} could not be requeued: {said}"


def _job_id() -> str:
    """The id that commands take: of an array's task that of the array and the task's number."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _state() -> tuple[str | None, str]:
    """The job's state in full letters, or None and what Slurm said instead.

    A job that was cancelled and one whose time is up are both COMPLETING while their processes end; of these the one
    that has had all of its time is called TIMEOUT, the other CANCELLED.
    """
    done, text = _run("scontrol", "--oneliner", "show", "job", _job_id())
    if not done:
        return None, text
    fields = dict(re.findall(r"(?<!\S)(\w+)=(\S*)", text.partition("\n")[0]))
    state = fields.get("JobState", "")
    if state == "COMPLETING":
        used, limit = _seconds(fields.get("RunTime", "")), _seconds(fields.get("TimeLimit", ""))
        state = "TIMEOUT" if used is not None and limit is not None and used >= limit else "CANCELLED"
    return (state, text) if state else (None, "scontrol does not tell its state")


def _seconds(text: str) -> int | None:
    """Of Slurm's DAYS-HH:MM:SS; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _run(*command: str) -> tuple[bool, str]:
    """Whether a command of Slurm succeeded, and its output or the last line of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return False, f"{command[0]} did not answer within {TIMEOUT:.0f} s"
    except OSError as error:
        return False, f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return True, done.stdout.strip()
    lines = done.stderr.strip().splitlines() or [f"{command[0]} exited with status {done.returncode}"]
    return False, lines[-1]
