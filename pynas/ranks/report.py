"""What supervisors leave behind of a failure: a line on stderr and a file; and the end of a step they cannot reach."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import subprocess
import termios
import time
from array import array
from contextlib import suppress
from pathlib import Path

from pynas.ranks.launch import Launch

HYDRA = "PMI_FD"  # the environment variable by which a process of hydra's is known, and reaches it
READ = 10.0  # seconds at most for a launcher to read what was said
HEARD = 0.5  # seconds for it to pass that on


def say(text: str) -> None:
    """Write to stderr in one go, so that what several ranks say at once does not mingle."""
    with suppress(OSError):  # whoever read it may be gone
        os.write(2, text.encode(errors="replace") + b"\n")


def write_failure(path: str | None, rank: int, host: str, cause: str) -> None:
    """Write ``{"rank", "host", "cause"}`` to `path`, whole and only if nothing is there. Never raises."""
    if path is None:
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")
    with suppress(OSError):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({"rank": rank, "host": host, "cause": cause}, file)
                file.write("\n")
            os.link(temporary, target)  # fails where there is one, on every host that shares the folder
        finally:
            temporary.unlink(missing_ok=True)


def end_others(launch: Launch, code: int) -> None:
    """Have the launcher end all ranks, of which this one has not found the others: it may wait for them for ever.

    Open MPI and torchrun do so when a rank exits with an error. Hydra asks for MPI's abort, and srun for
    --kill-on-bad-exit or for scancel.
    """
    if launch.launcher == "mpirun" and (descriptor := os.environ.get(HYDRA, "")).isdecimal():
        _wait_until_heard()  # hydra drops what it has not read of the ranks' output when it aborts
        with suppress(OSError):
            os.write(int(descriptor), f"cmd=abort exitcode={code}\n".encode())
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    if launch.launcher == "srun" and job and step:
        with suppress(OSError, subprocess.TimeoutExpired):
            # By itself scancel kills a step, and with it the exit codes of supervisors that are leaving.
            order = ["scancel", *(["--signal=TERM"] if code == 2 else []), f"{job}.{step}"]
            subprocess.run(order, capture_output=True, timeout=5, stdin=subprocess.DEVNULL)


def _wait_until_heard() -> None:
    until = time.monotonic() + READ
    with suppress(OSError):
        while stat.S_ISFIFO(os.fstat(2).st_mode) and _unread(2) and time.monotonic() < until:
            time.sleep(0.02)
    time.sleep(HEARD)


def _unread(pipe: int) -> int:
    """Bytes that are in a pipe."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
