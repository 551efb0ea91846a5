"""An FP-NAS study whose searches are Slurm jobs: a killed one goes on where it was, a cancelled one ends the study."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from command_line import run_pynas

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 300.0  # seconds; a minute is usual


def process_of(job: str, study: Path) -> int:
    """The process in which a study's job searches; other clusters of this machine have jobs of this number too."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
            if b"python" in command[0] and os.fsencode(study / "slurm") in command:
                variables = (path / "environ").read_bytes().split(b"\0")
                if f"SLURM_JOB_ID={job}".encode() in variables:
                    return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no process of job {job} of {study}")


@pytest.mark.parametrize("how", ["kill", "cancel"])
def test_a_search_s_job_is_ended(how: str, slurm: Cluster, tmp_path: Path) -> None:
    for name in ("small.yaml", "supernet.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    study, far = tmp_path / "supernet.yaml", tmp_path / "far"
    study.write_text(study.read_text().replace("  dear: {flops: 30k}\n", ""))
    driver = subprocess.Popen(
        [sys.executable, "-m", "pynas", "search", str(study), "--dir", str(far), "--executor", "slurm", "--json"],
        env=slurm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, job = far / "searches" / "cheap" / "log.jsonl", far / "tasks" / "search" / "cheap" / "job.json"
    slurm.wait_for(lambda: log.exists() and bool(log.read_text()), "an epoch is over", PATIENCE)
    number = str(json.loads(job.read_text())["job"])
    if how == "kill":
        os.kill(process_of(number, far), signal.SIGKILL)
    else:
        slurm.client("scancel", number)
    out, errors = driver.communicate(timeout=PATIENCE)
    if how == "cancel":
        assert driver.returncode == 1, errors
        assert "pynas: the search stopped: search cheap: job" in errors
        assert "CANCELLED" in errors
        assert "Traceback" not in errors
        return
    assert driver.returncode == 0, errors
    assert "it goes on after step" in errors
    near = run_pynas("search", str(study), "--dir", str(tmp_path / "near"), "--json", timeout=240)
    assert near.returncode == 0, near.stderr

    def found(text: str) -> Any:
        results = json.loads(text)
        rows = results["searches"]["cheap"]["history"]
        return results["winners"], [{key: row[key] for key in row if key != "seconds"} for row in rows]

    assert found(out) == found(near.stdout)
