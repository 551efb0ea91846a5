"""`pynas train` across nodes of a real Slurm: jobs that submit themselves, batch scripts, requeuing, time limits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cluster import Cluster
from command_line import run_pynas
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "train"))
from train_examples import write_network  # noqa: E402

PATIENCE = 180.0
QUIET = ["epochs=3", "augment=none", "ema_decay=0.9", "dropout=0", "stochastic_depth=0", "mixup=0", "weight_decay=1e-4"]
DIGITS = ["--data", "digits", "--data", "train=512"]
RANKS = ["--nodes", "2", "--tasks-per-node", "2"]

SLOW = """
import os, time, torch
class Slow(torch.nn.Module):
    def __init__(self, classes, input_channels):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(input_channels, 8, 3), torch.nn.BatchNorm2d(8)
        self.fc = torch.nn.Linear(8, classes)
    def forward(self, x):
        if self.training and "SLURM_RESTART_COUNT" not in os.environ:  # in its second life it is quick
            time.sleep(0.15)
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
def make(classes, input_channels):
    return Slow(classes, input_channels)
"""


def settings(*values: str) -> list[str]:
    return [text for value in values for text in ("--set", value)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def logs(folder: Path) -> str:
    paths = sorted([*folder.glob("run/slurm/*_log.*"), *folder.glob("*.log")])
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


def rows(run_folder: Path, event: str) -> list[dict[str, object]]:
    path = run_folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["event"] == event]


def test_two_nodes_of_two_ranks_equal_one_process(slurm: Cluster, tmp_path: Path) -> None:
    """Batch-norm and gradients over 2 x 2 ranks: what one process computes on the whole batch, at the scaled rate."""
    write_network(tmp_path)
    recipe = settings(*QUIET, "batch_size=32", "lr=0.02", "optimizer=SGD")
    command = ["train", "net.yaml", "--dir", "many", *DIGITS, *recipe, *RANKS, "--json"]
    many = run_pynas(*command, cwd=tmp_path)
    assert many.returncode == 0, many.stderr + logs(tmp_path)
    whole = settings(*QUIET, "batch_size=64", "lr=0.04", "optimizer=SGD")
    one = run_pynas("train", "net.yaml", "--dir", "one", *DIGITS, *whole, "--json", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    found, expected = (json.loads(done.stdout)["net"] for done in (many, one))
    assert found["curve"] == pytest.approx(expected["curve"], abs=2.1 / 180)  # of 180 images, two near a border
    losses = [[row["loss"] for row in rows(tmp_path / name, "epoch")] for name in ("many", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("many", "one"))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=2e-3, atol=2e-4, msg=name)
    assert "job" in many.stderr
    assert "epoch 3/3" in many.stderr  # the job's own lines are passed on
    again = run_pynas(*command, cwd=tmp_path)
    assert json.loads(again.stdout)["net"]["curve"] == found["curve"]
    assert "submitted" not in again.stderr


def test_the_batch_script_trains_as_it_stands(slurm: Cluster, tmp_path: Path) -> None:
    write_network(tmp_path)
    (tmp_path / "slurm").symlink_to(REPOSITORY / "slurm")
    arguments = ["net.yaml", "--dir", "run", *DIGITS, *settings("epochs=1", "batch_size=32")]
    variables = {**environment(), "PYNAS_VENV": str(Path(sys.executable).parents[1])}
    done = subprocess.run(
        ["sbatch", "--wait", "slurm/train.sbatch", *arguments],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, logs(tmp_path)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["nodes"] == 2
    (log,) = tmp_path.glob("slurm-pynas-train-*.log")
    assert log.read_text().count("epoch 1/1:") == 1  # rank 0 alone speaks


@pytest.fixture(autouse=True)
def _no_follower_is_left() -> Iterator[None]:
    yield
    for process in followers:
        process.kill()
        process.wait()
    followers.clear()


followers: list[subprocess.Popen[str]] = []


def slow(folder: Path, *more: str, epochs: int = 3) -> list[str]:
    """The command that trains a model which takes its time."""
    (folder / "slow.py").write_text(SLOW)
    recipe = settings(f"epochs={epochs}", "batch_size=32", "augment=none")
    return ["train", "--model", "slow:make", "--dir", "run", *DIGITS, *recipe, "--nodes", "2", *more]


def start_slow(folder: Path, *more: str, epochs: int = 3) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pynas", *slow(folder, *more, epochs=epochs)],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    followers.append(process)
    return process


def job_of(folder: Path) -> str:
    path = folder / "run" / "slurm" / "job.json"
    wait_for(path.exists, lambda: "no job was submitted")
    return json.loads(path.read_text())["job"]


def started(folder: Path) -> None:
    wait_for(lambda: rows(folder / "run", "epoch"), lambda: logs(folder))


def test_a_real_time_limit_checkpoints_and_requeues(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm's own signal ahead of a limit of one minute; whoever follows sees the job through to its end."""
    limit = ["--slurm", "timeout_min=1", "--slurm", "slurm_signal_delay_s=5"]  # which Slurm sends up to 30 s earlier
    process = start_slow(tmp_path, *limit, epochs=40)
    again = start_slow(tmp_path, *limit, epochs=40)  # the same command at the same time: no second job
    job = job_of(tmp_path)
    started(tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err + logs(tmp_path)
    _, other = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0
    assert sorted("at it already" in text for text in (err, other)) == [False, True]
    assert re.search(r"stopped by SIGUSR2; .*step_\d+\.pt.*requeued", err), err
    resumed = rows(tmp_path / "run", "resumed")
    assert resumed
    assert int(str(resumed[0]["step"])) > 8
    assert len(rows(tmp_path / "run", "epoch")) >= 40
    assert job_of(tmp_path) == job


def test_a_signal_before_the_first_step_waits_for_it(slurm: Cluster, tmp_path: Path) -> None:
    """Two at once, and early: one step is made, and then the job goes back into the queue and comes to its end."""
    process = start_slow(tmp_path, epochs=2)
    job = job_of(tmp_path)
    wait_for(lambda: "RUNNING" in slurm.client("squeue", "-h", "-j", job, "-o", "%T"), lambda: logs(tmp_path))
    wait_for((tmp_path / "run" / "slurm" / f"{job}_1_log.out").exists, lambda: logs(tmp_path))
    time.sleep(2.0)  # in which submitit has begun, and torch has not been imported yet
    for number in ("USR2", "USR1"):
        slurm.client("scancel", f"--signal={number}", job)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err + logs(tmp_path)
    assert "requeued" in err
    assert 1 <= int(str(rows(tmp_path / "run", "resumed")[0]["step"])) <= 2


def test_other_settings_do_not_touch_a_training_that_a_job_is_at(slurm: Cluster, tmp_path: Path) -> None:
    slurm.client("scontrol", "update", "PartitionName=main", "State=DOWN")  # jobs wait
    try:
        assert run_pynas(*slow(tmp_path, "--detach"), cwd=tmp_path).returncode == 0
        job = job_of(tmp_path)
        (tmp_path / "run" / "run.json").write_text("as the job's rank 0 leaves it before its first checkpoint")
        files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
        other = run_pynas(*slow(tmp_path, "--detach", epochs=4), cwd=tmp_path)
        assert other.returncode == 2
        assert f"run: job {job} is at it with other settings" in other.stderr
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == files
        same = run_pynas(*slow(tmp_path, "--detach", "--json"), cwd=tmp_path)
        assert same.returncode == 0, same.stderr
        assert f"job {job} is at it already" in same.stderr
    finally:
        slurm.client("scancel", "--state=PENDING")
        slurm.client("scontrol", "update", "PartitionName=main", "State=UP")


def test_scancel_ends_a_training_for_good_and_the_command_goes_on(slurm: Cluster, tmp_path: Path) -> None:
    process = start_slow(tmp_path)
    job = job_of(tmp_path)
    started(tmp_path)
    slurm.client("scancel", job)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    assert f"job {job} ended as CANCELLED without a result" in err
    assert "Traceback" not in err
    process = start_slow(tmp_path, epochs=3)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err + logs(tmp_path)
    assert rows(tmp_path / "run", "resumed")
    assert job_of(tmp_path) != job


def test_a_killed_rank_ends_the_job_with_its_name(slurm: Cluster, tmp_path: Path) -> None:
    process = start_slow(tmp_path)
    job_of(tmp_path)
    started(tmp_path)
    victim = rank_on(slurm, "n2")
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    failed = tmp_path / "run" / "failure.json"
    wait_for(failed.exists, lambda: logs(tmp_path))
    assert time.monotonic() - killed < 10
    wait_for(lambda: not slurm.jobs().strip(), lambda: logs(tmp_path))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    failure = json.loads(failed.read_text())
    assert failure["host"] == "n2"
    assert "signal 9" in failure["cause"]
    assert f"rank {failure['rank']} on n2: killed by signal 9" in logs(tmp_path) + err


def rank_on(cluster: Cluster, node: str) -> int:
    """The process that trains on a node: of the job's processes the one that has loaded most, torch above all."""
    daemon = int((cluster.folder / f"slurmd-{node}.started").read_text())
    room = os.readlink(f"/proc/{daemon}/ns/uts")
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            here = entry.name.isdigit() and os.readlink(entry / "ns" / "uts") == room
            if here and b"submitit" in (entry / "cmdline").read_bytes():
                sizes[int(entry.name)] = int((entry / "statm").read_text().split()[1])
        except OSError:
            continue
    return max(sizes, key=sizes.__getitem__)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--slurm", "slurm_partitio=x"], "slurm_partition"),
        (["--slurm", "slurm_partition=absent"], "invalid partition"),
        (["--tasks-per-node", "3"], "batch_size"),
        (["--set", "lrr=3"], "lrr: unknown key"),
        (["--slurm", "slurm_nodes=3"], "--nodes says it"),
        (["--slurm", "slurm_srun_args=x"], "allowed is a list"),
        (["--dir", "net.yaml/x"], "cannot be made a directory"),
    ],
)
def test_wrong_input_is_one_line(slurm: Cluster, tmp_path: Path, more: list[str], message: str) -> None:
    write_network(tmp_path)
    arguments = ["net.yaml", "--dir", "run", *DIGITS, "--set", "batch_size=32", "--nodes", "2", *more]
    done = run_pynas("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.lower() or message in done.stderr
    assert "Traceback" not in done.stderr
    assert not slurm.jobs().strip()
