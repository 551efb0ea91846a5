"""The parent of a rank: it forks before anything heavy is imported, and it alone waits for the rank.

So it holds no lock, no thread and no GPU, and can tell what became of a rank however that went; see docs/clusters.md.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import secrets
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pynas.errors import PynasError, SearchStopped
from pynas.ranks.beat import Beat, Page, SharedBeat
from pynas.ranks.child import DUMP_SIGNAL
from pynas.ranks.launch import Launch
from pynas.ranks.lines import Line, listen
from pynas.ranks.monitor import Monitor
from pynas.ranks.outcome import STOPS, Outcome
from pynas.ranks.report import HYDRA

PR_SET_PDEATHSIG = 1
LONGEST_TRACEBACK = 20_000  # characters, from the end
LAST_WORDS = 5.0  # seconds for rank 0's supervisor to tell of a lost one, however little time it gets
ANSWER = 15.0  # seconds for the supervisor to connect to rank 0's


@dataclass
class Parent:
    """What a rank knows of its supervisor."""

    line: Line
    port: int  # where the supervisor listens
    secret: str  # what its callers must know

    def connect(self, rank: int, hosts: list[str], address: str, port: int, secret: str, speaks: bool) -> bool:
        """Have the supervisor connect to rank 0's, and wait until it has; `speaks`: it reports the loss of rank 0."""
        place = {"rank": rank, "hosts": hosts, "address": address, "port": port, "secret": secret, "speaks": speaks}
        self.line.send(place=place)
        return bool((self.line.wait_for(ANSWER) or {}).get("connected"))

    def tell_end(self, outcome: Outcome) -> None:
        self.line.send(end=outcome.plain())


_beat: Beat = Beat()
_parent: Parent | None = None


def beat() -> Beat:
    """Where this process says that it makes progress; outside a supervised rank that goes nowhere."""
    return _beat


def parent() -> Parent | None:
    """This rank's supervisor, or None in a process that has none."""
    return _parent


def supervise(main: Callable[[], int | None], launch: Launch) -> int:
    """Run `main` as a rank in a process of its own, and return the exit code once all ranks have ended.

    Call it before anything heavy is imported and before there are threads. `main` returns an exit code, or raises:
    SystemExit, PynasError (exit code 2, printed once for all ranks) or whatever else (a failure of the job). Codes of
    128 and a signal's number mean that the rank has stopped as it was told to. In the rank itself this never returns.

    Raises:
        OSError: no process, socket or memory can be had.
    """
    page, listener, secret = Page(), listen(), secrets.token_hex(16)
    ours, theirs = socket.socketpair()
    port = listener.getsockname()[1]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, signal.SIGCHLD})  # until there is a rank to have them
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        listener.close()
        _become_rank(supervisor, page, Parent(Line(theirs), port, secret))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise SystemExit(_run(main))
    theirs.close()
    lifeline = _guard(child, hydra=HYDRA in os.environ)
    code = Monitor(child, launch, page, Line(ours), listener, secret).run()
    with suppress(BrokenPipeError):  # the guard was killed
        os.write(lifeline, b".")
    return code


def _guard(child: int, hydra: bool) -> int:
    """Fork a process that ends what the rank has started if the supervisor is killed; returns its lifeline.

    The rank itself ends with its supervisor, but its own processes would live on and hold the launcher's pipes.
    """
    ours, lifeline = os.pipe()
    if os.fork():
        os.close(ours)
        return lifeline
    try:
        os.setsid()  # out of reach of launchers that kill a process group
        os.close(lifeline)
        if os.read(ours, 1) == b"":  # the supervisor went without a word
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            # Hydra kills all ranks once one has closed its pipes, and drops what they have said: this process holds
            # them until rank 0 has named the lost one. If it ends all ranks itself it is gone at once.
            if hydra:
                pipes = select.poll()
                pipes.register(2, 0)  # its end is all that is asked for
                pipes.poll(LAST_WORDS * 1000)
    finally:
        os._exit(0)


def _become_rank(supervisor: int, page: Page, line: Parent) -> None:
    global _beat, _parent
    os.setpgid(0, 0)  # what the rank starts can be ended with it
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:  # it died before the call above
        os._exit(1)
    _beat, _parent = SharedBeat(page), line
    os.register_at_fork(after_in_child=_forget)
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, all_threads=True)


def _forget() -> None:
    """In a process that a rank forked: its signs of life are not the rank's."""
    global _beat, _parent
    _beat, _parent = Beat(), None


def _run(main: Callable[[], int | None]) -> int:
    """Run the rank; returns its exit code, or ends the process after what other ranks must not wait for."""
    try:
        return main() or 0
    except SystemExit as error:
        if isinstance(error.code, str):
            _leave(Outcome("raised", 1, error.code))
        return error.code if isinstance(error.code, int) else 0
    except PynasError as error:
        _leave(Outcome("mistake", 2, str(error)))
    except SearchStopped as error:
        _leave(Outcome("raised", 1, f"the search stopped: {error}"))
    except KeyboardInterrupt:
        _leave(Outcome("stopped", 128 + signal.SIGINT, abrupt=True))
    except BaseException as error:
        _leave(Outcome("raised", 1, _in_one_line(error), traceback.format_exc()[-LONGEST_TRACEBACK:]))
    raise AssertionError("unreachable")


def _leave(outcome: Outcome) -> None:
    """End this process at once: exit handlers of MPI and CUDA may wait for ranks that wait for this one."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _parent is not None:
        _parent.tell_end(outcome)
    os._exit(outcome.code)


def _in_one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
