"""SlurmExecutor: tasks as job arrays of a Slurm cluster. docs/clusters.md tells how it is meant."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pynas.errors import PynasError
from pynas.runtime import slurm_jobs
from pynas.runtime.executor import Done, Event, Executor, Failed, Progress, Started
from pynas.runtime.slurm_arrays import Array, Job, reason
from pynas.runtime.slurm_submit import Submitter
from pynas.runtime.task import TaskFolder, digest

ASK = 1.0  # seconds between two questions to Slurm, or ten times as long as it took to answer
PAUSES = (0.02, 0.5)  # seconds between two looks at the files: after news, and after a long time without
SLOWEST = 2.0  # seconds between two looks where a look takes long
GRACE = 3.0  # seconds for the outcome of a job that has ended to become visible on a network file system
GONE = 60.0  # seconds that cancelled jobs get to end; Slurm itself kills them after KillWait, usually 30
UNKNOWN = 3  # answers in a row without a job, after which Slurm has forgotten it
SILENCE = 20.0  # seconds without an answer from Slurm after which whoever watches is told
AGAIN = 5.0  # seconds until a submission is tried again that Slurm had no time for


class SlurmExecutor(Executor):
    """Runs tasks as jobs of Slurm, `workers` of them at once.

    What is submitted between two looks goes out as one job array. A driver that is killed leaves its jobs running, and
    an executor on the same folder finds them: what is asked of it again it watches and does not submit.

    Args:
        folder: where tasks keep their folders, usually ``STUDY/tasks``; made if absent; seen by all nodes. What belongs
            to Slurm goes to ``slurm`` beside it.
        workers: how many jobs at once, at least 1; becomes `slots`.
        parameters: of submitit's AutoExecutor, by name.
        threads: threads of each job; by default the CPUs that Slurm gave it.
        retries: how often a task is submitted again whose job was lost with its node, or preempted.

    Raises:
        PynasError: a number too small, a parameter that submitit does not take, no submitit, no sbatch.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        workers: int = 64,
        parameters: Mapping[str, Any] | None = None,
        threads: int | None = None,
        retries: int = 2,
    ) -> None:
        for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
            if value is not None and value < least:
                raise PynasError(f"{name}: {value} is too few, at least {least} is needed")
        self.slots = workers
        self._retries = retries
        self._tasks = Path(folder).absolute()
        self._home = self._tasks.parent / "slurm"
        self._submitter = Submitter(self._home, self._tasks, parameters or {}, threads)
        self._tasks.mkdir(parents=True, exist_ok=True)
        (self._home / "arrays").mkdir(parents=True, exist_ok=True)
        self._waiting: deque[Job] = deque()
        self._flight: dict[str, Job] = {}  # by key: all that was submitted and has no outcome
        self._left: dict[str, Job] = {}  # by key: jobs of an earlier driver that nobody has asked for yet
        self._arrays: dict[str, Array] = {}  # by token
        self._doubtful: list[Array] = []  # which Slurm may or may not have, and which is to be cancelled
        self._finished: list[Array] = []  # whose tasks have outcomes, and whose last jobs may still be ending
        self._events: deque[Event] = deque()
        self._closed = False
        self._ask_at = self._submit_at = 0.0  # by time.monotonic
        self._answered = time.monotonic()  # when Slurm last did
        self._recover()

    def submit(self, key: str, function: str, payload: Mapping[str, Any]) -> None:
        """See `Executor.submit`."""
        if self._closed:
            raise RuntimeError("the executor is closed")
        folder = TaskFolder(self._tasks, key)
        if key in self._flight:
            raise ValueError(f"task {key} is in flight already")
        result = folder.prepare(function, payload)
        left = self._left.pop(key, None)
        if result is not None:
            self._events.append(Done(key, result.value))
            if left is not None:
                self._part(left)
            return
        asked = digest(function, json.loads(json.dumps(payload)))
        if left is not None and left.digest == asked:
            self._flight[key] = left
            return
        if left is not None:
            slurm_jobs.cancel([left.id])
            slurm_jobs.wait_until_gone([left.id], GONE)
            folder.result.unlink(missing_ok=True)  # of the former payload, if it came at the last moment
            self._part(left)
        self._flight[key] = Job(folder, function, asked)
        self._waiting.append(self._flight[key])

    def outcomes(self, timeout: float | None = None) -> Iterator[Event]:
        """See `Executor.outcomes`. Raises PynasError where sbatch refuses the jobs."""
        pause, quiet_since = PAUSES[0], time.monotonic()
        while True:
            while self._events:
                yield self._events.popleft()
                pause, quiet_since = PAUSES[0], time.monotonic()
            if not self._flight:
                return
            began = time.monotonic()
            self._look()
            now = time.monotonic()
            if not self._events:
                rest = float("inf") if timeout is None else timeout - (now - quiet_since)
                if rest <= 0:
                    return
                # A file system on which a look takes long is not looked at all the time.
                time.sleep(min(max(pause, 5 * (now - began)), SLOWEST, rest))
                pause = min(1.3 * pause, PAUSES[1])

    def close(self, *, cancel: bool = False) -> None:
        """See `Executor.close`."""
        self._closed = True
        for job in self._waiting:
            del self._flight[job.folder.key]
        self._waiting.clear()
        if cancel:
            self._cancel()
        elif self._flight:
            slurm_jobs.cancel({job.id for job in self._flight.values()}, waiting_only=True)
            while self._flight:
                self._look()
                time.sleep(PAUSES[0])
        slurm_jobs.wait_until_gone((job.id for array in self._finished for job in array.jobs.values()), GONE)
        self._clean(set())

    def _recover(self) -> None:
        """Take over what an earlier driver has submitted."""
        found = []
        for path in (self._home / "arrays").glob("*.json"):
            try:
                found.append(Array.read(path, self._tasks))
            except (ValueError, KeyError, TypeError):
                continue  # not written by this version
        for array in sorted(found, key=lambda array: array.made):
            if array.stage in ("new", "cancelled"):
                self._doubtful.append(array)
                continue
            self._arrays[array.token] = array
            for key, job in array.jobs.items():
                if key in self._left:
                    self._part(self._left[key])  # the later array has the task
                self._left[key] = job
        self._settle_doubts()

    def _look(self) -> None:
        """Turn what has happened into events, submit what waits."""
        if self._arrays and time.monotonic() >= self._ask_at:
            self._ask()
        over = []
        for array in [*self._arrays.values()]:
            for key in [*array.left]:
                job = self._flight.get(key)
                if job is not None and not job.waits and self._unfinished(job):
                    over.append(job)
        if over:
            self._bury(over)
        if not self._closed:
            self._dispatch()

    def _ask(self) -> None:
        """Ask Slurm for the states of all jobs, and for more room for an array where others have ended."""
        jobs = [array.jobs[key] for array in self._arrays.values() for key in array.left]
        ending = [job.id for array in self._finished for job in array.jobs.values()]
        began = time.monotonic()
        found = slurm_jobs.states([*(job.id for job in jobs), *ending])
        now = time.monotonic()
        self._ask_at = now + max(ASK, 10 * (now - began))
        self._note_answer(found is not None)
        if found is None:
            return
        for job in jobs:
            job.unknown = 0 if job.id in found else job.unknown + 1
            if job.id in found or job.unknown >= UNKNOWN:
                job.state = found.get(job.id)
                ended = job.state is None or job.state.ended
                job.over_since = (job.over_since or now) if ended else None
        self._clean({job for job in ending if job in found and not found[job].ended})
        for array in self._arrays.values():
            if array.stage == "held":
                self._release(array)
            wider = min(array.active, array.limit + self._room())
            if wider > array.limit and slurm_jobs.set_limit(array.id, wider):
                array.limit = wider
                array.write()

    def _note_answer(self, answered: bool) -> None:
        """Warn, once for each time that it happens, that Slurm has not answered for a while."""
        now = time.monotonic()
        if answered:
            self._answered = now
        elif now - self._answered > SILENCE:
            self._answered = float("inf")
            warnings.warn("Slurm does not answer; its jobs go on, and it is asked again until it does", stacklevel=2)

    def _room(self) -> int:
        return self.slots - sum(min(array.limit, array.active) for array in self._arrays.values())

    def _unfinished(self, job: Job) -> bool:
        """Read what the job has written. True if it has ended without an outcome."""
        key, result = job.folder.key, job.result()
        failure = None if result is not None else job.failure()
        assert job.tail is not None
        values = job.tail.new()  # read after the outcome, so that nothing the task reported is left out
        if job.tail.begun and not job.begun:
            job.begun = True
            self._events.append(Started(key))
        self._events.extend(Progress(key, value) for value in values)
        if result is not None:
            self._finish(job, Done(key, result.value))
        elif failure is not None:
            self._finish(job, Failed(key, failure, "exception"))
        elif job.over_since is not None:
            job.look_anew()
            return time.monotonic() - job.over_since > GRACE
        return False

    def _bury(self, over: list[Job]) -> None:
        """Jobs that have ended without an outcome: submit them again if that was not their fault."""
        found = slurm_jobs.details(job.id for job in over)
        for job in over:
            key = job.folder.key
            job.state = found.get(job.id, job.state)
            state = "" if job.state is None else job.state.state
            if state in slurm_jobs.LOST and job.attempt <= self._retries and not self._closed:
                self._part(job)
                again = Job(job.folder, job.function, job.digest, job.attempt + 1, begun=job.begun)
                self._flight[key] = again
                self._waiting.append(again)
            elif self._closed and state == "CANCELLED" and not job.begun:
                del self._flight[key]
                self._part(job)
            else:
                kind: Literal["cancelled", "died"] = "cancelled" if state == "CANCELLED" else "died"
                self._finish(job, Failed(key, reason(job, self._arrays[job.array].errors(job)), kind))

    def _finish(self, job: Job, event: Done | Failed) -> None:
        job.failed = isinstance(event, Failed)
        self._events.append(event)
        del self._flight[event.key]
        self._part(job)

    def _part(self, job: Job) -> None:
        """The array has no more to do with this task."""
        array = self._arrays[job.array]
        array.left.discard(job.folder.key)
        if not array.left:
            array.forget()
            del self._arrays[job.array]
            self._finished.append(array)

    def _dispatch(self) -> None:
        """Submit what waits, as far as there is room."""
        if not self._waiting or time.monotonic() < self._submit_at:
            return
        if not self._settle_doubts():
            self._note_answer(False)
            return
        while self._waiting and (room := self._room()) > 0:
            count = min(len(self._waiting), slurm_jobs.largest_array())
            jobs = [self._waiting.popleft() for _ in range(count)]
            if not self._send(Array.of(self._home / "arrays", jobs, min(count, room), self._submitter.prefix)):
                self._waiting.extendleft(reversed(jobs))
                self._note_answer(False)
                self._submit_at = time.monotonic() + AGAIN
                return

    def _send(self, array: Array) -> bool:
        """Submit an array. False where Slurm has no time for it now; raises PynasError where it refuses it."""
        for job in array.jobs.values():
            job.forget_runs()
        array.write()
        self._doubtful.append(array)  # until its id is known, whatever comes in between
        try:
            number = self._submitter.submit(array)
        except PynasError:
            self._doubtful.remove(array)
            array.forget()
            self._waiting.extendleft(reversed(array.jobs.values()))
            raise
        if number is None:
            return False
        array.number(number)
        array.stage = "held"
        array.write()
        self._arrays[array.token] = array
        self._doubtful.remove(array)
        array.write_jobs()
        self._release(array)
        return True

    def _release(self, array: Array) -> None:
        if slurm_jobs.release(array.id):  # or when Slurm is asked next
            array.stage = "free"
            array.write()

    def _settle_doubts(self) -> bool:
        """Cancel what was not to be run. False where Slurm does not answer."""
        for array in [*self._doubtful]:
            ids = [array.id] if array.id else slurm_jobs.find(array.name)
            if ids is None or not slurm_jobs.cancel(ids):
                return False
            slurm_jobs.wait_until_gone([job.id or ids[0] for job in array.jobs.values()] if ids else [], GONE)
            array.forget()
            self._doubtful.remove(array)
        return True

    def _cancel(self) -> None:
        arrays = [*self._arrays.values()]
        for array in arrays:
            array.stage = "cancelled"
            array.write()  # should this driver be killed now, the next one goes on with it
        jobs = {array.jobs[key].id for array in arrays for key in array.left}
        if slurm_jobs.cancel({array.id for array in arrays}) and slurm_jobs.wait_until_gone(jobs, GONE):
            for array in arrays:
                array.forget()
        self._settle_doubts()
        self._finished.extend(arrays)
        self._events = deque(event for event in self._events if event.key not in self._flight)
        for room in (self._arrays, self._flight, self._left):
            room.clear()

    def _clean(self, running: set[str]) -> None:
        """Remove what submitit keeps of arrays of which no job runs."""
        kept = [array for array in self._finished if any(job.id in running for job in array.jobs.values())]
        for array in self._finished:
            if array not in kept:
                array.clean()
        self._finished = kept
