"""Candidates as jobs of a real Slurm: what the contract of executors promises, and what only Slurm can do to a job."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, alive

from pynas.errors import PynasError
from pynas.runtime.executor import Done, Event, Failed, Progress, Started
from pynas.runtime.open import open_executor
from pynas.runtime.slurm import SlurmExecutor
from pynas.runtime.task import TaskFolder

sys.path.append(str(Path(__file__).parents[1] / "contracts"))  # for contract_tasks, here and in the jobs

PATIENCE = 240.0  # seconds; what is waited for comes within ten on a machine that does nothing else


@pytest.fixture
def make(slurm: Cluster, tmp_path: Path) -> Iterator[Callable[..., SlurmExecutor]]:
    """Make executors on one folder; those left open are cancelled."""
    made: list[SlurmExecutor] = []

    def make(workers: int = 8, **options: Any) -> SlurmExecutor:
        made.append(SlurmExecutor(tmp_path / "tasks", workers, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.close(cancel=True)


def events_of(executor: SlurmExecutor) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in executor.outcomes(PATIENCE):
        found.setdefault(event.key, []).append(event)
    return found


def reports(executor: SlurmExecutor, count: int) -> dict[str, Any]:
    """The first values of the first `count` tasks that report."""
    found: dict[str, Any] = {}
    for event in executor.outcomes(PATIENCE):
        if isinstance(event, Progress):
            found.setdefault(event.key, event.value)
        if len(found) == count:
            break
    return found


def job_of(tmp_path: Path, key: str) -> dict[str, Any]:
    return json.loads(TaskFolder(tmp_path / "tasks", key).job.read_text())


def test_twenty_candidates_are_one_array_of_which_three_run_at_once(make, tmp_path, capfd):
    executor = make(3)
    (tmp_path / "meeting").mkdir()
    for index in range(20):
        payload = {"folder": str(tmp_path / "meeting"), "expected": 3 if index < 3 else 1}
        executor.submit(f"1/{index}", "contract_tasks:meet", payload)
    events = events_of(executor)
    assert all([type(event) for event in found] == [Started, Done] for found in events.values())
    assert max(found[-1].value for found in events.values()) == 3
    jobs = [job_of(tmp_path, f"1/{index}") for index in range(20)]
    array = jobs[0]["job"].partition("_")[0]
    assert [job["job"] for job in jobs] == [f"{array}_{index}" for index in range(20)]
    assert {job["attempt"] for job in jobs} == {1}
    assert list(executor.outcomes()) == []
    executor.submit("1/7", "contract_tasks:meet", {"folder": str(tmp_path / "meeting"), "expected": 1})
    assert list(executor.outcomes()) == [events["1/7"][-1]]
    executor.close()
    assert {path.suffix for path in (tmp_path / "slurm").rglob("*") if path.is_file()} == {".sh"}
    assert capfd.readouterr() == ("", "")


def test_every_end_of_a_task_is_told_for_what_it_is(make, tmp_path):
    runs = tmp_path / "runs"
    tasks: dict[str, tuple[str, dict[str, Any], str]] = {
        "raised": ("slurm_tasks:fail", {"runs": str(runs)}, "FloatingPointError: loss is nan"),
        "left": ("contract_tasks:leave", {}, "SystemExit: 4"),
        "absent": ("no_such_package.module:function", {}, "'no_such_package.module' cannot be imported"),
        "nameless": ("contract_tasks:no_such_function", {}, "has no function 'no_such_function'"),
        "set": ("contract_tasks:return_set", {}, "contract_tasks:return_set returned is not JSON"),
        "killed": ("contract_tasks:kill_self", {"signal": 9}, "killed by signal 9 (SIGKILL, perhaps out of memory)"),
        "ended": (
            "contract_tasks:kill_self",
            {"signal": 15},
            "FAILED, exit code 143:0 (killed by signal 15 (SIGTERM))",
        ),
        "crashed": ("contract_tasks:segfault", {}, "killed by signal 11 (SIGSEGV)"),
        "silent": ("contract_tasks:exit_at_once", {"status": 0}, "COMPLETED without a result, exit code 0:0"),
        "exited": ("contract_tasks:exit_at_once", {"status": 3}, "FAILED, exit code 3:0 (exited with status 3)"),
    }
    executor = make(4)
    for key, (function, payload, _) in tasks.items():
        executor.submit(key, function, payload)
    executor.submit("counts", "contract_tasks:count_up", {"steps": 3})
    executor.submit("threads", "contract_tasks:report_from_threads", {})
    executor.submit("talks", "contract_tasks:talk", {"word": "heureka"})
    executor.submit("looks", "contract_tasks:look_around", {})
    executor.submit("nan", "contract_tasks:return_nan", {})
    events = events_of(executor)
    for index, (key, (_, _, reason)) in enumerate(tasks.items()):
        last = events[key][-1]
        assert isinstance(last, Failed)
        assert reason in last.reason
        assert "\n" not in last.reason
        assert last.kind == ("exception" if index < 5 else "died")
        assert not TaskFolder(tmp_path / "tasks", key).result.exists()
        assert sum(isinstance(event, Done | Failed) for event in events[key]) == 1
    assert runs.read_text() == "ran\n"  # an exception is no reason to run it again
    assert "Traceback" in TaskFolder(tmp_path / "tasks", "raised").log.read_text()
    assert f"job {job_of(tmp_path, 'crashed')['job']} on n" in events["crashed"][-1].reason
    values = [{"epoch": step + 1, "accuracy": step / 10} for step in range(3)]
    assert events["counts"] == [Started("counts"), *(Progress("counts", v) for v in values), Done("counts", 3)]
    said = [event.value for event in events["threads"] if isinstance(event, Progress)]
    assert sorted(said) == sorted([*range(50)] * 4)
    assert TaskFolder(tmp_path / "tasks", "talks").log.read_text().count("heureka") == 3
    assert events["looks"][-1].value["threads"] == ["1", "1"]
    assert not events["looks"][-1].value["torch"]
    assert events["nan"][-1].value["accuracy"] != events["nan"][-1].value["accuracy"]

    executor.submit("raised", "slurm_tasks:fail", {"runs": str(runs)})
    assert isinstance(events_of(executor)["raised"][-1], Failed)
    assert runs.read_text() == "ran\nran\n"
    executor.submit("raised", "contract_tasks:double", {"value": 2})
    assert events_of(executor)["raised"][-1] == Done("raised", {"value": 4})
    with pytest.raises(PynasError, match="value: 2 then, 3 now"):
        executor.submit("raised", "contract_tasks:double", {"value": 3})


def test_a_death_is_noticed_within_seconds(make, slurm, tmp_path):
    executor = make(3, parameters={"cpus_per_task": 2})
    for name in ("killed", "cancelled"):
        executor.submit(name, "slurm_tasks:last_words", {"name": name})
    executor.submit("beside", "slurm_tasks:mark", {"runs": str(tmp_path / "runs"), "until": str(tmp_path / "go")})
    processes = reports(executor, 3)
    began = time.monotonic()
    os.kill(processes["killed"]["pid"], signal.SIGKILL)
    slurm.client("scancel", job_of(tmp_path, "cancelled")["job"])
    with pytest.raises(ValueError, match="in flight"):
        executor.submit("killed", "slurm_tasks:last_words", {"name": "killed"})
    failed: dict[str, Failed] = {}
    while len(failed) < 2:
        event = next(event for event in executor.outcomes(PATIENCE) if isinstance(event, Failed))
        failed[event.key] = event
    assert time.monotonic() - began < 15
    job = job_of(tmp_path, "killed")["job"]
    assert f"job {job} on n" in failed["killed"].reason
    assert "FAILED, exit code 137:0 (killed by signal 9 (SIGKILL, perhaps out of memory))" in failed["killed"].reason
    assert "last words of killed" in failed["killed"].reason
    assert "CANCELLED" in failed["cancelled"].reason
    assert "last words of cancelled" in failed["cancelled"].reason
    (tmp_path / "go").touch()
    assert events_of(executor)["beside"][-1] == Done("beside", 0)


def test_closing_drops_what_waits_and_cancelling_ends_what_runs(make, slurm, tmp_path):
    until, payload = tmp_path / "go", {"runs": str(tmp_path / "runs"), "until": str(tmp_path / "go")}
    executor = make(1)
    executor.submit("runs", "slurm_tasks:mark", payload)
    executor.submit("waits", "slurm_tasks:mark", payload)
    reports(executor, 1)
    until.touch()  # which the driver does not see before it closes
    executor.close()
    assert [event for event in executor.outcomes() if not isinstance(event, Progress)] == [Done("runs", 0)]
    with pytest.raises(RuntimeError):
        executor.submit("more", "slurm_tasks:mark", payload)
    assert not slurm.jobs().strip()

    until.unlink()
    executor = make(2)
    for name in "abc":
        executor.submit(name, "slurm_tasks:mark", payload)
    process = next(iter(reports(executor, 1).values()))["pid"]
    executor.close(cancel=True)
    executor.close(cancel=True)
    assert not alive(process)
    assert not slurm.jobs().strip()
    assert list(executor.outcomes()) == []
    assert list((tmp_path / "slurm" / "arrays").iterdir()) == []


def test_an_array_gets_the_room_that_others_leave(make, tmp_path):
    executor = make(3)
    for name in "ab":
        payload = {"runs": str(tmp_path / "runs"), "until": str(tmp_path / "go")}
        executor.submit(name, "slurm_tasks:mark", payload)
    reports(executor, 2)
    (tmp_path / "meeting").mkdir()
    for index in range(3):  # which meet only if all run at once
        executor.submit(str(index), "contract_tasks:meet", {"folder": str(tmp_path / "meeting"), "expected": 3})
    assert [type(event) for event in executor.outcomes(3) if isinstance(event, Started)] == [Started]
    (tmp_path / "go").touch()
    events = events_of(executor)
    assert [events[str(index)][-1] for index in range(3)] == [Done(str(index), 3) for index in range(3)]


def test_another_kind_of_executor_does_not_take_up_what_slurm_still_has(
    make: Callable[..., SlurmExecutor], tmp_path: Path
) -> None:
    executor = make(2)
    for key in "ab":
        executor.submit(key, "contract_tasks:wait_for_file", {"file": str(tmp_path / "never")})
    reports(executor, 1)
    number = job_of(tmp_path, "a")["job"].partition("_")[0]
    with pytest.raises(PynasError, match=rf"still run or wait on Slurm \(jobs {number}\); .* scancel {number}"):
        open_executor("local", tmp_path / "tasks", workers=1)
    executor.close(cancel=True)
    with open_executor("local", tmp_path / "tasks", workers=1) as local:
        local.submit("a", "contract_tasks:double", {"value": 2})
        assert [*local.outcomes(PATIENCE)][-1] == Done("a", {"value": 4})
