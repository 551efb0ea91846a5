"""Starting searches of the examples, and what they leave on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import run_pynas

EXAMPLES = Path(__file__).parent.parent / "examples"


def short_study(folder: Path) -> Path:
    """The example's search in `folder`, with one iteration and no final trainings."""
    shutil.copy(EXAMPLES / "tiny.yaml", folder)
    text = (EXAMPLES / "study.yaml").read_text()
    study = folder / "study.yaml"
    study.write_text(text.replace("iterations: 2", "iterations: 1").replace("final: {epochs: 4}", ""))
    return study


def start(study: Path, directory: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pynas.cli", "search", str(study), "--dir", str(directory), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(study: Path, directory: Path) -> dict[str, Any]:
    done = run_pynas("search", str(study), "--dir", str(directory), "--json", timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trainings(directory: Path) -> dict[str, tuple[int, int]]:
    """Every result on disk with its inode and time: a second training would replace the file."""
    return {
        str(path.parent.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (directory / "tasks").rglob("result.json")
    }
