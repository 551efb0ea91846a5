"""What a study ran on: ``versions.json``, a list of the distinct environments it has seen, in order."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pynas.files import write_whole

PACKAGES = {"pynas": "pynas-nars", "torch": "torch", "numpy": "numpy", "optuna": "optuna"}


def current_versions() -> dict[str, str]:
    """pynas, python, torch, numpy, optuna, platform, cpu; "absent" for a package that is not installed."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)  # from the metadata: importing torch takes seconds
        except PackageNotFoundError:
            found[name] = "absent"
    return {**found, "platform": platform.platform(), "cpu": cpu_name()}


def read_versions(path: Path) -> list[dict[str, str]]:
    """The environments recorded, the latest last; none if the file is absent or not readable as such."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return recorded if isinstance(recorded, list) else []


def record_versions(path: Path) -> list[dict[str, str]]:
    """Add the current environment to the file at `path` unless it is the latest there; returns all of them."""
    recorded, now = read_versions(path), current_versions()
    if not recorded or recorded[-1] != now:
        recorded.append(now)
        write_whole(path, json.dumps(recorded, indent=2) + "\n")
    return recorded


def cpu_name() -> str:
    """The processor's name as the kernel tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
