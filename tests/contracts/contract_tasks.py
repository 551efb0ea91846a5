"""What the tasks of the contract tests do. Workers import it, for pytest puts this folder on the path."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def double(payload: dict, report: Any) -> dict:
    time.sleep(payload.get("seconds", 0))
    return {"value": 2 * payload["value"]}


def count_up(payload: dict, report: Any) -> int:
    for step in range(payload["steps"]):
        report({"epoch": step + 1, "accuracy": step / 10})
    return payload["steps"]


def report_from_threads(payload: dict, report: Any) -> None:
    threads = [threading.Thread(target=lambda: [report(n) for n in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raise_error(payload: dict, report: Any) -> None:
    print("about to fail")
    raise FloatingPointError("loss is nan\nat step 3")


def leave(payload: dict, report: Any) -> None:
    sys.exit(4)


def exit_at_once(payload: dict, report: Any) -> None:
    os._exit(payload["status"])


def kill_self(payload: dict, report: Any) -> None:
    os.kill(os.getpid(), payload["signal"])
    time.sleep(60)


def segfault(payload: dict, report: Any) -> None:
    ctypes.string_at(0)


def blow_up(payload: dict, report: Any) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
    try:
        return len(bytearray(4 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def leave_a_mark(payload: dict, report: Any) -> str:
    """Count the runs of this task in a file."""
    with open(payload["file"], "a") as file:
        file.write("ran\n")
    return "first" if payload.get("answer") is None else payload["answer"]


def meet(payload: dict, report: Any) -> int:
    """Wait until as many tasks are here as are expected, and a little longer for more; return the most ever seen."""
    folder, me = Path(payload["folder"]), Path(payload["folder"]) / f"{os.getpid()}-{time.monotonic_ns()}"
    me.touch()
    deadline, most = time.monotonic() + 20, 0
    while time.monotonic() < deadline:
        most = max(most, len(list(folder.iterdir())))
        if most >= payload["expected"]:
            time.sleep(0.2)
            most = max(most, len(list(folder.iterdir())))
            break
        time.sleep(0.005)
    me.unlink()
    return most


def wait_for_file(payload: dict, report: Any) -> str:
    report(os.getpid())
    if payload.get("child"):
        report(subprocess.Popen(["sleep", "300"]).pid)
    while not Path(payload["file"]).exists():
        time.sleep(0.005)
    return "released"


def talk(payload: dict, report: Any) -> None:
    print(f"python says {payload['word']}")
    print(f"python complains about {payload['word']}", file=sys.stderr)
    os.system(f"echo the shell says {payload['word']}")


def size(payload: dict, report: Any) -> dict:
    return {"came": len(payload["text"]), "back": payload["text"]}


def return_set(payload: dict, report: Any) -> set:
    return {1}


def return_nan(payload: dict, report: Any) -> dict:
    return {"accuracy": float("nan")}


def look_around(payload: dict, report: Any) -> dict:
    return {
        "pid": os.getpid(),
        "threads": [os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "MKL")],
        "interrupt_ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "torch": "torch" in sys.modules,
    }


def tell_environment(payload: dict, report: Any) -> dict:
    return dict(os.environ)
