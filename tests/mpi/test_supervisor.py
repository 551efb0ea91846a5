"""What becomes of a launch when one of its ranks dies, raises, hangs or is stopped."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from launching import MPIEXEC, PATIENCE, Launched, mpi, torchrun

HERE = os.uname().nodename
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install mpich")

WRONG = {
    "raise": "ValueError: what rank 1 did not like",
    "segfault": "killed by signal 11 (SIGSEGV) while step 2: forward",
    "exit": "exited with status 3 while step 2: forward",
    "kill": "killed by signal 9 (SIGKILL, perhaps out of memory) while step 2: forward",
    "hang": "no progress for 2 s, at step 12: forward; the others wait at step 12: all-reduce",
    "kill-supervisor": "lost (killed with its launcher, or its node is down)",
}


@pytest.mark.parametrize("how", WRONG)
def test_the_rank_that_goes_wrong_is_named_and_ends_all(tmp_path: Path, how: str) -> None:
    ended = mpi(4, how, tmp_path, PROGRAM_HEARTBEAT="2" if how == "hang" else "60").end()
    assert ended.code != 0
    assert ended.left == []
    assert ended.told == [f"pynas: rank 1 on {HERE}: {WRONG[how]}"], ended.err
    assert ended.failure == {"rank": 1, "host": HERE, "cause": WRONG[how]}
    if how == "raise":
        assert ended.err.count("Traceback (most recent call last)") == 1
    if how == "hang":
        assert ended.err.count("Current thread") == 4  # the stacks of all ranks
        assert "in hang" in ended.err


def test_the_loss_of_rank_0s_supervisor_is_seen_by_the_others(tmp_path: Path) -> None:
    ended = mpi(2, "kill-supervisor", tmp_path, PROGRAM_BAD="0").end()
    assert ended.code != 0
    assert ended.left == []
    assert ended.told == [f"pynas: rank 0 on {HERE}: lost (killed with its launcher, or its node is down)"], ended.err


def test_a_loss_is_named_on_a_machine_that_is_slow_too(tmp_path: Path) -> None:
    """The launcher ends all ranks as soon as the lost one's pipes are closed, and that must not be before."""
    ended = mpi(2, "loss-seen-late", tmp_path).end()
    assert ended.code != 0
    assert ended.left == []
    assert ended.told == [f"pynas: rank 1 on {HERE}: {WRONG['kill-supervisor']}"], ended.err


@pytest.mark.parametrize("how", ["early-raise", "early-exit", "early-hang"])
def test_a_rank_that_goes_wrong_before_the_ranks_have_met_ends_all(tmp_path: Path, how: str) -> None:
    ended = mpi(4, how, tmp_path).end()
    assert ended.code == 1
    assert ended.left == []
    assert len(ended.told) == 1, ended.err
    assert ended.told[0].startswith(f"pynas: rank 1 on {HERE}: ")
    if how == "early-hang":
        assert "no progress for 2 s, at starting; the other ranks may never have started" in ended.told[0]


@pytest.mark.parametrize("how", ["mistake", "early-mistake"])
def test_a_mistake_that_all_ranks_make_is_told_once(tmp_path: Path, how: str) -> None:
    ended = mpi(4, how, tmp_path).end()
    assert (ended.code, ended.left, ended.failure) == (2, [], None)
    assert ended.told == ["pynas: what every rank finds in the same file"]
    assert "Traceback" not in ended.err


def test_a_mistake_that_one_rank_makes_is_told_with_its_place(tmp_path: Path) -> None:
    ended = mpi(4, "one-mistake", tmp_path).end()
    assert (ended.code, ended.left) == (2, [])
    assert ended.failure == {"rank": 1, "host": HERE, "cause": "there are no images here"}
    assert ended.told == [f"pynas: rank 1 on {HERE}: there are no images here"]


def working(launched: Launched, ranks: int) -> list[int]:
    """The supervisors of the ranks of "stop", once all work."""
    assert launched.process.stdout is not None
    lines = [launched.process.stdout.readline() for _ in range(ranks)]
    return [int(re.fullmatch(r"working in process \d+ of (\d+)\n", line)[1]) for line in lines]  # type: ignore[index]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_are_told_to_stop_write_their_checkpoints(tmp_path: Path, number: signal.Signals) -> None:
    launched = mpi(4, "stop", tmp_path)
    for supervisor in working(launched, 4):
        os.kill(supervisor, number)
        os.kill(supervisor, number)  # launchers and schedulers both may tell
    ended = launched.end()
    assert (ended.code, ended.left, ended.failure, ended.told) == (128 + number, [], None, []), ended.err
    assert ended.out.count("checkpoint written") == 4


def test_one_rank_that_is_told_to_stop_ends_those_that_wait_for_it(tmp_path: Path) -> None:
    """The rank is killed by the signal, as it would be while it starts."""
    launched = mpi(2, "wait", tmp_path)
    os.kill(working(launched, 2)[0], signal.SIGTERM)
    ended = launched.end()
    assert (ended.code, ended.left, ended.failure, ended.told) == (128 + signal.SIGTERM, [], None, []), ended.err


def test_torchrun_ends_with_the_rank_that_goes_wrong(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    begun = time.monotonic()
    ended = torchrun(2, "kill", tmp_path).end()
    assert ended.code != 0
    assert ended.left == []
    assert ended.told == [f"pynas: rank 1 on {HERE}: {WRONG['kill']}"], ended.err
    assert time.monotonic() - begun < PATIENCE
