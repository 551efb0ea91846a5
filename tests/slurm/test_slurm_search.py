"""A whole search whose candidates are Slurm jobs, by its batch script, and against one on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from cluster import Cluster
from command_line import run_pynas

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds; half a minute is usual


def found(directory: Path) -> dict[str, bytes]:
    """What a search has found, file by file."""
    paths = [directory / "results.json", directory / "predictor.npz", *(directory / "winners").glob("*.yaml")]
    return {path.name: path.read_bytes() for path in paths}


def test_the_batch_script_goes_on_after_its_time_limit_and_finds_what_one_machine_finds(
    slurm: Cluster, tmp_path: Path
) -> None:
    """SIGUSR1 comes as ahead of the limit, when a candidate has begun; none is trained twice."""
    shutil.copy(ROOT / "tests" / "examples" / "tiny.yaml", tmp_path)
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    text = (ROOT / "tests" / "examples" / "study.yaml").read_text()
    text = text.replace("final: {epochs: 4}", "").replace("{workers: 1,", "{workers: 4,")
    (tmp_path / "study.yaml").write_text(text)
    job = subprocess.run(
        ["sbatch", "--parsable", "slurm/search.sbatch", "study.yaml", "--dir", "far"],
        cwd=tmp_path,
        env={**slurm.environment, "PYNAS_VENV": sys.prefix},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    log, tasks = tmp_path / f"slurm-pynas-search-{job}.log", tmp_path / "far" / "tasks"
    slurm.wait_for(lambda: any(tasks.rglob("progress.jsonl")), "a candidate has begun", PATIENCE)
    slurm.client("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(lambda: "the job goes back into the queue" in log.read_text(), "the script has heard it")

    near = run_pynas("search", "study.yaml", "--dir", "near", "--executor", "local", cwd=tmp_path)
    assert near.returncode == 0, near.stderr

    def state() -> str:
        return slurm.client("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    slurm.wait_for(lambda: state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), "the search", PATIENCE)
    assert state() == "COMPLETED", log.read_text()
    assert "Restarts=1" in slurm.client("scontrol", "show", "job", job)
    assert found(tmp_path / "far") == found(tmp_path / "near")
    assert len(found(tmp_path / "far")) > 2
    jobs = [json.loads(path.read_text()) for path in tasks.rglob("job.json")]
    assert len(jobs) == 8
    assert len({entry["array"] for entry in jobs}) == 2  # one an iteration
    assert not slurm.jobs().strip()
