"""LocalExecutor: tasks in worker processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pynas.cores import available_cores
from pynas.errors import PynasError
from pynas.runtime.executor import Done, Event, Executor, Failed, Progress, Started
from pynas.runtime.task import TaskFolder

GRACE = 3.0  # seconds a worker gets between being asked to end and being killed


class LocalExecutor(Executor):
    """Runs tasks in `workers` processes that live as long as the executor, because importing torch takes seconds.

    A worker starts with the first task for it, with the Python path and environment of the driver and
    ``OMP_NUM_THREADS`` set to its share of the cores. One that dies takes only its task with it: the next task for
    its slot starts another.

    Args:
        folder: where tasks keep their folders, usually ``STUDY/tasks``; made if absent.
        workers: how many processes, at least 1; becomes `slots`.
        threads: threads of each worker; by default the cores this process may use divided by `workers`, at least 1.
        environment: what workers inherit in place of this process's environment.

    Raises:
        PynasError: workers or threads below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        workers: int,
        threads: int | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if workers < 1:
            raise PynasError(f"workers: {workers} is too few, at least 1 is needed")
        if threads is not None and threads < 1:
            raise PynasError(f"threads: {threads} is too few, at least 1 is needed")
        self.slots = workers
        self.threads = max(1, available_cores() // workers) if threads is None else threads
        self._inherited = os.environ if environment is None else environment
        self._tasks = Path(folder).absolute()
        self._tasks.mkdir(parents=True, exist_ok=True)
        self._waiting: deque[tuple[TaskFolder, str]] = deque()
        self._workers: list[_Worker] = []
        self._events: deque[Event] = deque()
        self._closed = False

    def submit(self, key: str, function: str, payload: Mapping[str, Any]) -> None:
        """See `Executor.submit`."""
        if self._closed:
            raise RuntimeError("the executor is closed")
        folder = TaskFolder(self._tasks, key)
        if any(key == folder.key for folder, _ in self._waiting) or any(key == w.key for w in self._workers):
            raise ValueError(f"task {key} is in flight already")
        result = folder.prepare(function, payload)
        if result is not None:
            self._events.append(Done(key, result.value))
            return
        self._waiting.append((folder, function))
        self._dispatch()

    def outcomes(self, timeout: float | None = None) -> Iterator[Event]:
        """See `Executor.outcomes`."""
        while True:
            while self._events:
                yield self._events.popleft()
            if not self._in_flight():
                return
            if not self._advance(timeout) and not self._events:
                return

    def close(self, *, cancel: bool = False) -> None:
        """See `Executor.close`."""
        self._closed = True
        self._waiting.clear()
        if not cancel:
            while self._in_flight():
                self._advance(None)
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ask_to_end(signal.SIGTERM if worker.folder else None)
        deadline = time.monotonic() + GRACE
        for worker in workers:
            worker.end(deadline)

    def _in_flight(self) -> bool:
        return bool(self._waiting) or any(worker.folder for worker in self._workers)

    def _dispatch(self) -> None:
        while self._waiting:
            worker = next((worker for worker in self._workers if not worker.folder), None)
            if worker is None and len(self._workers) == self.slots:
                return
            folder, function = self._waiting.popleft()
            if worker is None:
                try:
                    worker = _Worker(_environment(self._inherited, self.threads), folder.log)
                except OSError as error:
                    self._events.append(Failed(folder.key, f"no worker could be started: {error}", "died"))
                    continue
                self._workers.append(worker)
            worker.begin(folder, function)

    def _advance(self, timeout: float | None) -> bool:
        """Wait for workers to say something or to die, turn it into events, fill free slots. False after `timeout`."""
        ready = connection.wait(
            [w.channel for w in self._workers if w.talks] + [w.death for w in self._workers], timeout
        )
        for worker in [*self._workers]:
            if worker.channel in ready:
                self._events.extend(worker.news())
            if worker.death in ready:
                self._events.extend(worker.last_news())
                self._workers.remove(worker)
                if worker.folder is not None:  # it died idle, before it could take up the task: not the task's doing
                    self._waiting.appendleft((worker.folder, worker.function))
        self._dispatch()
        return bool(ready)


class _Worker:
    """One worker process and the task it is at. `folder` is None while it is idle."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """Start the process; until its first task has begun it prints to that task's `log`.

        Raises:
            OSError: the system would not start another process.
        """
        self.folder: TaskFolder | None = None
        self.function = ""
        self.talks = True
        self.begun = False  # whether the task has
        self.seasoned = False  # whether any task has
        ours, theirs = socket.socketpair()
        lifeline_read, self._lifeline = os.pipe()
        try:
            with open(log, "ab") as output:
                # A process group of its own: Ctrl-C passes it by, and what a task has started can be ended with it.
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "pynas.runtime.worker"]
                    + [str(number) for number in (theirs.fileno(), lifeline_read, os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(), lifeline_read),
                    env=environment,
                    process_group=0,
                )
        except OSError:
            os.close(self._lifeline)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(lifeline_read)
        self.channel: connection.Connection = connection.Connection(ours.detach())
        self.death, notice = connection.Pipe(duplex=False)
        threading.Thread(target=_watch, args=(self.process.pid, notice), daemon=True).start()
        self._send([os.path.abspath(entry) if entry == "" else entry for entry in sys.path])

    @property
    def key(self) -> str | None:
        return self.folder.key if self.folder else None

    def begin(self, folder: TaskFolder, function: str) -> None:
        self.folder, self.function, self.begun = folder, function, False
        self._send({"tasks": str(folder.tasks), "key": folder.key, "function": function})

    def _send(self, message: Any) -> None:
        with suppress(ConnectionError):  # a worker that is dead by now: `death` tells
            self.channel.send_bytes(json.dumps(message).encode())

    def news(self) -> Iterator[Event]:
        """What the worker has said since."""
        while self.talks and self.channel.poll():
            try:
                message = json.loads(self.channel.recv_bytes())
            except (EOFError, OSError):
                # The worker is dying, or the task closed descriptors that are not its own; nothing can be heard of it.
                self.talks = False
                self._signal(signal.SIGKILL)
                return
            if self.folder is not None:
                yield self._event(self.folder, message)

    def _event(self, folder: TaskFolder, message: dict[str, Any]) -> Event:
        match message["news"]:
            case "started":
                self.begun = self.seasoned = True
                return Started(folder.key)
            case "progress":
                return Progress(folder.key, message["value"])
            case "done":
                self.folder = None
                result = folder.read_result()
                if result is None:
                    return Failed(folder.key, f"{folder.result} was removed or changed by someone else", "exception")
                return Done(folder.key, result.value)
            case _:
                self.folder = None
                return Failed(folder.key, message["reason"], "exception")

    def last_news(self) -> Iterator[Event]:
        """Bury a dead worker: what it had still said, and the outcome of the task it was at.

        Keeps `folder` if that task is to be given to another worker.
        """
        self._signal(signal.SIGKILL)  # what the task started; safe, for the process is not reaped and keeps its id
        yield from self.news()
        status = self.process.wait()
        self._close()
        if self.folder is None or (self.seasoned and not self.begun):
            return
        result = self.folder.read_result()  # it may have died between writing the result and saying so
        if result is not None:
            yield Done(self.folder.key, result.value)
        else:
            before = "" if self.begun else " before the task began"
            yield Failed(self.folder.key, f"the worker {_fate(status)}{before}; see {self.folder.log}", "died")
        self.folder = None

    def ask_to_end(self, signal_number: int | None) -> None:
        if signal_number is not None:
            self._signal(signal_number)
        self.channel.close()  # an idle worker returns from main

    def end(self, deadline: float) -> None:
        """Wait for the process until `deadline` (of `time.monotonic`), then kill it; kill what it has left behind."""
        self.death.poll(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _close(self) -> None:
        self.channel.close()
        self.death.close()
        os.close(self._lifeline)


def _watch(process: int, notice: connection.Connection) -> None:
    """Close `notice` when the process is dead, without reaping it."""
    with notice, suppress(ChildProcessError):
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    package_root = str(Path(__file__).absolute().parents[2])
    path = [package_root, *inherited.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(entry for entry in path if entry),
        "PYTHONUNBUFFERED": "1",  # what a task printed is in its log even if it is killed
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }


def _fate(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return f"was killed by signal {-status}"
    memory = ", perhaps out of memory" if name == "SIGKILL" else ""
    return f"was killed by signal {-status} ({name}{memory})"
