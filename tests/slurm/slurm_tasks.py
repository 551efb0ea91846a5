"""What the candidates of the Slurm tests do. Jobs import it, for pytest puts this folder on the path."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def mark(payload: dict, report: Any) -> int:
    """Count the runs of this task in a file; wait until a file is there, if one is named, but no more than a minute."""
    with open(payload["runs"], "a") as file:
        file.write("ran\n")
    report({"pid": os.getpid(), "node": os.uname().nodename})
    until, deadline = payload.get("until"), time.monotonic() + 60
    while until and not Path(until).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return payload.get("value", 0)


def last_words(payload: dict, report: Any) -> None:
    """Say something on stderr and wait to be ended."""
    print("so far so good")
    print(f"last words of {payload['name']}", file=sys.stderr)
    report({"pid": os.getpid()})
    time.sleep(60)


def fail(payload: dict, report: Any) -> None:
    with open(payload["runs"], "a") as file:
        file.write("ran\n")
    raise FloatingPointError("loss is nan\nat step 3")
