"""The process of a rank, as its supervisor has it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

DUMP_SIGNAL = signal.SIGQUIT  # has a rank write the stacks of all its threads to stderr
DUMP = 0.7  # seconds for that


class Child:
    """A forked process that leads a process group; to be buried by this process alone, in its main thread."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.alive = True  # until it is buried

    def signal(self, number: int) -> None:
        if self.alive:
            os.kill(self.process, number)

    def has_ended(self) -> bool:
        """Whether it has ended and waits to be buried."""
        return self.alive and os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def bury(self) -> int:
        """Kill it, where it lives, with what is left of its group; returns its exit code, or minus a signal."""
        with suppress(ProcessLookupError):  # not reaped yet: the number still means this group
            os.killpg(self.process, signal.SIGKILL)
        with suppress(ProcessLookupError):  # it may have been stopped before it led a group
            os.kill(self.process, signal.SIGKILL)
        self.alive = False
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def end(self, dump: bool = False) -> None:
        """Bury it, unless that is done; with `dump` after it has written its stacks."""
        if self.alive:
            if dump:
                self.signal(DUMP_SIGNAL)
                time.sleep(DUMP)
            self.bury()
