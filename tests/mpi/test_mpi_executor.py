"""Candidates on MPI ranks: the contract of executors, what only ranks can do to a task, and a whole search."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run_pynas

from pynas.ranks.launch import detect
from pynas.runtime.mpi_rank import without_rank

HERE = Path(__file__).parent
CONTRACTS = HERE.parent / "contracts"
PATIENCE = 240.0  # seconds; what is waited for comes within ten on a machine that does nothing else
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install mpich")

STUDY = """
space: {space}
pool: {{size: 200}}
iterations: 1
candidates: 3
budgets: {{any: {{}}}}
data: {{name: digits, train: 100, validation: 50}}
training: {{epochs: 2, batch_size: 16}}
predictor: {{pretrain_epochs: 2, frozen_epochs: 4, epochs: 4, folds: 2}}
executor: {{workers: 2, threads: 1}}
"""


def environment() -> dict[str, str]:
    path = [str(CONTRACTS), str(HERE.parents[1])]
    return {**without_rank(os.environ), "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def mpiexec(ranks: int, *command: str, **options: Any) -> subprocess.Popen[str]:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, *command],
        **{**pipes, "text": True, "env": environment(), **options},
    )


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Farm:
    """A driver with two serving ranks, and the tasks it is at: tests/mpi/farm.py."""

    def __init__(self, folder: Path, tasks: dict[str, tuple[str, dict]], ranks: int = 3) -> None:
        self.process = mpiexec(ranks, str(HERE / "farm.py"), str(folder))
        assert self.process.stdin is not None
        for key, (function, payload) in tasks.items():
            self.process.stdin.write(json.dumps([key, function, payload]) + "\n")
        self.process.stdin.close()
        self.process.stdin = None

    def events(self) -> Iterator[list]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and errors."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Farm, dict[str, int]]]:
    """A farm whose two ranks are at endless tasks; the processes of driver, ranks, tasks and what tasks start."""
    endless = ("wait_for_file", {"file": str(tmp_path / "never"), "child": True})
    farm = Farm(tmp_path / "tasks", {"a": endless, "b": endless})
    found: dict[str, int] = {}
    reported: dict[str, list[int]] = {"a": [], "b": []}
    for kind, *values in farm.events():
        if kind == "driver":
            found["driver"] = values[0]
        if kind == "Progress":
            reported[values[0]].append(values[1])
        if all(len(pids) == 2 for pids in reported.values()):
            break
    for key, (task, child) in reported.items():
        found |= {f"task {key}": task, f"child {key}": child, f"rank {key}": parent(task)}
    assert all(alive(pid) for pid in found.values())
    yield farm, found
    farm.process.kill()
    farm.process.wait()


def test_the_contract_of_executors() -> None:
    """The suite that all executors pass, with this one; `python -m mpi4py.futures` lets it open many of them."""
    command = ["-m", "mpi4py.futures", "-m", "pytest", str(CONTRACTS), "-p", "no:cacheprovider", "-p", "no:xdist"]
    suite = mpiexec(4, *command, env={**environment(), "PYNAS_CONTRACT": "mpi", "MPI4PY_FUTURES_BACKOFF": "0.02"})
    out, errors = suite.communicate(timeout=240)
    assert suite.returncode == 0, out[-4000:] + errors[-1000:]
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed[1]) >= 40


def test_what_a_task_starts_is_no_rank(tmp_path: Path) -> None:
    """It would wait for the others, or take the rank's place."""
    farm = Farm(tmp_path, {"a": ("tell_environment", {})})
    last = list(farm.events())[-1]
    assert farm.end()[0] == 0
    assert last[:2] == ["Done", "a"]
    assert detect(last[2]) is None
    assert not [name for name in last[2] if name.startswith(("PMI", "HYDI", "MPI_LOCAL", "OMPI", "PRTE"))]


def test_a_rank_has_its_share_of_the_cores_for_its_worker(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    farm = Farm(tmp_path, {key: ("look_around", {}) for key in "abc"})
    threads = {event[2]["threads"][0] for event in farm.events() if event[0] == "Done"}
    assert farm.end()[0] == 0
    assert threads == {str(max(1, cores // 2))}


@pytest.mark.parametrize("victim", ["driver", "rank a"])
def test_a_rank_that_is_killed_ends_all_and_is_named(busy: tuple[Farm, dict[str, int]], victim: str) -> None:
    farm, processes = busy
    os.kill(processes[victim], signal.SIGKILL)
    code, errors = farm.end()
    assert code != 0
    assert re.search(r"rank \d on \S+: killed by signal 9", errors), errors
    assert ("rank 0 on" in errors) == (victim == "driver")
    wait_until(lambda: not any(alive(pid) for pid in processes.values()), 10)


def test_a_worker_that_is_killed_costs_its_task_alone(busy: tuple[Farm, dict[str, int]], tmp_path: Path) -> None:
    farm, processes = busy
    os.kill(processes["task a"], signal.SIGKILL)
    (tmp_path / "never").touch()
    ends = {event[1]: event for event in farm.events() if event[0] in ("Done", "Failed")}
    assert farm.end()[0] == 0
    assert "killed by signal 9" in ends["a"][2]
    assert ends["b"] == ["Done", "b", "released"]


def test_ctrl_c_ends_all(busy: tuple[Farm, dict[str, int]]) -> None:
    farm, processes = busy
    farm.process.send_signal(signal.SIGINT)
    assert farm.end()[0] != 0
    wait_until(lambda: not any(alive(pid) for pid in processes.values()), 10)


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        (1, ["--executor", "mpi"], "executor mpi: started as one process; start it with srun -n 4"),
        (2, ["--executor", "local"], "executor local: mpirun started 2 processes of this search"),
        (2, ["--executor", "cloud"], "--executor: kind: 'cloud': Input should be 'local', 'slurm' or 'mpi'"),
    ],
)
def test_wrong_starts_are_told_once(tmp_path: Path, ranks: int, options: list[str], message: str) -> None:
    process = mpiexec(ranks, "-m", "pynas", "search", str(study(tmp_path)), *options)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert errors.count(message) == 1, errors
    assert "Traceback" not in errors


def study(folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(STUDY.format(space=HERE.parent / "examples" / "tiny.yaml"))
    return path


def test_a_search_whose_driver_was_killed_goes_on_and_finds_what_a_local_one_finds(tmp_path: Path) -> None:
    path = study(tmp_path)
    command = ["-m", "pynas", "search", str(path), "--json", "--dir"]
    farm = mpiexec(3, *command, str(tmp_path / "farm"), "--executor", "mpi")

    def results() -> dict[Path, int]:
        return {result: result.stat().st_ino for result in (tmp_path / "farm" / "tasks").rglob("result.json")}

    wait_until(lambda: bool(results()) or farm.poll() is not None)
    lock = (tmp_path / "farm" / "lock").read_text()
    os.kill(int(lock.split()[1]), signal.SIGKILL)
    farm.communicate(timeout=PATIENCE)
    assert farm.returncode != 0
    finished = results()
    assert finished

    farm = mpiexec(3, *command, str(tmp_path / "farm"), "--executor", "mpi")
    out, errors = farm.communicate(timeout=PATIENCE)
    assert farm.returncode == 0, errors
    assert finished.items() <= results().items()
    local = run_pynas(*command[2:], str(tmp_path / "local"))
    assert local.returncode == 0, local.stderr
    assert json.loads(out)["winners"] == json.loads(local.stdout)["winners"]
    assert json.loads(out)["iterations"] == json.loads(local.stdout)["iterations"]
