"""MPIExecutor: tasks on the ranks that srun or mpirun has started, handed out by mpi4py.futures.

    with pool() as ranks:                    # in every rank: the others serve here until the first is done
        if ranks is not None:
            with MPIExecutor(folder, ranks) as executor: ...

Calls and outcomes travel as messages and are small: payloads and results are read from the tasks' folders, and what a
task reports goes through `progress.jsonl`, for a call of mpi4py.futures has nothing to say before it returns.
"""

from __future__ import annotations

import os
import queue
import signal
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.cores import available_cores
from pynas.errors import PynasError
from pynas.ranks.launch import Launch, detect
from pynas.ranks.placement import Placement, place
from pynas.ranks.startup import check
from pynas.ranks.supervisor import beat
from pynas.runtime import mpi_rank
from pynas.runtime.executor import Done, Event, Executor, Failed, Progress, Started
from pynas.runtime.progress import Tail
from pynas.runtime.task import TaskFolder, describe

if TYPE_CHECKING:
    from mpi4py.futures import MPIPoolExecutor

LOOK = 0.1  # seconds between two looks of the driver at what tasks report
# Seconds between two looks of idle ranks, and of the driver's thread, for messages. mpi4py's own 0.001 takes several
# per cent of a core in each; trainings of hours do not notice twenty milliseconds.
BACKOFF = 0.02
PATIENCE = 5.0  # seconds that a network file system gets to show a result that another node has written


class MPIExecutor(Executor):
    """Runs tasks on the ranks of `ranks`, one at a time on each.

    A rank keeps its worker process between tasks, because importing torch takes seconds.

    Args:
        folder: where tasks keep their folders, on a file system that all ranks share; made if absent.
        ranks: an executor of mpi4py.futures whose workers are the ranks of MPI.COMM_WORLD other than this one.
        workers: how many ranks to use; all by default. `slots` is this number, or that of the ranks if it is less.
        threads: threads of each worker; by default the rank's share of the cores of its node.

    Raises:
        PynasError: workers or threads below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        ranks: MPIPoolExecutor,
        workers: int | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and value < 1:
                raise PynasError(f"{name}: {value} is too few, at least 1 is needed")
        self._ranks = ranks
        self._size: int = ranks.num_workers
        self.slots = min(workers or self._size, self._size)
        self._threads = threads
        self._tasks = Path(folder).absolute()
        self._tasks.mkdir(parents=True, exist_ok=True)
        self._token = uuid.uuid4().hex  # ranks may serve several executors, one after the other
        self._waiting: deque[tuple[TaskFolder, str]] = deque()
        self._running: dict[Future[Done | Failed | None], _Flight] = {}
        self._returned: queue.SimpleQueue[Future[Done | Failed | None]] = queue.SimpleQueue()
        self._events: deque[Event] = deque()
        self._next_look = 0.0
        self._closed = False

    def submit(self, key: str, function: str, payload: Mapping[str, Any]) -> None:
        """See `Executor.submit`."""
        if self._closed:
            raise RuntimeError("the executor is closed")
        folder = TaskFolder(self._tasks, key)
        flights = self._running.values()
        if any(key == waiting.key for waiting, _ in self._waiting) or any(key == f.folder.key for f in flights):
            raise ValueError(f"task {key} is in flight already")
        result = folder.prepare(function, payload)
        if result is not None:
            self._events.append(Done(key, result.value))
            return
        folder.progress.unlink(missing_ok=True)  # an earlier run's
        self._waiting.append((folder, function))
        self._dispatch()

    def outcomes(self, timeout: float | None = None) -> Iterator[Event]:
        """See `Executor.outcomes`."""
        while True:
            while self._events:
                yield self._events.popleft()
            if not self._waiting and not self._running:
                return
            if not self._advance(timeout):
                return

    def close(self, *, cancel: bool = False) -> None:
        """See `Executor.close`."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        orders = self._order_to_cancel() if cancel and self._running else []
        while self._running:
            self._advance(None)
        self._end_workers()
        for order in orders:
            order.wait()

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            folder, function = self._waiting.popleft()
            call = mpi_rank.Call(self._token, str(folder.tasks), folder.key, function, self._threads)
            future = self._ranks.submit(mpi_rank.run, call)
            self._running[future] = _Flight(folder, Tail(folder))
            future.add_done_callback(self._returned.put)

    def _advance(self, timeout: float | None) -> bool:
        """Wait for events and fill free slots; False if none came within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            now = time.monotonic()
            pause = max(0.0, min(self._next_look, now + LOOK if deadline is None else deadline) - now)
            try:
                self._land(self._returned.get(timeout=pause) if pause else self._returned.get_nowait())
            except queue.Empty:
                self._look()
            if time.monotonic() >= self._next_look:
                self._look()
            self._dispatch()
            if self._events:
                return True
            if not self._running or (deadline is not None and time.monotonic() >= deadline):
                return False

    def _look(self) -> None:
        for flight in self._running.values():
            self._events.extend(flight.news())
        self._next_look = time.monotonic() + LOOK

    def _land(self, future: Future[Done | Failed | None]) -> None:
        flight = self._running.pop(future)
        if future.cancelled():
            return
        error = future.exception()
        last = future.result() if error is None else Failed(flight.folder.key, describe(error), "died")
        if last is not None:
            self._events.extend(flight.news())
            self._events.append(flight.done() if isinstance(last, Done) else last)

    def _order_to_cancel(self) -> list[Any]:
        from mpi4py import MPI

        for future in [*self._running]:
            future.cancel()  # does nothing to those that a rank has taken up
        world = MPI.COMM_WORLD
        return [world.isend(self._token, rank, mpi_rank.CANCEL) for rank in range(world.size) if rank != world.rank]

    def _end_workers(self) -> None:
        """Return when no rank has a worker process. The pool gives calls to its idle ranks in turn; once around is
        enough unless a rank was slow."""
        ended: set[int] = set()
        while len(ended) < self._size:
            calls = [self._ranks.submit(mpi_rank.end_worker) for _ in range(self._size)]
            ended.update(call.result() for call in calls)


@dataclass
class _Flight:
    """A task that was given to a rank."""

    folder: TaskFolder
    tail: Tail
    started: bool = False

    def news(self) -> Iterator[Event]:
        """What the task has reported since."""
        values = self.tail.new()
        if self.tail.begun and not self.started:
            self.started = True
            yield Started(self.folder.key)
        for value in values:
            yield Progress(self.folder.key, value)

    def done(self) -> Done | Failed:
        """The outcome of a task whose result is on disk, so the rank says."""
        deadline = time.monotonic() + PATIENCE
        while (result := self.folder.read_result()) is None and time.monotonic() < deadline:
            time.sleep(LOOK)
        if result is None:
            reason = f"{self.folder.result} cannot be seen here; is the study on a file system that all nodes share?"
            return Failed(self.folder.key, reason, "exception")
        return Done(self.folder.key, result.value)


def launched() -> Launch:
    """The ranks of MPI that this process is one of. Raises PynasError where srun or mpirun has not started it."""
    launch = detect(os.environ)
    if launch is None:
        raise PynasError(
            "executor mpi: started as one process; start it with srun -n 4 python -m pynas search ... or mpirun -n 4 "
            "python -m pynas search ...: the first rank drives, each of the others trains candidates"
        )
    if launch.launcher == "torchrun":
        raise PynasError("executor mpi: torchrun starts no ranks of MPI; start it with srun or mpirun")
    return launch


@contextmanager
def pool(
    shared: Sequence[str | os.PathLike[str]] = (), readable: Sequence[str] = ()
) -> Iterator[MPIPoolExecutor | None]:
    """Every rank enters: the first, the driver, gets the executor that hands calls to the others. They get None, and
    only when the driver has left, for they serve it until then.

    Args:
        shared: folders that all ranks must share; made if absent.
        readable: files and folders that each host must have.

    Raises:
        PynasError: there is one rank only, MPI is missing or has no threads, or the ranks do not run the same program
            or see the same files.
    """
    placement = place(launched())
    if placement.rank == 0:
        _make(shared)
    check(placement, shared, readable)

    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        library = MPI.Get_library_version().splitlines()[0]
        placement.refuse(f"executor mpi needs an MPI library with MPI_THREAD_MULTIPLE, which this one lacks: {library}")
    mpi_rank.set_share(_share_of_cores(placement))
    os.environ.setdefault("MPI4PY_FUTURES_BACKOFF", str(BACKOFF))
    beat().mark("serving the driver" if placement.rank else "driving")
    beat().allow(0)  # candidates may take hours; a rank that dies is noticed all the same
    if placement.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends this rank's task
    serve: Any = MPICommExecutor(placement.comm, root=0)
    try:
        with serve as ranks:
            yield ranks
        mpi_rank.end_worker()
    finally:
        placement.close()  # also after an error of the driver: by now no rank waits for anything else


def _make(folders: Sequence[str | os.PathLike[str]]) -> None:
    for folder in folders:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise PynasError(f"{folder}: {error.strerror}") from None


def _share_of_cores(placement: Placement) -> int:
    """How many cores there are for this rank: one that several ranks of its host may use counts in part for each.

    The driver is left out, for it waits while candidates train. Slurm and mpirun may bind ranks to cores or not.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = set(affinity(0) if affinity else range(available_cores()))
    host = placement.hosts[placement.rank]
    everybody = placement.gather(sorted(cores))
    neighbours = [everybody[rank] for rank in range(1, placement.size) if placement.hosts[rank] == host]
    share = sum(1 / max(1, sum(core in others for others in neighbours)) for core in cores)
    return max(1, int(share + 1e-6))
