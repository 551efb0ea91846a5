"""What `pynas.runtime.executor.Executor` promises, asked of every executor there is."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract_executors import CHOSEN, KINDS, Kind

from pynas.errors import PynasError
from pynas.runtime.executor import Done, Event, Executor, Failed, Progress, Started
from pynas.runtime.task import TaskFolder

HERE = Path(__file__).parent
PATIENCE = 20.0  # seconds; how long a test waits for what should come within one


@pytest.fixture(params=CHOSEN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def kind(name: str) -> Kind:
    return KINDS[name]


@pytest.fixture
def make(kind: Kind, tmp_path: Path) -> Iterator[Callable[[int], Executor]]:
    """Make executors on one folder; those left open are cancelled."""
    made: list[Executor] = []

    def make(slots: int = 2) -> Executor:
        made.append(kind.make(tmp_path / "tasks", slots))
        return made[-1]

    yield make
    for executor in made:
        executor.close(cancel=True)


def events_of(executor: Executor) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in executor.outcomes(PATIENCE):
        found.setdefault(event.key, []).append(event)
    return found


def first(executor: Executor, kind: type) -> Event:
    return next(event for event in executor.outcomes(PATIENCE) if isinstance(event, kind))


def failure(executor: Executor, key: str) -> Failed:
    last = events_of(executor)[key][-1]
    assert isinstance(last, Failed)
    assert "\n" not in last.reason
    return last


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(process: int) -> bool:
    """Whether a process runs; a zombie does not (whoever adopts orphans need not reap them)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_task_gets_its_own_outcome_whatever_the_order(make):
    executor = make(2)
    seconds = [0.15, 0, 0.05, 0, 0, 0.02, 0, 0]
    for index, pause in enumerate(seconds):
        executor.submit(f"1/{index}", "contract_tasks:double", {"value": index, "seconds": pause})
    events = events_of(executor)
    assert events == {f"1/{i}": [Started(f"1/{i}"), Done(f"1/{i}", {"value": 2 * i})] for i in range(len(seconds))}
    assert list(executor.outcomes()) == []


def test_progress_comes_in_order_between_start_and_end(make):
    executor = make(1)
    executor.submit("a", "contract_tasks:count_up", {"steps": 3})
    values = [{"epoch": step + 1, "accuracy": step / 10} for step in range(3)]
    assert list(executor.outcomes()) == [Started("a"), *(Progress("a", value) for value in values), Done("a", 3)]


def test_threads_of_a_task_may_report(make):
    executor = make(1)
    executor.submit("a", "contract_tasks:report_from_threads", {})
    events = events_of(executor)["a"]
    assert sorted(event.value for event in events if isinstance(event, Progress)) == sorted([*range(50)] * 4)


def test_tasks_can_be_added_while_outcomes_are_read_and_no_event_is_lost_between_readings(make):
    executor = make(2)
    executor.submit("0", "contract_tasks:double", {"value": 0})
    done = []
    while True:
        event = next(executor.outcomes(PATIENCE), None)  # a new reading for each event
        if event is None:
            break
        if isinstance(event, Done):
            done.append(event.key)
            if len(done) < 4:
                executor.submit(str(len(done)), "contract_tasks:double", {"value": 1})
    assert done == ["0", "1", "2", "3"]


def test_timeout_ends_the_reading_and_not_the_task(make, kind, tmp_path):
    executor = make(1)
    executor.submit("a", "contract_tasks:wait_for_file", {"file": str(tmp_path / "go")})
    first(executor, Progress)
    began = time.monotonic()
    assert list(executor.outcomes(0.1)) == []
    assert list(executor.outcomes(0)) == []
    assert 0.1 <= time.monotonic() - began < kind.notice
    (tmp_path / "go").touch()
    assert list(executor.outcomes(PATIENCE)) == [Done("a", "released")]


@pytest.mark.parametrize("slots", [1, 3])
def test_as_many_tasks_run_at_once_as_there_are_slots(make, tmp_path, slots):
    executor = make(slots)
    assert executor.slots == slots
    (tmp_path / "meeting").mkdir()
    for index in range(2 * slots + 1):
        last = index == 2 * slots  # which is alone in the end
        payload = {"folder": str(tmp_path / "meeting"), "expected": 1 if last else slots}
        executor.submit(str(index), "contract_tasks:meet", payload)
    most = [events[-1].value for events in events_of(executor).values()]
    assert max(most) == slots


def test_an_exception_fails_its_task_and_leaves_the_traceback_in_the_log(make, tmp_path):
    executor = make(1)
    executor.submit("1/0", "contract_tasks:raise_error", {})
    executor.submit("1/1", "contract_tasks:double", {"value": 4})
    events = events_of(executor)
    assert events["1/0"] == [Started("1/0"), Failed("1/0", "FloatingPointError: loss is nan", "exception")]
    assert events["1/1"][-1] == Done("1/1", {"value": 8})
    folder = TaskFolder(tmp_path / "tasks", "1/0")
    assert "about to fail" in folder.log.read_text()
    assert "Traceback" in folder.log.read_text()
    assert not folder.result.exists()


def test_sys_exit_is_an_exception_of_the_task(make):
    executor = make(1)
    executor.submit("a", "contract_tasks:leave", {})
    assert failure(executor, "a") == Failed("a", "SystemExit: 4", "exception")


@pytest.mark.parametrize(
    ("function", "payload", "reason"),
    [
        ("exit_at_once", {"status": 3}, "exited with status 3"),
        ("exit_at_once", {"status": 0}, "exited with status 0"),
        ("kill_self", {"signal": int(signal.SIGKILL)}, "killed by signal 9 (SIGKILL, perhaps out of memory)"),
        ("kill_self", {"signal": int(signal.SIGTERM)}, "killed by signal 15 (SIGTERM)"),
        ("segfault", {}, "killed by signal 11 (SIGSEGV)"),
    ],
)
def test_a_lost_worker_costs_its_task_alone(make, kind, function, payload, reason):
    executor = make(2)
    for key in ("before", "beside"):
        executor.submit(key, "contract_tasks:double", {"value": 1, "seconds": 0.1})
    executor.submit("lost", f"contract_tasks:{function}", payload)
    for index in range(4):
        executor.submit(str(index), "contract_tasks:double", {"value": index})
    events = events_of(executor)
    lost = events.pop("lost")[-1]
    assert isinstance(lost, Failed)
    assert lost.kind == "died"
    assert reason in lost.reason or not kind.hears_signals
    assert len(events) == 6
    assert all(isinstance(found[-1], Done) for found in events.values())


def test_a_worker_killed_from_outside_is_noticed_at_once(make, kind, tmp_path):
    executor = make(1)
    executor.submit("a", "contract_tasks:wait_for_file", {"file": str(tmp_path / "never")})
    process = first(executor, Progress).value
    began = time.monotonic()
    os.kill(process, signal.SIGKILL)
    assert failure(executor, "a").kind == "died"
    assert time.monotonic() - began < kind.notice


def test_running_out_of_memory_fails_the_task(make):
    executor = make(1)
    executor.submit("a", "contract_tasks:blow_up", {})
    executor.submit("b", "contract_tasks:double", {"value": 1})
    events = events_of(executor)
    assert isinstance(events["a"][-1], Failed)
    assert isinstance(events["b"][-1], Done)


def test_a_failed_task_can_be_submitted_again(make):
    executor = make(1)
    for _ in range(2):
        executor.submit("a", "contract_tasks:raise_error", {})
        assert failure(executor, "a").kind == "exception"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("contract_tasks:no_such_function", "has no function 'no_such_function'"),
        ("no_such_package.module:function", "'no_such_package.module' cannot be imported"),
        ("contract_tasks:HERE", "has no function 'HERE'"),
        ("contract_broken:function", "ZeroDivisionError"),
    ],
)
def test_a_function_that_is_not_there_fails_with_its_name(make, function, reason):
    executor = make(1)
    executor.submit("a", function, {})
    assert reason in failure(executor, "a").reason


def test_what_is_not_json_is_refused(make):
    executor = make(1)
    with pytest.raises(PynasError, match=r"task a: the payload is not JSON.*set"):
        executor.submit("a", "contract_tasks:double", {"value": {1, 2}})
    executor.submit("b", "contract_tasks:return_set", {})
    assert "contract_tasks:return_set returned is not JSON" in failure(executor, "b").reason


def test_nan_passes_through(make):
    executor = make(1)
    executor.submit("a", "contract_tasks:return_nan", {})
    assert math.isnan(first(executor, Done).value["accuracy"])


@pytest.mark.parametrize("key", ["", "../a", "/a", "a/", "a//b", ".a", "a b", "a/.."])
def test_keys_stay_within_the_folder(make, key):
    with pytest.raises(PynasError, match="task key"):
        make(1).submit(key, "contract_tasks:double", {"value": 1})


def test_malformed_functions_are_refused_at_once(make):
    with pytest.raises(PynasError, match=r"package\.module:name"):
        make(1).submit("a", "contract_tasks.double", {"value": 1})


def test_one_key_is_in_flight_once(make, tmp_path):
    executor = make(1)
    executor.submit("a", "contract_tasks:wait_for_file", {"file": str(tmp_path / "go")})
    executor.submit("b", "contract_tasks:double", {"value": 1})
    for key in "ab":
        with pytest.raises(ValueError, match="in flight"):
            executor.submit(key, "contract_tasks:double", {"value": 1})
    (tmp_path / "go").touch()
    assert len(events_of(executor)) == 2


def test_a_finished_task_is_not_run_again(make, tmp_path):
    payload = {"file": str(tmp_path / "runs"), "list": [1, 2.5, None, "ü"]}
    for attempt in range(3):
        executor = make(2)
        executor.submit("1/7", "contract_tasks:leave_a_mark", payload)
        assert events_of(executor)["1/7"][-1] == Done("1/7", "first")
        if attempt:
            executor.submit("1/7", "contract_tasks:leave_a_mark", payload)
            assert list(executor.outcomes()) == [Done("1/7", "first")]
        executor.close()
    assert (tmp_path / "runs").read_text() == "ran\n"


@pytest.mark.parametrize("damage", [b"", b'{"function": "a", "dig', b"[1]", b'{"value": 3}', b"\xff\xfe", b"null"])
def test_a_damaged_result_is_made_anew(make, tmp_path, damage):
    payload = {"file": str(tmp_path / "runs")}
    for _ in range(2):
        executor = make(1)
        executor.submit("a", "contract_tasks:leave_a_mark", payload)
        assert events_of(executor)["a"][-1] == Done("a", "first")
        executor.close()
        TaskFolder(tmp_path / "tasks", "a").result.write_bytes(damage)
    assert (tmp_path / "runs").read_text() == "ran\nran\n"


def test_a_result_of_another_task_is_not_taken_for_this_one(make, tmp_path):
    executor = make(1)
    payload = {"file": str(tmp_path / "runs"), "data": {"root": "/old", "size": 3}}
    executor.submit("a", "contract_tasks:leave_a_mark", payload)
    events_of(executor)
    with pytest.raises(PynasError, match=r'data\.root: "/old" then, "/new" now'):
        executor.submit("a", "contract_tasks:leave_a_mark", {**payload, "data": {"root": "/new", "size": 3}})
    with pytest.raises(PynasError, match="epochs: absent then, 3 now"):
        executor.submit("a", "contract_tasks:leave_a_mark", {**payload, "epochs": 3})
    with pytest.raises(PynasError, match="function contract_tasks:leave_a_mark then, contract_tasks:double now"):
        executor.submit("a", "contract_tasks:double", payload)
    executor.submit("a", "contract_tasks:leave_a_mark", dict(reversed(payload.items())))
    assert list(executor.outcomes()) == [Done("a", "first")]


def test_an_unfinished_task_may_come_back_with_another_payload(make, tmp_path):
    executor = make(1)
    executor.submit("a", "contract_tasks:raise_error", {"value": 1})
    failure(executor, "a")
    executor.submit("a", "contract_tasks:double", {"value": 2})
    assert events_of(executor)["a"][-1] == Done("a", {"value": 4})


def test_closing_lets_running_tasks_finish(make, tmp_path):
    executor = make(1)
    executor.submit("a", "contract_tasks:double", {"value": 1, "seconds": 0.3})
    executor.submit("b", "contract_tasks:double", {"value": 1})
    first(executor, Started)
    executor.close()
    executor.close()
    assert list(executor.outcomes()) == [Done("a", {"value": 2})]
    assert TaskFolder(tmp_path / "tasks", "a").read_result() is not None
    with pytest.raises(RuntimeError):
        executor.submit("c", "contract_tasks:double", {"value": 1})


def test_cancelling_ends_tasks_and_what_they_started(make, kind, tmp_path):
    executor = make(1)
    executor.submit("a", "contract_tasks:wait_for_file", {"file": str(tmp_path / "never"), "child": True})
    executor.submit("b", "contract_tasks:double", {"value": 1})
    reports = (event.value for event in executor.outcomes(PATIENCE) if isinstance(event, Progress))
    processes = [next(reports), next(reports)]
    assert all(alive(process) for process in processes)
    began = time.monotonic()
    executor.close(cancel=True)
    assert time.monotonic() - began < 1 + kind.notice
    wait_until(lambda: not any(alive(process) for process in processes))
    assert list(executor.outcomes()) == []
    assert not TaskFolder(tmp_path / "tasks", "a").result.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_driver(name, kind, tmp_path, end):
    if not kind.ends_with_driver:
        pytest.skip(f"not promised by {name}")
    script = """
import sys
from pathlib import Path
from contract_executors import KINDS
from pynas.runtime.executor import Progress
executor = KINDS[sys.argv[1]].make(Path(sys.argv[2]) / "tasks", 2)
for key in "ab":
    executor.submit(key, "contract_tasks:wait_for_file", {"file": sys.argv[2] + "/never", "child": True})
for event in executor.outcomes():
    if isinstance(event, Progress):
        print(event.value, flush=True)
"""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    driver = subprocess.Popen(
        [sys.executable, "-c", script, name, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    with driver:
        assert driver.stdout is not None
        processes = [int(driver.stdout.readline()) for _ in range(4)]
        assert all(alive(process) for process in processes)
        driver.send_signal(end)
        driver.wait(PATIENCE)
    wait_until(lambda: not any(alive(process) for process in processes))


def test_large_payloads_results_and_reports(make):
    executor = make(2)
    text = "x" * 5_000_000
    for key in "ab":
        executor.submit(key, "contract_tasks:size", {"text": text})
    for events in events_of(executor).values():
        assert events[-1].value == {"came": len(text), "back": text}


def test_output_goes_to_the_log_of_its_own_task(make, tmp_path, capfd):
    executor = make(2)
    for key in ("1/0", "1/1", "1/2"):
        executor.submit(key, "contract_tasks:talk", {"word": f"word-{key}"})
    events_of(executor)
    for key in ("1/0", "1/1", "1/2"):
        text = TaskFolder(tmp_path / "tasks", key).log.read_text()
        assert text.count(f"word-{key}") == 3
        assert text.count("word-") == 3
    assert capfd.readouterr() == ("", "")


def test_the_payload_can_be_read_beside_the_result(make, kind, tmp_path):
    executor = make(1)
    executor.submit("1/0", "contract_tasks:double", {"value": 3})
    events_of(executor)
    folder = TaskFolder(tmp_path / "tasks", "1/0")
    assert json.loads(folder.payload.read_text()) == {"value": 3}
    result = json.loads(folder.result.read_text())
    assert result["value"] == {"value": 6}
    files = {entry.name for entry in folder.path.iterdir()}
    assert {"log.txt", "payload.json", "result.json"} <= files
    assert len(files) == 3 or kind.extra_files


def test_workers_find_their_share_of_threads_and_no_torch(make):
    executor = make(2)
    executor.submit("a", "contract_tasks:look_around", {})
    found = first(executor, Done).value
    assert found["threads"][0] == found["threads"][1]
    assert int(found["threads"][0]) >= 1
    assert found["interrupt_ignored"]
    assert not found["torch"]
