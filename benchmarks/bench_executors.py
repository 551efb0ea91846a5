"""What a driver costs: 1000 empty candidates on a real two-node Slurm (tests/slurm/cluster.py), and 10 000 that wait.

SlurmExecutor against bare sbatch arrays of as many tasks with the same limit: of `true`, which is the scheduler's own
time, and of Python importing what submitit and a candidate import, which is what every job costs before it begins.
Needs root and Debian's Slurm, as `make test-slurm` does.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

sys.path.append(str(Path(__file__).parents[1] / "tests" / "slurm"))
START = "import submitit.core.submission, pynas.runtime.slurm_task"


def bare(count: int, limit: int, command: str) -> None:
    """An array of one command; returns when Slurm has it as ended."""
    options = ["--parsable", "--output=/dev/null", f"--array=0-{count - 1}%{limit}", f"--wrap={command}"]
    job = subprocess.run(["sbatch", *options], check=True, capture_output=True, text=True).stdout.strip()
    while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True).stdout.strip():
        time.sleep(0.1)


def candidates(folder: Path, count: int, limit: int) -> None:
    from pynas.runtime.executor import Done
    from pynas.runtime.slurm import SlurmExecutor

    with SlurmExecutor(folder / "tasks", limit) as executor:
        for index in range(count):
            executor.submit(str(index), "empty:nothing", {"index": index})
        found = {event.key: event.value for event in executor.outcomes() if isinstance(event, Done)}
    assert found == {str(index): index for index in range(count)}


def memory(folder: Path, count: int, limit: int) -> tuple[float, float]:
    """MiB of a driver before and after it has `count` candidates, the first arrays of them with Slurm."""
    script = f"""
import resource
from pynas.runtime.slurm import SlurmExecutor
from pynas.runtime import slurm_jobs
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
executor = SlurmExecutor({str(folder / "tasks")!r}, {limit}, {{"slurm_nodelist": "n1"}})
import submitit
before = peak()
for index in range({count}):
    executor.submit(f"study/{{index}}", "time:sleep", {{"index": index}})
list(executor.outcomes(5))
executor.close(cancel=True)
print(before, peak())
"""
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    before, after = (float(word) for word in output.split())
    return before, after


def cpu() -> float:
    """Seconds of the processor of this process and of the clients it has run; the jobs are Slurm's."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    options = harness.arguments(__doc__, rounds=1)
    around = harness.machine("submitit")
    count, limit = int(os.environ.get("PYNAS_BENCH_CANDIDATES", "1000")), 32
    from cluster import Cluster, missing

    if lacking := missing():
        sys.exit(f"not here: {', '.join(lacking)}")
    python = f"{sys.executable} -u -c '{START}'"
    runs = {name: harness.Runs() for name in ("sbatch array of true", "sbatch array of Python", "pynas")}
    with tempfile.TemporaryDirectory() as room, Cluster(Path(room) / "slurm") as cluster:
        os.environ.update(cluster.variables)
        for i in range(options.rounds):
            cases: dict[str, Any] = {
                "sbatch array of true": lambda: bare(count, limit, "true"),
                "sbatch array of Python": lambda: bare(count, limit, python),
                "pynas": lambda i=i: candidates(Path(room) / f"study-{i}", count, limit),
            }
            names = list(cases)
            for name in names[i % 3 :] + names[: i % 3]:
                wall, used = time.perf_counter(), cpu()
                cases[name]()
                runs[name].wall.append(time.perf_counter() - wall)
                runs[name].cpu.append(cpu() - used)
        before, after = memory(Path(room) / "many", 10_000, 64)
    results = {name: run.summary(runs["pynas"]) for name, run in runs.items()}
    rows = [
        (
            name,
            *(f"{1e3 * r['seconds'][key] / count:.1f}" for key in ("median", "min", "max")),
            f"{1e3 * r['cpu_seconds']['median'] / count:.1f}",
        )
        for name, r in results.items()
    ]
    beyond = [
        1e3
        * harness.spread([a - b for a, b in zip(runs["pynas"].wall, runs[name].wall, strict=True)])["median"]
        / count
        for name in ("sbatch array of true", "sbatch array of Python")
    ]
    rows.append(("pynas beyond the array of true", f"{beyond[0]:.1f}", "", "", ""))
    rows.append(("pynas beyond the array of Python", f"{beyond[1]:.1f}", "", "", ""))
    targets = [
        ("below 50 ms a candidate beyond the scheduler and the start of Python", f"{beyond[1]:.1f} ms", beyond[1] < 50)
    ]
    data = {
        "results": results,
        "candidates": count,
        "at_once": limit,
        "beyond_ms": {"true": beyond[0], "python": beyond[1]},
        "driver_mib": {"candidates": 10_000, "before": before, "after": after},
    }
    rows.append(("driver of 10 000 candidates, MiB", f"{after:.1f}", f"{before:.1f} before", "", ""))
    harness.report("executors", options, around, ("Slurm, a candidate", *harness.TIMES), rows, targets, data)


if __name__ == "__main__":
    main()
