"""What the benchmarks share: interleaved rounds, medians, a record of the machine and the versions, tables, JSON.

Import it before numpy and torch: it sets their number of threads (one, or PYNAS_BENCH_THREADS).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("PYNAS_BENCH_THREADS", "1"))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = str(THREADS)

RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None, rounds: int) -> argparse.Namespace:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=rounds, help=f"interleaved rounds (default {rounds})")
    parser.add_argument("--json", type=writable, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--results", action="store_true", help="also write them to benchmarks/results/<name>.json")
    return parser.parse_args()


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number, no smaller."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"got {value}, allowed: {least} and more")
        return value

    return number


def writable(text: str) -> Path:
    """An argument's type: a file in a folder that is there, which is better known before anything is measured."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: no file can be written there")
    return path


@dataclass
class Runs:
    """One case's seconds on the wall and of the processor, and its answers, by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def summary(self, than: Runs | None = None) -> dict[str, Any]:
        """Medians and extremes, and how many times longer than another case it took, round by round."""
        found = {"seconds": spread(self.wall), "cpu_seconds": spread(self.cpu)}
        if than is not None:
            found["ratio"] = spread([a / b for a, b in zip(self.wall, than.wall, strict=True)])
            found["cpu_ratio"] = spread([a / b for a, b in zip(self.cpu, than.cpu, strict=True)])
        return found


def measure(cases: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, Runs]:
    """Every round runs each case once, given the number of the round, and begins with another case, so that a machine
    that slows down does so for all. One round before the first is not counted.
    """
    runs = {name: Runs() for name in cases}
    for case in cases.values():
        case(0)
    names = list(cases)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            answer = cases[name](i)
            runs[name].wall.append(time.perf_counter() - wall)
            runs[name].cpu.append(time.process_time() - cpu)
            runs[name].answers.append(answer)
    return runs


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def machine(*peers: str) -> dict[str, Any]:
    """The processor, its load and the versions of what was measured; a peer that is not installed is None."""
    import pynas
    from pynas import _core
    from pynas.cores import available_cores

    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    versions = {"python": platform.python_version(), "pynas": pynas.__version__}
    for name in ("numpy", *peers):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": (names or [platform.processor()])[0],
        "cores": available_cores(),
        "threads": THREADS,
        "instruction_sets": list(_core.instruction_sets()),
        "load": round(os.getloadavg()[0], 1),  # of the last minute before the start: what else the machine did
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Of the repository that this file is in, with "+" where tracked files differ from it; None outside of one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+",
        "--exclude=*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def missing(peer: str, error: ImportError) -> None:
    print(f"{peer}: skipped, not installed ({error}); pip install '.[bench]' brings it", file=sys.stderr)


def milliseconds(summary: Mapping[str, Any]) -> list[str]:
    """Cells for TIMES."""
    wall = [summary["seconds"][key] for key in ("median", "min", "max")]
    return [f"{1e3 * seconds:.2f}" for seconds in (*wall, summary["cpu_seconds"]["median"])]


TIMES = ("ms", "min", "max", "cpu ms")  # on the wall: median and extremes; of the processor: median


def report(
    name: str,
    options: argparse.Namespace,
    around: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    targets: Sequence[tuple[str, str, bool]],
    data: Mapping[str, Any],
) -> None:
    """Print the table and what became of the targets (what, measured, reached); write the JSON where asked to."""
    versions = "  ".join(f"{key} {value}" for key, value in around["versions"].items() if value)
    print(
        f"{around['cpu']}, {around['cores']} cores, {around['threads']} thread(s), load {around['load']}   {versions}\n"
    )
    cells = [list(map(str, columns)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print(
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
        )
    print()
    for what, measured, reached in targets:
        print(f"{'reached' if reached else 'NOT REACHED'}: {what}: {measured}")
    document = {
        "benchmark": name,
        "machine": around,
        "table": {"columns": list(columns), "rows": cells[2:]},
        "targets": [{"target": what, "measured": measured, "reached": reached} for what, measured, reached in targets],
        **data,
    }
    for path in filter(None, (options.json, RESULTS / f"{name}.json" if options.results else None)):
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {path}")
