"""Starting `rank_program.py` as several ranks, and looking for what they leave behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "rank_program.py"
PATIENCE = 240.0  # seconds; what is waited for comes within ten on a machine that does nothing else
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
LAUNCHERS = ("SLURM_", "PMI", "OMPI_", "MPI_", "TORCHELASTIC_")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


@dataclass
class Ended:
    """What came of a launch. `left` are processes that outlived it."""

    code: int
    out: str
    err: str
    failure: dict[str, Any] | None
    left: list[int]

    @property
    def told(self) -> list[str]:
        """The lines that pynas wrote to stderr."""
        return [line for line in self.err.splitlines() if line.startswith("pynas: ")]


@dataclass
class Launched:
    """Ranks that run. Every process of theirs has the token in its environment."""

    command: list[str]
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        added = {"PROGRAM_FOLDER": str(self.folder), "PROGRAM_TOKEN": self.token, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, **added, **self.variables},
        )

    def end(self) -> Ended:
        """Wait for the end; kills what has not ended by then."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
            left = list(self.ranks())
            until = time.monotonic() + 2  # what was killed may take a moment to be gone
            while left and time.monotonic() < until:
                time.sleep(0.05)
                left = list(self.ranks())
        finally:
            for process in [*self.ranks(), self.process.pid]:
                subprocess.run(["kill", "-9", str(process)], check=False, capture_output=True)
        path = self.folder / "failure.json"
        failure = json.loads(path.read_text()) if path.exists() else None
        return Ended(self.process.returncode, out, err, failure, left)

    def ranks(self) -> Iterator[int]:
        """The processes of all ranks on this machine, supervisors and what ranks have started among them."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                ours = path.name != str(self.process.pid) and self.token.encode() in (path / "environ").read_bytes()
                if ours:
                    yield int(path.name)
            except OSError:
                continue


def mpi(ranks: int, what: str, folder: Path, **variables: str) -> Launched:
    return Launched([str(MPIEXEC), "-n", str(ranks), sys.executable, str(PROGRAM), what], folder, variables)


def torchrun(ranks: int, what: str, folder: Path, **variables: str) -> Launched:
    return Launched([*TORCHRUN, str(ranks), str(PROGRAM), what], folder, variables)
