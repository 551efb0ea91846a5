"""An FP-NAS study on MPI ranks: all of them search together, and lose nothing where one of them is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run_pynas
from test_mpi_executor import MPIEXEC, PATIENCE, mpiexec

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install mpich")


def found(results: dict[str, Any], name: str) -> dict[str, list[Any]]:
    """What decides a search's course, epoch by epoch, and what it ends in."""
    rows = results["searches"][name]["history"]
    course = {key: [row[key] for row in rows] for key in ("samples", "genome", "entropy")}
    return {**course, "accuracy": [results["winners"][name]["final"]["accuracy"]]}


def test_ranks_of_which_one_is_killed_go_on_and_find_what_one_process_finds(tmp_path: Path) -> None:
    for name in ("small.yaml", "supernet.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    study = str(tmp_path / "supernet.yaml")
    command = ["-m", "pynas", "search", study, "--json", "--dir", str(tmp_path / "ranks"), "--executor", "mpi"]
    log = tmp_path / "ranks" / "searches" / "cheap" / "log.jsonl"

    ranks = mpiexec(2, *command)
    until = time.monotonic() + PATIENCE
    while not log.exists() or not log.read_text():
        assert time.monotonic() < until
        assert ranks.poll() is None
        time.sleep(0.02)
    os.kill(int((tmp_path / "ranks" / "lock").read_text().split()[1]), signal.SIGKILL)
    _, errors = ranks.communicate(timeout=PATIENCE)
    assert ranks.returncode != 0
    assert "rank 0" in errors
    assert "killed by signal 9" in errors

    ranks = mpiexec(2, *command)
    out, errors = ranks.communicate(timeout=PATIENCE)
    assert ranks.returncode == 0, errors
    assert "search dear: 2 ranks" in errors
    together = json.loads(out)
    local = run_pynas("search", study, "--json", "--dir", str(tmp_path / "local"), timeout=240)
    assert local.returncode == 0, local.stderr
    alone = json.loads(local.stdout)
    for name in ("cheap", "dear"):
        one, other = found(together, name), found(alone, name)
        assert one["samples"] == other["samples"]
        assert one["genome"] == other["genome"]
        assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-5)  # gradients are summed in another order
        assert one["accuracy"] == other["accuracy"]  # of the same network, trained by one rank


def test_one_process_is_told_how_to_start_ranks(tmp_path: Path) -> None:
    for name in ("small.yaml", "supernet.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    done = run_pynas("search", str(tmp_path / "supernet.yaml"), "--executor", "mpi")
    assert done.returncode == 2
    assert "executor mpi: started as one process; start it with srun -n 4" in done.stderr
