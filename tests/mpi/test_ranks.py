"""Who the ranks are, how they exchange values, and what is said of those that do not fit together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import MPIEXEC, PROGRAM, Launched, mpi, torchrun

from pynas.ranks.beat import HEARTBEAT, Page, Progress, SharedBeat
from pynas.ranks.launch import Launch, detect
from pynas.ranks.lines import Line, answer, call, listen
from pynas.ranks.outcome import Outcome, find_hang, of_status, root_cause
from pynas.ranks.requeue import in_slurm_job, requeue
from pynas.ranks.supervisor import beat, parent

needs_mpi = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install mpich")

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}
HYDRA = {"MPI_LOCALNRANKS": "2", "PMI_RANK": "3", "PMI_SIZE": "8"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "16"}


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, None),
        (STEP, Launch("srun", 1, 4)),
        (STEP | {"PMI_RANK": "1", "PMI_SIZE": "4"}, Launch("srun", 1, 4)),
        (HYDRA, Launch("mpirun", 3, 8)),
        (HYDRA | STEP, Launch("mpirun", 3, 8)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"} | STEP, Launch("mpirun", 0, 2)),
        (TORCHRUN, Launch("torchrun", 5, 16)),
        (TORCHRUN | STEP, Launch("torchrun", 5, 16)),
        (TORCHRUN | {"WORLD_SIZE": "1"}, None),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script
        ({"RANK": "0", "WORLD_SIZE": "2"}, None),  # whatever they mean, no launcher known here has set them
    ],
)
def test_the_launcher_is_told_from_the_environment(environment: dict[str, str], launch: Launch | None) -> None:
    assert detect(environment) == launch


def test_telling_the_launcher_imports_nothing_heavy() -> None:
    code = "import sys, pynas.ranks.supervisor, pynas.ranks.placement, pynas.ranks.startup; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert not {"torch", "mpi4py", "numpy"} & set(done.stdout.split())


def test_a_page_holds_what_a_rank_says() -> None:
    page = Page()
    shared = SharedBeat(page)
    assert (page.progress().limit, page.failure_file) == (HEARTBEAT, None)
    shared.mark("reading" + "é" * 2000)
    shared.advance(-3, "step 1: forward")
    shared.allow(0)
    shared.failure_file("/tmp/a folder/failure.json")
    seen = page.progress()
    assert (seen.position, seen.limit, seen.what) == (-3, 0.0, "step 1: forward")
    assert seen.count == 3
    assert page.failure_file == "/tmp/a folder/failure.json"
    with pytest.raises(ValueError, match="too many for the path"):
        shared.failure_file("/" + "x" * 8000)


def test_a_process_of_its_own_has_no_supervisor() -> None:
    beat().mark("alive")
    beat().advance(1, "step")
    beat().allow(1)
    assert parent() is None


def test_outside_of_slurm_nothing_is_requeued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not in_slurm_job()
    assert requeue() == "not requeued: this is no job of Slurm"


def check_ranks(launched: Launched, size: int) -> None:
    ended = launched.end()
    assert (ended.code, ended.left, ended.failure, ended.told) == (0, [], None, []), ended.err
    ranks = sorted((json.loads(line) for line in ended.out.splitlines()), key=lambda said: said["rank"])
    assert [said["rank"] for said in ranks] == [said["local_rank"] for said in ranks] == list(range(size))
    for said in ranks:
        assert (said["size"], said["local_size"], said["nodes"]) == (size, size, 1)
        assert said["hosts"] == [os.uname().nodename] * size
        assert said["addresses"][0] == "127.0.0.1"
        assert [value["rank"] for value in said["values"]] == list(range(size))
        assert said["values"] == ranks[0]["values"]
        assert said["word"] == "from 0"


@needs_mpi
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_of_mpi_find_each_other(tmp_path: Path, size: int) -> None:
    check_ranks(mpi(size, "ranks", tmp_path), size)


def test_ranks_of_torchrun_find_each_other(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    check_ranks(torchrun(2, "ranks", tmp_path), 2)


@needs_mpi
def test_ranks_that_fit_together_pass_the_check(tmp_path: Path) -> None:
    ended = mpi(4, "check", tmp_path).end()
    assert (ended.code, ended.out.split("\n").count("all is well"), ended.told) == (0, 4, []), ended.err
    assert list(tmp_path.iterdir()) == []


def two_kinds(tmp_path: Path, first: list[str], second: list[str]) -> Launched:
    """Ranks 0 and 1 with arguments of mpiexec of their own."""
    program = [sys.executable, str(PROGRAM), "check"]
    return Launched([str(MPIEXEC), "-n", "1", *first, *program, ":", "-n", "1", *second, *program], tmp_path)


def of_environment(tmp_path: Path) -> tuple[Launched, str]:
    name = "OMP_NUM_THREADS"
    return two_kinds(tmp_path, ["-env", name, "1"], ["-env", name, "8"]), f"{name} is '1' on {{}} (rank 0); '8' on"


def of_source(tmp_path: Path) -> tuple[Launched, str]:
    copy = tmp_path / "copy" / "pynas"
    source = Path(__file__).parents[2] / "pynas"
    for path in source.rglob("*"):
        if path.suffix in (".py", ".yaml", ".so"):
            (copy / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(source)).write_bytes(path.read_bytes())
    path = f"{copy.parent}"
    with (copy / "errors.py").open("a") as file:
        file.write("# edited here alone\n")
    return two_kinds(
        tmp_path, [], ["-env", "PYTHONPATH", path]
    ), f"the pynas package is {source} on {{}} (rank 0); {copy}"


@needs_mpi
@pytest.mark.parametrize("difference", [of_environment, of_source])
def test_a_difference_between_ranks_is_named(
    tmp_path: Path, difference: Callable[[Path], tuple[Launched, str]]
) -> None:
    launched, expected = difference(tmp_path)
    ended = launched.end()
    assert (ended.code, ended.left, len(ended.told)) == (2, [], 1), ended.err
    assert "the ranks do not run the same program: " in ended.told[0]
    assert expected.format(os.uname().nodename) in ended.told[0]


@needs_mpi
def test_a_folder_that_does_not_take_files_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    ended = mpi(2, "check", missing).end()
    assert (ended.code, len(ended.told)) == (2, 1), ended.err
    assert f"{missing}: rank 0 on {os.uname().nodename} cannot write there: No such file or directory" in ended.told[0]


@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_that_finds_itself_alone_says_so(tmp_path: Path, rank: int) -> None:
    """What an srun whose --mpi does not fit makes of each task: the variables of a step, and a world of one."""
    variables = {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "4"}
    ended = Launched([sys.executable, str(PROGRAM), "ranks"], tmp_path, variables).end()
    assert (ended.code, ended.out, len(ended.told)) == (2, "", 1 if rank == 0 else 0), ended.err
    if rank == 0:
        assert "srun started 4 tasks, but each finds itself alone: srun's --mpi does not fit" in ended.told[0]
        assert "try --mpi=pmi2 or --mpi=pmix" in ended.told[0]


def test_only_callers_that_know_the_secret_are_answered() -> None:
    server, secret = listen(), "s" * 32
    port = server.getsockname()[1]

    def serve() -> None:
        for _ in range(3):
            connection, _ = server.accept()
            line = Line(connection)
            message = line.wait_for(10)
            if message is not None:
                answer(line, message, secret)
            line.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert call("127.0.0.1", port, "another", 10) is None
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b'{"hello": ["\xc3\xa9"]}\n')
        assert stranger.recv(100) == b""
    line = call("localhost", port, secret, 10)
    assert line is not None
    line.close()
    thread.join()
    server.close()
    assert call("127.0.0.1", port, secret, 1) is None


def seen(position: int, what: str, limit: float = 60) -> Progress:
    return Progress(1, position, limit, what)


def test_of_ranks_that_hang_the_one_behind_is_named() -> None:
    ahead, behind = seen(101, "step 12: all-reduce"), seen(100, "step 12: forward")
    assert find_hang({0: (ahead, 0.0), 1: (behind, 0.0)}, 59.0, 0) is None
    assert find_hang({0: (ahead, 30.0), 1: (behind, 0.0)}, 61.0, 0) is None  # somebody makes progress
    text = "no progress for 60 s, at step 12: forward; the others wait at step 12: all-reduce"
    assert find_hang({0: (ahead, 0.0), 1: (behind, 0.0)}, 61.0, 0) == (1, text)
    text = "no progress for 60 s, at step 12: all-reduce; nor in rank 2 at step 12: all-reduce"
    assert find_hang({0: (ahead, 0.0), 2: (ahead, 0.0)}, 61.0, 0) == (0, text)
    patient = seen(0, "search", 0)
    assert find_hang({0: (patient, 0.0)}, 1e9, 0) is None
    assert find_hang({0: (patient, 0.0)}, 61.0, 60) == (0, "no progress for 60 s, at search")


def test_a_death_outranks_the_errors_it_causes() -> None:
    raised, died = Outcome("raised", 1, "RuntimeError: connection closed"), of_status(-9, set(), "")
    mistake = Outcome("mistake", 2, "no such file")
    assert root_cause({}) is None
    assert root_cause({0: Outcome("done", 0), 1: Outcome("stopped", 143)}) is None
    assert root_cause({3: raised, 1: raised, 2: died}) == 2
    assert root_cause({3: raised, 1: mistake, 0: mistake}) == 3
    assert root_cause({1: mistake, 3: raised}) == 1
    assert root_cause({1: mistake, 0: mistake}) == 0


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0, Outcome("done", 0)),
        (2, Outcome("mistake", 2)),
        (3, Outcome("died", 1, "exited with status 3 while training")),
        (137, Outcome("died", 1, "exited with status 137 while training")),
        (143, Outcome("stopped", 143)),
        (-11, Outcome("died", 1, "killed by signal 11 (SIGSEGV) while training")),
        (-15, Outcome("stopped", 143, abrupt=True)),  # the supervisor has handed it on
        (-2, Outcome("died", 1, "killed by signal 2 (SIGINT) while training")),
    ],
)
def test_exit_codes_tell_how_a_rank_ended(status: int, outcome: Outcome) -> None:
    assert of_status(status, {15}, "training") == outcome
