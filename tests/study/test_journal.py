"""What kill -9, a full disk and a second driver do to a study: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from study_examples import DISTRIBUTIONS, params, result, trial

from pynas.errors import PynasError
from pynas.study import journal as journal_module
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study

HERE = Path(__file__).parent


def written(path: Path, count: int = 3) -> StudyDirectory:
    """A study with `count` trials, the first of them complete."""
    with StudyDirectory.create(path) as directory:
        study = Study.open(directory)
        study.record([trial(0, i) for i in range(count)], [params(i) for i in range(count)], DISTRIBUTIONS)
        study.finish("0/0", result(0))
    return directory


def start_driver(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "driver.py"), str(path)],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("seed", range(4))
def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path, seed):
    """Drivers in turn on one study, each killed at a random instant within a few hundred writes."""
    draw = random.Random(seed)
    acknowledged: list[list[str]] = []
    for _ in range(3):
        with start_driver(tmp_path / "study") as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "open\n"
            time.sleep(draw.uniform(0, 0.4))
            driver.send_signal(signal.SIGKILL)
            # A last line that the kill tore off was not said.
            acknowledged += [line.split() for line in driver.stdout if line.endswith("\n")]

    with StudyDirectory.open(tmp_path / "study") as directory:
        study = Study.open(directory)
        found = {one.key: one for one in study.trials()}
        for word, key, *epoch in acknowledged:
            one = found[key]
            match word:
                case "progress":
                    assert one.curve[int(epoch[0]) - 1] == result(one.index)["curve"][int(epoch[0]) - 1]
                case "finished":
                    assert (one.state, one.curve) == ("complete", result(one.index)["curve"])
                case "failed":
                    assert (one.state, one.reason) == ("failed", "diverged")
        for one in found.values():  # and nothing is half done
            assert (one.accuracy is not None) == (one.state == "complete")
        study.record([trial(10**6, 0)], [params(0)], DISTRIBUTIONS)
        study.finish("1000000/0", result(0))
        assert Study.open(directory).trials() == study.trials()


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_a_torn_last_line_is_moved_aside(tmp_path, cut):
    directory = written(tmp_path / "study")
    whole = directory.journal.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    cut = min(cut, len(last) - 1)
    directory.journal.write_bytes(whole[:-cut])
    with directory:
        study = Study.open(directory)
        assert directory.torn.read_bytes() == last[:-cut] + b"\n"
        assert directory.journal.read_bytes() == whole[: -len(last)]
        assert study.trial("0/0").state == "running"  # the line said that it is complete
        assert study.finish("0/0", result(0)).state == "complete"
        assert len(Study.open(directory).trials()) == 3


def test_every_way_to_tear_a_batch_leaves_a_study_that_goes_on(tmp_path):
    directory = written(tmp_path / "study")
    before = directory.journal.read_bytes()
    with directory:
        study = Study.open(directory)
        study.record([trial(1, i) for i in range(2)], [params(i) for i in range(2)], DISTRIBUTIONS)
        study.finish("0/1", result(1))
        complete = study.trials()
    after = directory.journal.read_bytes()
    for size in range(len(before), len(after), 97):
        directory.journal.write_bytes(after[:size])
        with directory:
            study = Study.open(directory)
            study.record([trial(1, i) for i in range(2)], [params(i) for i in range(2)], DISTRIBUTIONS)
            study.finish("0/1", result(1))
            assert study.trials() == complete


def test_two_torn_tails_are_both_kept(tmp_path):
    directory = written(tmp_path / "study")
    for tail in (b'{"op_code": 6, "tri', b"\0\0\0\0"):
        with open(directory.journal, "ab") as file:
            file.write(tail)
        with directory:
            Study.open(directory)
    assert directory.torn.read_bytes() == b'{"op_code": 6, "tri\n\0\0\0\0\n'


def test_damage_in_the_middle_is_told_and_left_alone(tmp_path):
    directory = written(tmp_path / "study")
    lines = directory.journal.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b"what is this\n", *lines[2:]])
    directory.journal.write_bytes(damaged)
    with directory, pytest.raises(PynasError, match=r"journal\.log: line 3"):
        Study.open(directory)
    with pytest.raises(PynasError, match="damaged"):
        Study.open(directory, read_only=True)
    assert directory.journal.read_bytes() == damaged


def test_a_stale_lock_of_optunas_does_not_hold_up(tmp_path):
    directory = written(tmp_path / "study")
    lock = Path(f"{directory.journal}.lock")
    lock.symlink_to(directory.journal)
    debris = Path(f"{lock}0123.rename")
    debris.symlink_to(directory.journal)
    began = time.monotonic()
    with directory:
        Study.open(directory).fail("0/1", "died")
    assert time.monotonic() - began < 3
    assert not lock.is_symlink()
    assert not debris.is_symlink()


@pytest.fixture
def hears_ctrl_c():
    """As Python has it, also where a shell's background job has made the tests deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("call", ["symlink", "fsync", "rename", "unlink"])
def test_ctrl_c_in_the_middle_of_a_write_waits_for_its_end(tmp_path, monkeypatch, call, hears_ctrl_c):
    directory = written(tmp_path / "study")
    real, calls = getattr(os, call), []

    def interrupted(*arguments):
        calls.append(arguments)
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    with directory:
        study = Study.open(directory)
        monkeypatch.setattr(os, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.finish("0/1", result(1))
        monkeypatch.setattr(os, call, real)
        assert calls
        assert not Path(f"{directory.journal}.lock").is_symlink()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert study.trial("0/1").state == "complete"
    assert Study.open(directory, read_only=True).trial("0/1").state == "complete"


def test_a_study_may_move(tmp_path, monkeypatch):
    written(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    with StudyDirectory.open("there") as directory:
        monkeypatch.chdir("/")
        assert Study.open(directory).fail("0/1", "died").state == "failed"


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path):
    with start_driver(tmp_path / "study") as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        directory = StudyDirectory.open(tmp_path / "study")
        with pytest.raises(PynasError, match=f"is being driven by process {driver.pid} on"):
            directory.acquire()
        assert not directory.held
        Study.open(directory, read_only=True).trials()
        driver.kill()
        driver.stdout.read()
    with directory:
        assert directory.held
        with pytest.raises(RuntimeError):
            directory.acquire()
        with pytest.raises(PynasError, match=f"process {os.getpid()} on"):
            StudyDirectory.open(tmp_path / "study").acquire()
    assert not directory.held


def test_a_disk_that_is_full_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    directory = written(tmp_path / "study")
    before = directory.journal.read_bytes()
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with directory:
        study = Study.open(directory)
        monkeypatch.setattr(journal_module.os, "fsync", full)
        with pytest.raises(PynasError, match=r"journal\.log cannot be written: No space left on device"):
            study.finish("0/1", result(1))
        monkeypatch.setattr(journal_module.os, "fsync", real)
        assert directory.journal.read_bytes() == before
        with pytest.raises(PynasError, match="open the study again"):
            study.fail("0/2", "died")
        assert Study.open(directory).finish("0/1", result(1)).state == "complete"


def test_a_change_is_one_write(tmp_path, monkeypatch):
    """Writes are what costs on a cluster's file system. Counted, for their time depends on the machine's load."""
    writes, real = [], os.fsync
    monkeypatch.setattr(journal_module.os, "fsync", lambda descriptor: (writes.append(descriptor), real(descriptor))[1])
    count = 50
    with StudyDirectory.create(tmp_path / "study") as directory:
        study = Study.open(directory)
        assert len(writes) == 1
        study.record([trial(0, i) for i in range(count)], [params(i) for i in range(count)], DISTRIBUTIONS)
        assert len(writes) == 2
        for index in range(count):
            study.start(f"0/{index}")
            study.finish(f"0/{index}", result(index))
        assert len(writes) == 2 + 2 * count


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_write_does_not_read_the_journal_again(tmp_path):
    """Else the time of a study would grow with the square of its length."""
    directory = written(tmp_path / "study", count=200)
    with directory:
        study = Study.open(directory)
        before = bytes_read()
        for epoch in range(1, 11):
            study.progress("0/5", epoch, 0.5)
        assert bytes_read() - before < directory.journal.stat().st_size
