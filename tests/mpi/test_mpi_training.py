"""`pynas train` under mpiexec: one training on two ranks, and what is left of one that a rank's model ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pynas.cluster import join, training
from pynas.cluster.training import Training
from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.listener import Silent
from pynas.train.signals import Stopped

MPIEXEC = Path(sys.executable).parent / "mpiexec"
MODEL = """
import os, torch
class Net(torch.nn.Module):
    def __init__(self, classes, input_channels):
        super().__init__()
        self.norm, self.fc, self.calls = torch.nn.BatchNorm2d(input_channels), torch.nn.Linear(64, classes), 0
    def forward(self, x):
        self.calls += self.training
        if os.environ.get("PMI_RANK") == os.environ.get("BAD_RANK") and self.calls > 3:
            raise ValueError("something is wrong here")
        return self.fc(self.norm(x).flatten(1))
def make(classes, input_channels):
    return Net(classes, input_channels)
"""


def train(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    if not MPIEXEC.exists():
        pytest.skip("no mpiexec here: pip install mpich")
    (folder / "mine.py").write_text(MODEL)
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "pynas", "train", "--model", "mine:make", "--dir", "run"]
    command += ["--data", "digits", "--data", "train=128", "--set", "epochs=1", "--set", "batch_size=16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_that_raises_on_one_rank_is_told_with_the_rank(tmp_path: Path, rank: int) -> None:
    done = train(tmp_path, BAD_RANK=str(rank))
    assert done.returncode == 2, done.stderr
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["rank"], failure["host"]) == (rank, socket.gethostname())
    assert "ValueError in training: something is wrong here" in failure["cause"]
    assert done.stderr.count(f"pynas: rank {rank} on {socket.gethostname()}: model mine:make: ValueError") == 1


def test_two_ranks_train_and_the_failure_of_the_run_before_goes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "failure.json").write_text("{}")
    done = train(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "failure.json").exists()
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["nodes"], settings["ranks"]) == (1, 2)
    assert done.stderr.count("epoch 1/1: loss") == 1  # rank 0 alone speaks


@pytest.mark.parametrize(
    ("number", "steps_made", "requeued"),
    [(signal.SIGUSR1, True, True), (signal.SIGUSR2, False, False), (signal.SIGINT, True, False)],
)
def test_only_a_training_that_gets_on_requeues_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, steps_made: bool, requeued: bool
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stopped(number, tmp_path / "step_1.pt", steps_made)

    calls: list[Callable[[], str]] = []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(training, "train_models", stop)
    monkeypatch.setattr(join, "requeue", lambda: calls.append(stop) or "job 12 is requeued")
    asked = Training([], DataConfig(name="digits"), tmp_path, None, {}, 0, None, two_step=False)
    with pytest.raises(
        Stopped if steps_made else PynasError, match="stopped by" if steps_made else "ask for more time"
    ):
        asked.here(Silent())
    assert bool(calls) == requeued
