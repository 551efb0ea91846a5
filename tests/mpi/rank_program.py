"""A small program that ranks run: ``python rank_program.py WHAT [OPTION...]``. Its functions are what tests ask for."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pynas.errors import PynasError
from pynas.ranks.launch import detect
from pynas.ranks.placement import Placement, place
from pynas.ranks.requeue import requeue, restarts
from pynas.ranks.startup import check
from pynas.ranks.supervisor import beat, supervise

BAD = int(os.environ.get("PROGRAM_BAD", "1"))  # the rank that goes wrong


def meet() -> Placement:
    launch = detect(os.environ)
    assert launch is not None
    beat().allow(float(os.environ.get("PROGRAM_HEARTBEAT", "60")))
    placement = place(launch)
    if folder := os.environ.get("PROGRAM_FOLDER"):
        beat().failure_file(Path(folder) / "failure.json")
    return placement


def wait_for_others(placement: Placement) -> None:
    """A collective call that never returns, for the rank that goes wrong does not make it."""
    beat().advance(101, "step 12: all-reduce")
    placement.gather(0)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def ranks() -> int:
    placement = meet()
    values = placement.gather({"rank": placement.rank, "pid": os.getpid(), "host": os.uname().nodename})
    word = placement.broadcast("from 0" if placement.rank == 0 else None)
    names = ("rank", "size", "local_rank", "local_size", "nodes", "hosts", "addresses")
    say(json.dumps({name: getattr(placement, name) for name in names} | {"values": values, "word": word}))
    placement.close()
    return 0


def checked() -> int:
    placement = meet()
    check(placement, [os.environ["PROGRAM_FOLDER"]])
    say("all is well")
    placement.close()
    return 0


def go_wrong(act: Callable[[], object]) -> int:
    placement = meet()
    subprocess.Popen(["sleep", "600"])  # what a rank has started ends with it
    for step in range(3):
        beat().advance(8 * step, f"step {step}: forward")
        placement.gather(step)
    if placement.rank != BAD:
        wait_for_others(placement)
    say(f"going wrong in process {os.getpid()} of {os.getppid()}")
    act()
    return 0


def fail() -> None:
    raise ValueError(f"what rank {BAD} did not like")


def hang() -> None:
    beat().advance(100, "step 12: forward")
    time.sleep(3600)


def mistake() -> int:
    meet()
    raise PynasError("what every rank finds in the same file")


def early_mistake() -> int:
    raise PynasError("what every rank finds in the same file")


def early(act: Callable[[], object]) -> int:
    """One rank goes wrong before the ranks have met."""
    beat().allow(0)
    launch = detect(os.environ)
    if launch is not None and launch.rank == BAD:
        act()
    meet()
    return 0


def one_mistake() -> int:
    def refuse() -> None:
        raise PynasError("there are no images here")

    return go_wrong(refuse)


def stop() -> int:
    """Works until it is told to stop, then writes its checkpoint and leaves, as a training does."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: told.append(number))
    placement = meet()
    say(f"working in process {os.getpid()} of {os.getppid()}")
    step = 0
    while not any(of_ranks := placement.gather(told[0] if told else 0)):  # they stop for the same one, as trainings do
        step += 1
        beat().advance(8 * step, f"step {step}")
        time.sleep(0.02)
    time.sleep(0.3 * placement.rank)  # they do not all leave at once
    say("checkpoint written")
    return 128 + next(filter(None, of_ranks))


def loss_seen_late() -> int:
    """Rank 1's supervisor is killed while rank 0's gets no time for two seconds."""
    placement = meet()
    judge, *_ = placement.gather(os.getppid())
    if placement.rank == 1:
        os.kill(judge, signal.SIGSTOP)
        go_on = f"import os, time; time.sleep(2); os.kill({judge}, {signal.SIGCONT})"
        nowhere = subprocess.DEVNULL
        subprocess.Popen([sys.executable, "-c", go_on], start_new_session=True, stdout=nowhere, stderr=nowhere)
        os.kill(os.getppid(), signal.SIGKILL)
    placement.gather(0)
    return 0


def wait() -> int:
    """Says that it works, and waits for ever."""
    placement = meet()
    say(f"working in process {os.getpid()} of {os.getppid()}")
    placement.gather(0)
    while True:
        beat().mark("waiting")
        time.sleep(0.1)


def put_back() -> int:
    """The first time puts its job back into the queue."""
    placement = meet()
    if placement.rank == 0:
        say(f"started again {restarts()} times")
        if not restarts():
            say(requeue())
    placement.gather(0)
    placement.close()
    return 0


PROGRAMS: dict[str, Callable[[], int]] = {
    "ranks": ranks,
    "check": checked,
    "raise": lambda: go_wrong(fail),
    "segfault": lambda: go_wrong(lambda: ctypes.string_at(0)),
    "exit": lambda: go_wrong(lambda: os._exit(3)),
    "kill": lambda: go_wrong(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "kill-supervisor": lambda: go_wrong(lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(3600))),
    "loss-seen-late": loss_seen_late,
    "hang": lambda: go_wrong(hang),
    "mistake": mistake,
    "early-mistake": early_mistake,
    "early-raise": lambda: early(fail),
    "early-exit": lambda: early(lambda: os._exit(3)),
    "early-hang": lambda: early(lambda: (beat().allow(2), time.sleep(3600))),
    "one-mistake": one_mistake,
    "stop": stop,
    "requeue": put_back,
    "wait": wait,
}


if __name__ == "__main__":
    launch = detect(os.environ)
    assert launch is not None, "not started as one of several ranks"
    sys.exit(supervise(PROGRAMS[sys.argv[1]], launch))
