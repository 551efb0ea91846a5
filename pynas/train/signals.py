"""Signals to a training: they are heeded between steps, where a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)
SAVING = (signal.SIGUSR1, signal.SIGUSR2)
"""They write a checkpoint and let the training go on, unless they announce the end of a job's time."""


class Stopped(Exception):
    """A signal ended the training after a checkpoint.

    `signal` is its number; `steps_made` tells whether this process made a step, so that going on has got somewhere.
    """

    def __init__(self, number: int, checkpoint: Path, steps_made: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {checkpoint} is where it goes on")
        self.signal = number
        self.steps_made = steps_made


class Signals:
    """Takes STOPPING and SAVING in place of their defaults; in the main thread only, where Python allows it.

    stop_on_usr: all of them stop, as those that a scheduler sends ahead of a job's end should.
    """

    def __init__(self, stop_on_usr: bool = False) -> None:
        self._saving = () if stop_on_usr else SAVING
        self._last: int | None = None
        self._before: dict[int, Any] = {}

    def stops(self, number: int | None) -> bool:
        return number is not None and number not in self._saving

    @property
    def waiting(self) -> int | None:
        """The signal that `take` would return."""
        return self._last

    def unblock(self) -> None:
        """Let SAVING come that whoever started this process has blocked: a step is made, and stopping loses nothing."""
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SAVING)

    def take(self) -> int | None:
        """The signal that came since the last call, if any."""
        number, self._last = self._last, None
        return number

    def _receive(self, number: int, frame: Any) -> None:
        if not self.stops(self._last):  # an order to stop is not forgotten over one to save
            self._last = number

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (*STOPPING, *SAVING)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
