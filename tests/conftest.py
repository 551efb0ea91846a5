"""What every part of the tests shares: a line that tells what was left out."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The same examples in every run: a failure is somebody's change, and can be looked into.
hypothesis.settings.register_profile("the same examples", derandomize=True)
hypothesis.settings.load_profile("the same examples")

# Modules of a minute and more. They begin first, so that no test process is left alone with one of them in the end.
LONG = (
    "slurm/test_training.py",
    "slurm/test_recovery.py",
    "nars/test_search.py",
    "nars/test_search_trouble.py",
    "nars/test_asynchronous.py",
    "integrations/test_optuna_sampler.py",
    "nars/test_paper_search.py",
    "mpi/test_mpi_executor.py",
    "train/test_world.py",
    "train/test_train_command.py",
    "nars/test_recipe_only.py",
    "slurm/test_slurm_search.py",
    "slurm/test_slurm_ranks.py",
    "slurm/test_slurm_supernet.py",
    "fpnas/test_fpnas_study.py",
    "mpi/test_mpi_supernet.py",
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that draw from torch's global generator draw the same numbers every time, in whatever order they run."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def unruled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels wherever there are some, not only where they are faster."""
    from pynas.ops import rules

    monkeypatch.setattr(rules, "MEASURED", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by module alone: within one, tests keep their order."""
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get("/".join(item.path.parts[-2:]), len(LONG)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what a machine without Slurm or MPI has not tested; skips are easy to overlook in a thousand tests."""
    left_out = []
    if shutil.which("slurmctld", path="/usr/sbin:/sbin:/usr/local/sbin") is None:
        left_out.append("tests/slurm (make test-slurm installs Debian's Slurm as root and runs them)")
    if shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])) is None:
        left_out.append("tests/mpi (pip install mpich)")
    if left_out:
        terminalreporter.write_line(f"LEFT OUT, not installed here: {'; '.join(left_out)}", yellow=True, bold=True)
