"""What dies around a candidate: its driver, its node, its place in the queue, the controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import driver
import pytest
from test_executor import PATIENCE, events_of, job_of, make, reports

from pynas.runtime import slurm_jobs
from pynas.runtime.executor import Done, Failed
from pynas.runtime.slurm_arrays import Job
from pynas.runtime.task import TaskFolder

__all__ = ["make"]  # the fixture

HERE = Path(__file__).parent


def run_driver(folder: Path, instant: str, count: int) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [sys.executable, str(HERE / "driver.py"), str(folder), instant, str(count)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, timeout=PATIENCE, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("instant", [*driver.INSTANTS, "watching"])
@pytest.mark.parametrize("count", [3])
def test_no_task_runs_twice_whenever_its_driver_is_killed(make, slurm, tmp_path, instant, count):
    run_driver(tmp_path, instant, count)
    go = tmp_path / "go"
    if instant != "released":
        go.touch()  # tasks end while no driver watches
        if instant == "watching":
            slurm.wait_for(lambda: not slurm.jobs().strip(), "the jobs have ended")
    executor = make(2)
    driver.submit(executor, tmp_path, count)
    if instant == "released":
        reports(executor, 2)
        go.touch()
    events = events_of(executor)
    assert [events[f"1/{index}"][-1] for index in range(count)] == [Done(f"1/{i}", i) for i in range(count)]
    assert [(tmp_path / f"runs-{index}").read_text() for index in range(count)] == ["ran\n"] * count
    executor.close()
    assert not slurm.jobs().strip()
    assert list((tmp_path / "slurm" / "arrays").iterdir()) == []


def test_what_ended_badly_while_no_driver_watched_is_taken_in(make, slurm, tmp_path):
    run_driver(tmp_path, "watching", 3)  # two run, one waits
    array = job_of(tmp_path, "1/0")["job"].partition("_")[0]
    slurm.client("scancel", f"{array}_0")
    slurm.wait_for(lambda: f"{array}_0 " not in slurm.jobs(), "the job is gone")
    (tmp_path / "go").touch()
    slurm.wait_for(lambda: not slurm.jobs().strip(), "the other jobs have ended")
    executor = make(2)
    driver.submit(executor, tmp_path, 3)
    events = events_of(executor)
    last = events["1/0"][-1]
    assert isinstance(last, Failed)
    assert f"job {array}_0 on n" in last.reason
    assert "CANCELLED" in last.reason
    assert events["1/2"][-1] == Done("1/2", 2)


def test_a_job_that_slurm_has_forgotten_is_a_failed_task(make, slurm, tmp_path):
    run_driver(tmp_path, "watching", 1)
    job = job_of(tmp_path, "1/0")["job"]
    slurm.client("scancel", job)
    (record,) = (tmp_path / "slurm" / "arrays").iterdir()
    record.write_text(json.dumps({**json.loads(record.read_text()), "id": "999999"}))  # as after MinJobAge
    executor = make(1)
    driver.submit(executor, tmp_path, 1)
    last = events_of(executor)["1/0"][-1]
    assert isinstance(last, Failed)
    assert "job 999999: Slurm no longer knows it" in last.reason
    driver.submit(executor, tmp_path, 1)  # it can be run again, as every failed task
    (tmp_path / "go").touch()
    assert events_of(executor)["1/0"][-1] == Done("1/0", 0)


def test_a_failure_counts_for_the_array_that_it_came_from(tmp_path):
    folder = TaskFolder(tmp_path, "1/0")
    folder.failure.parent.mkdir(parents=True)
    folder.failure.write_text(json.dumps({"reason": "loss is nan", "kind": "exception", "array": "first"}))
    jobs = [Job(folder, "slurm_tasks:mark", "digest", array=token) for token in ("first", "second")]
    assert [job.failure() for job in jobs] == ["loss is nan", None]


def test_a_job_of_another_payload_is_cancelled(make, slurm, tmp_path):
    run_driver(tmp_path, "watching", 1)
    job = job_of(tmp_path, "1/0")["job"]
    executor = make(1)
    executor.submit("1/0", "slurm_tasks:mark", {"runs": str(tmp_path / "other"), "value": 7})
    assert events_of(executor)["1/0"][-1] == Done("1/0", 7)
    assert (tmp_path / "other").read_text() == "ran\n"
    states = slurm_jobs.query([job])
    assert states is not None
    assert states[job].state == "CANCELLED"


def test_a_controller_that_is_silent_for_a_while_loses_no_job(make, slurm, tmp_path):
    executor = make(2)
    driver.submit(executor, tmp_path, 2)
    reports(executor, 2)
    controller = int((slurm.folder / "slurmctld.started").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        (tmp_path / "go").touch()
        pause = subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {controller}"])
        events = events_of(executor)
        pause.wait()
    finally:
        os.kill(controller, signal.SIGCONT)
    assert [events[f"1/{index}"][-1] for index in range(2)] == [Done("1/0", 0), Done("1/1", 1)]


def test_a_task_runs_again_whose_node_died_or_whose_job_was_requeued(make, slurm, tmp_path):
    """Slurm requeues the first two itself; the others may not be requeued: they are submitted anew, if wanted."""
    until = tmp_path / "go"
    executor, other = make(1, parameters={"slurm_nodelist": "n1"}), make(2, parameters={"slurm_nodelist": "n2"})
    final = {"slurm_nodelist": "n2", "slurm_additional_parameters": {"no-requeue": True}}
    last = type(executor)(tmp_path / "other" / "tasks", parameters=final)
    once = type(executor)(tmp_path / "once" / "tasks", parameters=final, retries=0)
    submitted = {"requeued": executor, "on the node": other, "lost": last, "given-up": once}
    for name, one in submitted.items():
        runs = str(tmp_path / name)
        one.submit(name.replace(" ", "-"), "slurm_tasks:mark", {"runs": runs, "until": str(until)})
        reports(one, 1)
    slurm.client("scontrol", "requeue", job_of(tmp_path, "requeued")["job"])
    slurm.kill_node("n2")
    slurm.client("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=dead")  # Slurm itself finds out in 30 s
    slurm.start_node("n2")
    slurm.client("scontrol", "update", "NodeName=n2", "State=RESUME", check=False)  # refused where it is back already
    until.touch()
    with once:
        given_up = events_of(submitted.pop("given-up"))["given-up"][-1]
    assert isinstance(given_up, Failed)
    assert "NODE_FAIL" in given_up.reason
    assert (tmp_path / "given-up").read_text() == "ran\n"
    for name, one in submitted.items():
        events = events_of(one)
        assert events[name.replace(" ", "-")][-1] == Done(name.replace(" ", "-"), 0)
        assert (tmp_path / name).read_text() == "ran\nran\n"
    assert job_of(tmp_path, "requeued")["attempt"] == job_of(tmp_path, "on-the-node")["attempt"] == 1
    assert json.loads(TaskFolder(tmp_path / "other" / "tasks", "lost").job.read_text())["attempt"] == 2
    last.close()
