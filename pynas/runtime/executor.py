"""What every executor promises: tasks go in under a key, events come out, and a finished task is never run twice.

A task is (key, function, payload). The function is named ``"package.module:name"``, is imported where it runs, and is
called as ``function(payload, report)``; it returns a JSON value and may call ``report(value)`` with JSON values on the
way. Executors know nothing of networks, and whatever they add (processes, jobs, ranks) stays behind this protocol.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self


@dataclass(frozen=True)
class Started:
    """A worker took the task up. A task that is run again after its driver died is started again."""

    key: str


@dataclass(frozen=True)
class Progress:
    """The task called ``report(value)``."""

    key: str
    value: Any


@dataclass(frozen=True)
class Done:
    """The task returned `value`, which is on disk by now."""

    key: str
    value: Any


@dataclass(frozen=True)
class Failed:
    """The task raised (kind "exception"; the traceback is in its log), its worker was lost (kind "died"), or somebody
    ended it who knew what they did (kind "cancelled", as scancel does).

    `reason` is one line. A failure leaves no result behind, so submitting the key again runs the task again.
    """

    key: str
    reason: str
    kind: Literal["exception", "died", "cancelled"]


Event = Started | Progress | Done | Failed


class Executor(Protocol):
    """Runs tasks, `slots` of them at once, in no particular order.

    Executors are used from one thread. They move tasks along only inside `submit`, `outcomes` and `close`: a driver
    that computes for minutes between two calls may leave slots idle, but loses nothing. As a context manager it is
    closed at the end of the block, and cancels what runs where the block raised.
    """

    slots: int  # how many tasks run at once

    @abstractmethod
    def submit(self, key: str, function: str, payload: Mapping[str, Any]) -> None:
        """Hand over a task; it starts as soon as a slot is free.

        A key whose result is on disk yields its `Done` at once and is not run. The payload decides whether that result
        is the one asked for, so it should hold what the result depends on and nothing that may change between a study
        and its continuation (such as a number of threads: the executor sets ``OMP_NUM_THREADS`` for its workers).

        Raises:
            PynasError: the key or the function is malformed, the payload is not JSON, or the result on disk came
                from another function or payload.
            ValueError: the key is in flight.
            RuntimeError: the executor is closed.
        """
        ...

    @abstractmethod
    def outcomes(self, timeout: float | None = None) -> Iterator[Event]:
        """Events as they come: per key an optional `Started`, any number of `Progress`, then one `Done` or `Failed`.

        Ends when nothing is in flight, or when no event has come for `timeout` seconds (0: what is there already).
        The caller may submit more while iterating, and may stop and iterate anew: no event is lost.
        """
        ...

    @abstractmethod
    def close(self, *, cancel: bool = False) -> None:
        """Let running tasks finish, or end them at once if `cancel`; tasks that wait for a slot are dropped.

        Returns when no worker is left. Events of tasks that finished meanwhile can still be read from `outcomes`;
        cancelled and dropped tasks yield none. Closing twice does no harm.
        """
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)
