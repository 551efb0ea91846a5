"""Ranks of a real srun on two nodes: rank and node losses, hangs, stops, mistakes, the wrong PMI, requeuing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster

MPI_TESTS = Path(__file__).parents[1] / "mpi"
sys.path.insert(0, str(MPI_TESTS))
from launching import PROGRAM, Launched  # noqa: E402

TASKS = ["--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]


def srun(slurm: Cluster, what: str, folder: Path, *options: str, **variables: str) -> Launched:
    command = ["srun", *TASKS, *options, sys.executable, str(PROGRAM), what]
    return Launched(command, folder, {**slurm.variables, **variables})


def steps_are_over(slurm: Cluster) -> None:
    slurm.wait_for(lambda: not slurm.jobs().strip(), "the queue is empty")


def test_ranks_on_two_nodes_find_each_other(slurm: Cluster, tmp_path: Path) -> None:
    ended = srun(slurm, "ranks", tmp_path).end()
    assert (ended.code, ended.left, ended.told) == (0, [], []), ended.err
    ranks = sorted((json.loads(line) for line in ended.out.splitlines()), key=lambda said: said["rank"])
    assert [said["local_rank"] for said in ranks] == [0, 1, 0, 1]
    for said in ranks:
        assert (said["size"], said["local_size"], said["nodes"]) == (4, 2, 2)
        assert said["hosts"] == ["n1", "n1", "n2", "n2"]
        assert said["addresses"]


def test_ranks_of_a_host_need_not_be_neighbours(slurm: Cluster, tmp_path: Path) -> None:
    ended = srun(slurm, "ranks", tmp_path, "--distribution=cyclic").end()
    ranks = sorted((json.loads(line) for line in ended.out.splitlines()), key=lambda said: said["rank"])
    assert [said["local_rank"] for said in ranks] == [0, 0, 1, 1]
    assert ranks[0]["hosts"] == ["n1", "n2", "n1", "n2"]


WRONG = {
    "raise": "ValueError: what rank 2 did not like",
    "kill": "killed by signal 9 (SIGKILL, perhaps out of memory) while step 2: forward",
    "hang": "no progress for 2 s, at step 12: forward; the others wait at step 12: all-reduce",
    "kill-supervisor": "lost (killed with its launcher, or its node is down)",
}


@pytest.mark.parametrize("kill_on_bad_exit", ["0", "1"])
@pytest.mark.parametrize("how", WRONG)
def test_the_rank_that_goes_wrong_is_named_and_ends_all(
    slurm: Cluster, tmp_path: Path, how: str, kill_on_bad_exit: str
) -> None:
    """With and without --kill-on-bad-exit, on which nothing may depend."""
    variables = {"PROGRAM_BAD": "2", "PROGRAM_HEARTBEAT": "2" if how == "hang" else "60"}
    ended = srun(slurm, how, tmp_path, f"--kill-on-bad-exit={kill_on_bad_exit}", **variables).end()
    assert ended.code != 0
    assert ended.left == []
    assert ended.told == [f"pynas: rank 2 on n2: {WRONG[how]}"], ended.err
    assert ended.failure == {"rank": 2, "host": "n2", "cause": WRONG[how]}


@pytest.mark.parametrize("how", ["early-raise", "early-exit"])
def test_a_rank_that_goes_wrong_before_the_ranks_have_met_ends_all(slurm: Cluster, tmp_path: Path, how: str) -> None:
    ended = srun(slurm, how, tmp_path, "--kill-on-bad-exit=0", PROGRAM_BAD="2").end()
    assert ended.code != 0
    assert ended.left == []
    assert len(ended.told) == 1
    assert ended.told[0].startswith("pynas: rank 2 on n2: "), ended.err


@pytest.mark.parametrize("how", ["mistake", "early-mistake"])
def test_a_mistake_that_all_ranks_make_is_told_once(slurm: Cluster, tmp_path: Path, how: str) -> None:
    ended = srun(slurm, how, tmp_path, "--kill-on-bad-exit=0").end()
    assert (ended.code, ended.left, ended.failure) == (2, [], None), ended.err
    assert ended.told == ["pynas: what every rank finds in the same file"]


def test_an_srun_that_does_not_fit_the_mpi_library_is_told_of_in_one_line(slurm: Cluster, tmp_path: Path) -> None:
    ended = srun(slurm, "ranks", tmp_path, "--mpi=none").end()
    assert (ended.code, ended.out, len(ended.told)) == (2, "", 1), ended.err
    assert "srun started 4 tasks, but each finds itself alone: srun's --mpi does not fit" in ended.told[0]


def test_a_folder_that_nodes_do_not_share_is_named(slurm: Cluster, tmp_path: Path) -> None:
    """/dev/shm is a folder of that name on every node, and another one on each."""
    ended = srun(slurm, "check", Path("/dev/shm")).end()
    assert (ended.code, len(ended.told)) == (2, 1), ended.err
    assert "/dev/shm is not shared: n2 cannot see what n1 writes there" in ended.told[0]


def test_a_lost_node_is_named_and_the_other_ranks_end(slurm: Cluster, tmp_path: Path) -> None:
    launched = srun(slurm, "wait", tmp_path, "--no-kill")
    assert launched.process.stdout is not None
    for _ in range(4):
        launched.process.stdout.readline()
    begun = time.monotonic()
    slurm.kill_node("n2")
    try:
        path = tmp_path / "failure.json"
        slurm.wait_for(path.exists, "the loss is written down")
        slurm.wait_for(lambda: all(command(rank) == "srun" for rank in launched.ranks()), "the other ranks have ended")
        print(f"a lost node was told of after {time.monotonic() - begun:.1f} s")
    finally:
        slurm.start_node("n2")
        slurm.client("scancel", "--user=root", check=False)
    ended = launched.end()
    assert ended.code != 0
    assert ended.failure is not None
    assert ended.failure["host"] == "n2"
    assert ended.failure["cause"] == "lost (killed with its launcher, or its node is down)"
    assert f"pynas: rank {ended.failure['rank']} on n2: {ended.failure['cause']}" in ended.told


def command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return "srun"  # or whatever it was


def batch(slurm: Cluster, folder: Path, what: str, *options: str) -> tuple[str, Path]:
    """Submit the program as a job; its id and its output."""
    out = folder / "out.txt"
    script = folder / "job.sh"
    command = f"srun --kill-on-bad-exit=1 {sys.executable} {PROGRAM} {what}"
    script.write_text(f"#!/bin/bash\nexport PROGRAM_FOLDER={folder}\n{command}\necho exit code $?\n")
    submit = ["sbatch", "--parsable", *TASKS, f"--output={out}", "--open-mode=append", *options, str(script)]
    return slurm.client(*submit).strip(), out


def wait_for_text(slurm: Cluster, path: Path, text: str, times: int = 1) -> None:
    slurm.wait_for(lambda: path.exists() and path.read_text().count(text) >= times, f"{text!r} in {path}")


@pytest.mark.parametrize("name", ["USR1", "USR2", "TERM"])
def test_a_signal_of_slurm_stops_all_ranks_and_is_no_failure(slurm: Cluster, tmp_path: Path, name: str) -> None:
    job, out = batch(slurm, tmp_path, "stop")
    wait_for_text(slurm, out, "working in process", 4)
    slurm.client("scancel", f"--signal={name}", job)
    wait_for_text(slurm, out, "exit code")
    text = out.read_text()
    assert text.count("checkpoint written") == 4
    assert f"exit code {128 + {'USR1': 10, 'USR2': 12, 'TERM': 15}[name]}" in text
    assert "pynas: " not in text
    assert not (tmp_path / "failure.json").exists()


def test_a_job_puts_itself_back_into_the_queue(slurm: Cluster, tmp_path: Path) -> None:
    _, out = batch(slurm, tmp_path, "requeue", "--requeue")
    wait_for_text(slurm, out, "started again 1 times")
    steps_are_over(slurm)


def test_a_job_that_may_not_be_requeued_says_so(slurm: Cluster, tmp_path: Path) -> None:
    job, out = batch(slurm, tmp_path, "requeue", "--no-requeue")
    wait_for_text(slurm, out, "exit code")
    assert f"job {job} could not be requeued: " in out.read_text()
    assert "Requested operation is presently disabled" in out.read_text()
