"""The command line in a process forked from the tests': a new interpreter would import torch for seconds each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

# Here once rather than in each process: what training imports on its way, which are seconds.
import sklearn.datasets  # noqa: F401
import torch._dynamo

import pynas.report.curve  # noqa: F401
from pynas.cli import main

# On a busy machine torch's threads spin while they wait for one another, and tests take minutes.
torch.set_num_threads(1)


def run_pynas(*arguments: str, cwd: Path | None = None, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """What ``python -m pynas ARGUMENTS`` does in `cwd`; killed by SIGALRM after `timeout` seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            signal.alarm(timeout)
            _become(arguments, cwd, out, err)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(("pynas", *arguments), status, *texts)


def _become(arguments: tuple[str, ...], cwd: Path | None, out: IO[bytes], err: IO[bytes]) -> None:
    status: Any = 1
    try:
        os.chdir(cwd or ".")
        os.environ["OMP_NUM_THREADS"] = "1"
        sys.path.insert(0, os.getcwd())
        sys.argv = ["pynas", *arguments]
        with open(os.devnull) as nothing:
            for number, file in enumerate((nothing, out, err)):
                os.dup2(file.fileno(), number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for the process's life, as _writer's
        sys.stdout, sys.stderr = _writer(1), _writer(2)
        main()
        status = 0
    except SystemExit as leaving:
        status = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)  # and not through what pytest does at its end


def _writer(number: int) -> TextIOWrapper:
    return open(number, "w", buffering=1, closefd=False)
