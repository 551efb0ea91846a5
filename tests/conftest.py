"""What every part of the tests shares: a line that tells what was left out."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what a machine without Slurm or MPI has not tested; skips are easy to overlook in a thousand tests."""
    left_out = []
    if shutil.which("slurmctld", path="/usr/sbin:/sbin:/usr/local/sbin") is None:
        left_out.append("tests/slurm (make test-slurm installs Debian's Slurm as root and runs them)")
    if shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])) is None:
        left_out.append("tests/mpi (pip install mpich)")
    if left_out:
        terminalreporter.write_line(f"LEFT OUT, not installed here: {'; '.join(left_out)}", yellow=True, bold=True)
