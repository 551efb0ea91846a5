"""What is particular to LocalExecutor: its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pynas.errors import PynasError
from pynas.runtime import local
from pynas.runtime.executor import Done, Failed
from pynas.runtime.local import LocalExecutor


def children() -> set[int]:
    """Processes whose parent is this one, zombies included."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def outcome(executor: LocalExecutor) -> Done | Failed:
    return [event for event in executor.outcomes(20) if isinstance(event, Done | Failed)][-1]


def test_workers_persist_and_closing_leaves_nothing_behind(tmp_path):
    before, descriptors, threads = children(), set(os.listdir("/proc/self/fd")), threading.active_count()
    with LocalExecutor(tmp_path, 2) as executor:
        assert children() == before  # a worker starts with the first task for it
        processes = set()
        for index in range(5):
            executor.submit(str(index), "os:getpid", {})
            # os.getpid takes no arguments, which makes for a failure with a worker that goes on
            assert isinstance(outcome(executor), Failed)
            processes |= children() - before
        assert len(processes) == 1
    assert children() == before
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() <= threads + 1  # the watcher of the last process may be ending


def test_threads_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 7)
    assert [LocalExecutor(tmp_path, workers).threads for workers in (1, 2, 3, 10)] == [7, 3, 2, 1]
    assert LocalExecutor(tmp_path, 4, threads=5).threads == 5


def test_available_cores_are_those_of_the_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from pynas.cores import available_cores; print(available_cores())"
    environment = {**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "1"


@pytest.mark.parametrize("arguments", [(0, None), (-1, None), (1, 0)])
def test_too_few_workers_or_threads_are_refused(tmp_path, arguments):
    with pytest.raises(PynasError, match="at least 1"):
        LocalExecutor(tmp_path, *arguments)


def test_a_worker_that_cannot_start_fails_its_task(tmp_path, monkeypatch):
    with LocalExecutor(tmp_path, 1) as executor:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
        executor.submit("a", "os:getpid", {})
        failed = outcome(executor)
        assert isinstance(failed, Failed)
        assert failed.kind == "died"
        assert "no worker could be started" in failed.reason
        monkeypatch.undo()

        # One that starts and breaks: a module of the project that cannot be imported.
        monkeypatch.setenv("PYTHONHOME", "/nowhere")
        executor.submit("b", "os:getpid", {})
        failed = outcome(executor)
        assert isinstance(failed, Failed)
        assert failed.kind == "died"
        assert "before the task began" in failed.reason
        assert (tmp_path / "b" / "log.txt").read_text()
        monkeypatch.undo()

        executor.submit("c", "os.path:basename", {})
        assert "TypeError" in outcome(executor).reason  # the slot has a worker again


def test_an_idle_worker_that_dies_is_replaced(tmp_path):
    before = children()
    with LocalExecutor(tmp_path, 1) as executor:
        for key in "abc":
            executor.submit(key, "os:getpid", {})
            assert "TypeError" in outcome(executor).reason  # whichever is first: the next task, or word of the death
            (process,) = children() - before
            os.kill(process, signal.SIGKILL)
    assert children() == before


def test_leaving_with_an_exception_cancels(tmp_path):
    before = children()

    def drive() -> None:
        with LocalExecutor(tmp_path, 1) as executor:
            executor.submit("a", "os:getpid", {})
            executor.submit("b", "os:getpid", {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive()
    assert children() == before


def test_runtime_needs_no_torch():
    code = (
        "import sys, pynas.runtime.local, pynas.runtime.worker; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).split() == ["False"] * 2
