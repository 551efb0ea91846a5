"""What a supervisor does while its rank runs: hand on signals, look for life, and end with the other supervisors.

Rank 0's supervisor judges. The others tell it of progress once a second and of the end of their rank; it tells them
when all is over and with which exit code, so that no launcher sees one rank leave before the others are done.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pynas.ranks.beat import HEARTBEAT, Page, Progress
from pynas.ranks.child import Child
from pynas.ranks.launch import Launch
from pynas.ranks.lines import Line, answer, call, wait_for_ends
from pynas.ranks.outcome import STOPS, Outcome, find_hang, of_status, root_cause
from pynas.ranks.report import end_others, say, write_failure

TICK = 0.25  # seconds between two looks at everything
TELL = 1.0  # seconds between two messages of a supervisor
SILENCE = 8.0  # seconds after which a supervisor that says nothing counts as lost
STRANGER = 5.0  # seconds a caller has to say who it is
CONNECT = 5.0  # seconds to reach rank 0's supervisor
# Seconds for causes to come in after the first sign of trouble: a rank's death drags the others into errors.
# A mistake that the others make within that time is the user's; one that they do not is that rank's.
SETTLE = {"died": 0.0, "raised": 0.3, "mistake": 1.0}
SAME_BLOW = 0.5  # seconds in which who killed the rank kills this process too, as the end of a step does
UNCONNECTED_MISTAKE = 4.0  # the same where ranks cannot be asked
ABRUPT = 5.0  # seconds the others have after a rank was stopped without a checkpoint
LEAVE = 3.0  # seconds for the other supervisors to end


class Monitor:
    """The loop of one supervisor. `run` returns the exit code; by then the rank and what it started are gone."""

    def __init__(self, child: int, launch: Launch, page: Page, rank: Line, listener: socket.socket, secret: str):
        self.launch, self.child, self.page, self.talk = launch, Child(child), page, rank
        self.secret, self.listener = secret, listener
        self.rank, self.hosts = launch.rank, {launch.rank: socket.gethostname()}
        self.size = launch.size
        self.code: int | None = None
        self.connected = self.speaks = False
        self.judge: Line | None = None  # to rank 0's supervisor
        self.lines: dict[int, Line] = {}  # of rank 0's supervisor to the others
        self.strangers: dict[Line, float] = {}  # callers that have not said who they are, and since when
        self.handed_on: set[int] = set()
        self.ends: dict[int, Outcome] = {}  # in the order in which they became known
        now = time.monotonic()
        self.trouble = self.ticked = self.told = self.heard = now
        self.progress = {self.rank: (page.progress(), now)}  # with the time at which it last changed
        self.heard_of: dict[int, float] = {}
        self.selector = selectors.DefaultSelector()
        self._watch(rank, self._hear_rank)
        self._watch(listener, self._take_call)

    # --- the loop

    def run(self) -> int:
        for number in STOPS:
            signal.signal(number, self._hand_on)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # to wake up
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPS, signal.SIGCHLD})
        self._watch(wake, lambda: wake.recv(4096))
        try:
            while self.code is None:
                for key, _ in self.selector.select(TICK):
                    key.data()
                self._look_at_rank()
                if self.code is None:
                    self._tick(time.monotonic())
            return self.code
        finally:
            self.child.end()
            signal.set_wakeup_fd(-1)  # the socket goes with this call, and a late SIGCHLD may follow
            for number in STOPS:  # while Python shuts down it puts defaults back, and a late one would be the exit code
                signal.signal(number, signal.SIG_IGN)

    def _tick(self, now: float) -> None:
        if now - self.ticked > TELL + SILENCE / 2:  # suspended, with the whole job or this host
            self.heard = now
            self.heard_of = dict.fromkeys(self.heard_of, now)
            self.progress = {rank: (progress, now) for rank, (progress, _) in self.progress.items()}
        self.ticked = now
        self._note(self.rank, self.page.progress(), now)
        for line in [line for line, came in self.strangers.items() if now - came > STRANGER]:
            del self.strangers[line]
            self._drop(line)
        if self.judge is not None:
            if now - self.told >= TELL:
                self.told = now
                seen = self.progress[self.rank][0]
                self.judge.send(beat=[seen.count, seen.position, seen.limit, seen.what])
            if now - self.heard > SILENCE:
                self._lost_judge()
        elif self.connected:
            if now - self.told >= TELL:
                self.told = now
                for line in self.lines.values():
                    line.send(ping=True)
            for rank in [rank for rank, heard in self.heard_of.items() if now - heard > SILENCE]:
                self._lost(rank)
            self._decide(now)
        else:
            self._look_for_hang(now)

    def _watch(self, what: Any, then: Callable[[], Any]) -> None:
        self.selector.register(what, selectors.EVENT_READ, then)

    def _drop(self, line: Line) -> None:
        with suppress(KeyError, ValueError):
            self.selector.unregister(line)
        line.close()

    def _hand_on(self, number: int, frame: Any) -> None:
        self.handed_on.add(number)
        self.child.signal(number)

    def _note(self, rank: int, progress: Progress, now: float) -> None:
        before = self.progress.get(rank)
        if before is None or before[0].count != progress.count:
            self.progress[rank] = progress, now

    @property
    def _stop(self) -> int:
        """The exit code of the order to end that came, or 0."""
        return next((128 + number for number in (signal.SIGTERM, signal.SIGINT) if number in self.handed_on), 0)

    # --- the rank

    def _hear_rank(self) -> None:
        messages, is_open = self.talk.receive()
        for message in messages:
            if "place" in message:
                self._place(message["place"])
            elif "end" in message and self.rank not in self.ends:
                self._ended(Outcome(**message["end"]))
        if not is_open:
            self._drop(self.talk)

    def _look_at_rank(self) -> None:
        if not self.child.has_ended():
            return
        self._hear_rank()  # what it said last
        if not self.child.alive:
            return
        status = self.child.bury()
        if self.rank not in self.ends:
            what = self.page.progress().what
            self._ended(of_status(status, self.handed_on, "" if what == "starting" else what))

    def _ended(self, outcome: Outcome) -> None:
        self._end_of(self.rank, outcome)
        if self.judge is not None:
            self.judge.send(end=outcome.plain())
        elif not self.connected:
            self._end_alone(outcome)

    def _end_alone(self, outcome: Outcome) -> None:
        """End without having found the other supervisors, which the launcher has to end."""
        self.child.end()
        self.code = outcome.code
        if outcome.kind == "mistake":
            if self.rank == 0:
                self._say_mistake(0, outcome)
            elif not outcome.cause:
                return
            if self._pause(UNCONNECTED_MISTAKE - (self.rank == 0)):
                if self.rank:
                    self._say_mistake(self.rank, outcome)
                end_others(self.launch, 2)
        elif outcome.kind in ("raised", "died"):
            if outcome.kind == "died":
                time.sleep(SAME_BLOW)
            self._say_failure(self.rank, outcome)
            end_others(self.launch, 1)

    def _pause(self, seconds: float) -> bool:
        """Wait; False where an order to end came meanwhile."""
        until = time.monotonic() + seconds
        while not self._stop and time.monotonic() < until:
            time.sleep(0.05)
        return not self._stop

    # --- the other supervisors

    def _place(self, place: dict[str, Any]) -> None:
        now = time.monotonic()
        seen = self.progress.pop(self.rank)
        self.rank, self.size, self.speaks = place["rank"], len(place["hosts"]), place["speaks"]
        self.hosts = dict(enumerate(place["hosts"]))
        self.progress[self.rank] = seen
        if self.rank == 0:
            self.connected = True
        else:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.judge = call(place["address"], place["port"], place["secret"], CONNECT, rank=self.rank)
            self.connected = self.judge is not None
            if self.judge is not None:
                self.heard = now
                self._watch(self.judge, self._hear_judge)
        self.talk.send(connected=self.connected)

    def _hear_judge(self) -> None:
        assert self.judge is not None
        messages, is_open = self.judge.receive()
        self.heard = time.monotonic()
        for message in messages:
            if "over" in message:
                self.child.end(message["dump"])
                with suppress(OSError):
                    self.judge.socket.shutdown(socket.SHUT_WR)  # this rank has ended
                wait_for_ends([self.judge], LEAVE)  # and so have all others
                self.code = message["over"]
                return
        if not is_open:
            self._lost_judge()

    def _lost_judge(self) -> None:
        self.child.end()
        self.code = self._stop or 1
        if not self._stop:
            outcome = Outcome("died", 1, LOST)
            write_failure(self.page.failure_file, 0, self.hosts[0], outcome.cause)
            if self.speaks:
                say(f"pynas: rank 0 on {self.hosts[0]}: {outcome.cause}")

    def _take_call(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = Line(connection)
        self.strangers[line] = time.monotonic()
        self._watch(line, lambda: self._greet(line))

    def _greet(self, line: Line) -> None:
        messages, is_open = line.receive()
        if is_open and not messages:
            return
        del self.strangers[line]
        if messages and answer(line, messages[0], self.secret) and "rank" in messages[0]:
            rank = int(messages[0]["rank"])
            self.selector.unregister(line)
            self.lines[rank], self.heard_of[rank] = line, time.monotonic()
            self._watch(line, lambda: self._hear(rank))
        else:
            self._drop(line)

    def _hear(self, rank: int) -> None:
        now = time.monotonic()
        messages, is_open = self.lines[rank].receive()
        self.heard_of[rank] = now
        for message in messages:
            if "beat" in message:
                count, position, limit, what = message["beat"]
                self._note(rank, Progress(count, position, limit, what), now)
            elif "end" in message:
                self._end_of(rank, Outcome(**message["end"]))
        if not is_open:
            self._lost(rank)

    def _lost(self, rank: int) -> None:
        self._drop(self.lines.pop(rank))
        self.heard_of.pop(rank, None)
        if self._stop:  # launchers that end a job do not wait for everybody
            self._end_of(rank, Outcome("stopped", self._stop, abrupt=True))
        else:
            self._end_of(rank, Outcome("died", 1, LOST))

    # --- rank 0's judgement

    def _end_of(self, rank: int, outcome: Outcome) -> None:
        if rank not in self.ends:
            if all(end.kind == "done" for end in self.ends.values()):
                self.trouble = time.monotonic()
            self.ends[rank] = outcome

    def _decide(self, now: float) -> None:
        cause = root_cause(self.ends)
        if cause is not None:
            outcome = self.ends[cause]
            if now - self.trouble >= SETTLE[outcome.kind] or len(self.ends) == self.size:
                if outcome.kind == "mistake":
                    self._say_mistake(cause, outcome)
                else:
                    self._say_failure(cause, outcome)
                self._end_all(outcome.code)
            return
        stops = [end for end in self.ends.values() if end.kind == "stopped"]
        if len(self.ends) == self.size or (any(end.abrupt for end in stops) and now - self.trouble > ABRUPT):
            self._end_all(max((end.code for end in stops), default=0))
        else:
            self._look_for_hang(now)

    def _look_for_hang(self, now: float) -> None:
        running = {rank: seen for rank, seen in sorted(self.progress.items()) if rank not in self.ends}
        if not running:
            return
        stopping = any(end.kind == "stopped" for end in self.ends.values())
        found = find_hang(running, now, HEARTBEAT if stopping else 0.0)
        if found is None:
            return
        rank, cause = found
        if not self.connected:
            cause += "; the other ranks may never have started"
        self._say_failure(rank, Outcome("died", 1, cause))
        if self.connected:
            self._end_all(1, dump=True)
        else:
            self.child.end(dump=True)
            end_others(self.launch, 1)
            self.code = 1

    def _end_all(self, code: int, dump: bool = False) -> None:
        for line in self.lines.values():
            line.send(over=code, dump=dump)
        self.child.end(dump)
        wait_for_ends(list(self.lines.values()), LEAVE)
        if code and self.launch.launcher == "mpirun":
            end_others(self.launch, code)  # for the exit code: hydra makes 9 of ranks that leave without a finalize
        self.code = code

    def _say_mistake(self, rank: int, outcome: Outcome) -> None:
        alone = rank > 0 or any(end.kind != "mistake" for end in self.ends.values()) or len(self.ends) < self.size
        alone = alone and self.connected
        if alone and outcome.cause:
            write_failure(self.page.failure_file, rank, self.hosts[rank], outcome.cause)
        where = f"rank {rank} on {self.hosts[rank]}: " if alone or rank else ""
        if outcome.cause:
            say(f"pynas: {where}{outcome.cause}")

    def _say_failure(self, rank: int, outcome: Outcome) -> None:
        write_failure(self.page.failure_file, rank, self.hosts[rank], outcome.cause)
        say(f"{outcome.traceback}pynas: rank {rank} on {self.hosts[rank]}: {outcome.cause}")


LOST = "lost (killed with its launcher, or its node is down)"
