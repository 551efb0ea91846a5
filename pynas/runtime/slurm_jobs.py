"""What Slurm knows of jobs, asked through its clients, for many jobs at a time; with accounting or without.

Every client gets `PATIENCE` seconds. A controller that does not answer is told apart from a job that is not known: the
former is None in place of an answer.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

PATIENCE = 30.0  # seconds a client gets to answer in
BATCH = 500  # job ids in one command line

COMPLETED = "COMPLETED"
LOST = frozenset(["BOOT_FAIL", "NODE_FAIL", "PREEMPTED"])  # through no fault of the program
ENDED = LOST | {COMPLETED, "CANCELLED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as Slurm has it: `id` is "12" or, in an array, "12_3"; `state` a long name such as "RUNNING".

    `exit_code` is "status:signal", known of jobs that have ended; `node` may be a list; `reason` is Slurm's word for
    why a job waits or how it ended. Empty where not known.
    """

    id: str
    state: str
    exit_code: str = ""
    node: str = ""
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def query(ids: Iterable[str]) -> dict[str, JobState] | None:
    """The states of jobs, with the exit codes of those that have ended; jobs that Slurm does not know are left out.

    None where Slurm does not answer.
    """
    wanted = set(ids)
    found = states(wanted)
    if found is None:
        return None
    unsure = [job for job in wanted if job not in found or found[job].ended]
    return {**found, **details(unsure)}


def states(ids: Iterable[str]) -> dict[str, JobState] | None:
    """The states of jobs by squeue alone, in one call and without exit codes. None where Slurm does not answer."""
    wanted = set(ids)
    parents = sorted({parent(job) for job in wanted})
    if not parents:
        return {}
    found: dict[str, JobState] = {}
    for start in range(0, len(parents), BATCH):
        batch = parents[start : start + BATCH]
        # Several ids make squeue fetch every job there is, unless it is told of one user.
        mine = ["--me"] if len(batch) > 1 else []
        command = ["squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%N|%r", *mine, "-j", ",".join(batch)]
        answer = _ask(command)
        if answer is None:
            return None
        for line in answer.splitlines():
            name, state, node, reason = (*line.split("|"), "", "", "")[:4]
            for job in expand(name):
                if job in wanted:
                    found[job] = JobState(job, state, node=node, reason=reason)
    return found


def details(ids: Iterable[str]) -> dict[str, JobState]:
    """What scontrol and, where there is accounting, sacct say of jobs, exit codes included."""
    wanted = set(ids)
    found: dict[str, JobState] = {}
    for array in sorted({parent(job) for job in wanted}):
        for line in (_ask(["scontrol", "-o", "show", "job", array]) or "").splitlines():
            fields = dict(re.findall(r"(?<!\S)(\w+)=(\S*)", line))
            name = fields.get("JobId", "")
            if "ArrayTaskId" in fields:
                name = f"{fields['ArrayJobId']}_{_bracketed(fields['ArrayTaskId'])}"
            node, reason = (fields.get(field, "").replace("(null)", "") for field in ("NodeList", "Reason"))
            for job in expand(name):
                if job in wanted:
                    found[job] = JobState(job, fields["JobState"], fields.get("ExitCode", ""), node, reason)
    missing = sorted({parent(job) for job in wanted - found.keys()})
    if missing and has_accounting():
        command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", ",".join(missing)]
        for line in (_ask(command) or "").splitlines():
            name, state, exit_code, node = (*line.split("|"), "", "", "")[:4]
            for job in expand(name):
                if job in wanted - found.keys() and state:
                    found[job] = JobState(job, state.split()[0], exit_code, node)  # "CANCELLED by 1000"
    return found


def find(name: str) -> list[str] | None:
    """The ids of this user's jobs and arrays of a name that are in the queue. None where Slurm does not answer."""
    answer = _ask(["squeue", "-h", "-a", "--me", "-n", name, "-o", "%F"])
    return None if answer is None else sorted(set(answer.split()))


def cancel(ids: Iterable[str], *, waiting_only: bool = False) -> bool:
    """End jobs, or only those that wait; one that has ended is no error. False where Slurm does not answer."""
    some = sorted(set(ids))
    only = ["--state=PENDING"] if waiting_only else []
    batches = [some[start : start + BATCH] for start in range(0, len(some), BATCH)]
    answers = [_ask(["scancel", *only, *batch]) for batch in batches]
    return None not in answers


def wait_until_gone(ids: Iterable[str], seconds: float) -> bool:
    """Wait until none of the jobs runs or can run. False if that takes longer than `seconds`."""
    some, deadline = set(ids), time.monotonic() + seconds
    while True:
        found = states(some)
        if found is not None and all(state.ended for state in found.values()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def release(job: str) -> bool:
    """Let a held job or array go. False where Slurm does not answer."""
    return _ask(["scontrol", "release", job]) is not None


def set_limit(array: str, limit: int) -> bool:
    """Let `limit` tasks of an array run at once. False where Slurm does not answer or will not."""
    return _ask(["scontrol", "update", f"JobId={array}", f"ArrayTaskThrottle={limit}"]) is not None


@functools.cache
def largest_array() -> int:
    """How many tasks an array may have (MaxArraySize); 1000 where Slurm does not say."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]) or "", re.MULTILINE)
    return max(1, int(match[1])) if match else 1000


@functools.cache
def has_accounting() -> bool:
    """Whether sacct works here; without accounting it ends with an error."""
    return _run(["sacct", "-n", "-X", "-j", "1"])[0] == 0


def parent(job: str) -> str:
    """ "12" of "12_3"."""
    return job.partition("_")[0]


def expand(job: str) -> list[str]:
    """The jobs that an id stands for: "12_[3-5,8%2]" is what Slurm calls the waiting tasks of an array."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if match is None:
        return [job]
    found = []
    for part in match[2].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        found += [f"{match[1]}_{index}" for index in range(int(first), int(last or first) + 1, int(step or 1))]
    return found


def ending(exit_code: str) -> str:
    """Slurm's "status:signal" in words; a shell's status above 128 is the signal that ended what it ran."""
    status, _, number = exit_code.partition(":")
    if not (status.isdigit() and number.isdigit()):
        return ""
    ended_by = int(number) or (int(status) - 128 if 128 < int(status) < 193 else 0)
    if not ended_by:
        return f"exited with status {int(status)}"
    try:
        name = signal.Signals(ended_by).name
    except ValueError:
        return f"killed by signal {ended_by}"
    memory = ", perhaps out of memory" if name == "SIGKILL" else ""
    return f"killed by signal {ended_by} ({name}{memory})"


def _bracketed(indices: str) -> str:
    return indices if indices.isdigit() else f"[{indices}]"


def _ask(command: list[str]) -> str | None:
    """What a client printed; an id that Slurm does not know, or a job that has ended, is a good answer too."""
    status, output, errors = _run(command)
    if status == 0:
        return output
    known = ("Invalid job id", "Job/step already completing or completed", "Job has already finished")
    return output if any(word in errors for word in known) else None


def _run(command: list[str]) -> tuple[int, str, str]:
    """A client's exit status, output and errors, whatever options the environment holds for it."""
    options = ("SQUEUE_", "SCANCEL_", "SCONTROL_", "SACCT_", "SLURM_CLUSTERS", "SLURM_JOB_ID", "SLURM_JOBID")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(options)}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr
