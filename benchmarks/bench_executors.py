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
import resource, sys
sys.path.append({str(Path(__file__).parent)!r})
from pynas.runtime.slurm import SlurmExecutor
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
executor = SlurmExecutor({str(folder / "tasks")!r}, {limit}, {{"slurm_nodelist": "n1"}})
import submitit
before = peak()
for index in range({count}):
    executor.submit(f"study/{{index}}", "empty:wait", {{"index": index}})
list(executor.outcomes(5))
executor.close(cancel=True)
print(before, peak())
"""
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    before, after = (float(word) for word in output.split())
    return before, after


def study_memory(folder: Path, count: int) -> tuple[float, float, float]:
    """MiB of a driver before and after its study holds `count` finished trials; milliseconds to finish one."""
    script = f"""
import resource, time
from pynas.search import trainings
from pynas.space.space import load_space
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
space = load_space("fbnetv3")
genomes = space.sample({count}, seed=0)
costs = {{name: values.tolist() for name, values in space.costs(genomes).items()}}
trials = [
    Trial(iteration=1, index=i, genome=genome.tolist(), epochs=30, seed=i, costs={{k: v[i] for k, v in costs.items()}})
    for i, genome in enumerate(genomes)
]
with StudyDirectory.create({str(folder)!r}) as directory:
    study = Study.open(directory)
    before = peak()
    trainings.record(study, space, trials)
    begun = time.perf_counter()
    for trial in trials:
        study.finish(trial.key, {{"accuracy": 0.5, "curve": [0.5] * 30, "epochs": 30, "seconds": 1.0}})
    print(before, peak(), 1e3 * (time.perf_counter() - begun) / {count})
"""
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    before, after, each = (float(word) for word in output.split())
    return before, after, each


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
        empty, full, each = study_memory(Path(room) / "journal", 10_000)
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
        ("below 50 ms a candidate beyond the array of true", f"{beyond[0]:.1f} ms", beyond[0] < 50),
        ("below 50 ms a candidate beyond the scheduler and the start of Python", f"{beyond[1]:.1f} ms", beyond[1] < 50),
    ]
    data = {
        "results": results,
        "candidates": count,
        "at_once": limit,
        "beyond_ms": {"true": beyond[0], "python": beyond[1]},
        "driver_mib": {"candidates": 10_000, "before": before, "after": after},
        "study_mib": {"trials": 10_000, "before": empty, "after": full, "ms_to_finish_one": each},
    }
    rows.append(("executor of 10 000 candidates, MiB", f"{after:.1f}", f"{before:.1f} before", "", ""))
    rows.append(("study of 10 000 finished trials, MiB", f"{full:.1f}", f"{empty:.1f} before", "", ""))
    rows.append(("writing the result of one of them into the journal", f"{each:.1f}", "", "", ""))
    harness.report("executors", options, around, ("Slurm, a candidate", *harness.TIMES), rows, targets, data)


if __name__ == "__main__":
    main()
