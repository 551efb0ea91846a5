"""What the MPI executor costs: 1000 empty candidates on the ranks, against as many empty calls of mpi4py.futures.

Run it as any other benchmark; it starts `mpiexec -n 3` by itself: a driver and two ranks that serve. The calls of
mpi4py.futures return at once in the rank; a candidate goes to the rank's worker process, has its payload, its log and
its result on disk, and is heard of by the driver. Then the ranks wait for ten seconds, which tells what waiting costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

RANKS = 3
COUNT = 1000
IDLE = 10.0  # seconds


def empty(payload: Any = None, report: Any = None) -> None:
    """A candidate, and a call of mpi4py.futures."""


def on_ranks(rounds: int) -> int:
    """What each rank runs; the driver prints its measurements as JSON."""
    from mpi4py import MPI

    from pynas.runtime.executor import Done
    from pynas.runtime.mpi import MPIExecutor, pool

    def candidates(i: int) -> Any:
        with tempfile.TemporaryDirectory() as folder, MPIExecutor(folder, ranks) as executor:
            executor.submit("first", "bench_mpi_executor:empty", {})  # starts a worker
            list(executor.outcomes())
            began = time.perf_counter()
            for index in range(COUNT):
                executor.submit(f"{i}/{index}", "bench_mpi_executor:empty", {"index": index})
            done = sum(isinstance(event, Done) for event in executor.outcomes())
            return done, time.perf_counter() - began

    def calls(i: int) -> Any:
        began = time.perf_counter()
        done = sum(future.result() is None for future in [ranks.submit(empty) for _ in range(COUNT)])
        return done, time.perf_counter() - began

    with pool() as ranks:
        if ranks is None:
            return 0
        waited = time.process_time()
        time.sleep(IDLE)
        idle = {"driver": (time.process_time() - waited) / IDLE, "ranks": _serving(ranks) / IDLE}
        runs = harness.measure({"pynas": candidates, "mpi4py.futures": calls}, rounds)
    answers = {name: run.answers for name, run in runs.items()}
    print(json.dumps({"idle": idle, "answers": answers, "library": MPI.Get_library_version().splitlines()[0]}))
    return 0


def _serving(ranks: Any) -> float:
    """Processor seconds that a rank has used while it waited, the most of any. Its setting up is taken off."""
    first = [ranks.submit(time.process_time) for _ in range(RANKS - 1)]
    start = max(future.result() for future in first)
    time.sleep(IDLE)
    return max(future.result() for future in [ranks.submit(time.process_time) for _ in range(RANKS - 1)]) - start


def main() -> None:
    options = harness.arguments(__doc__, rounds=3)
    around = harness.machine("mpi4py", "mpich", "openmpi")
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [str(mpiexec if mpiexec.exists() else "mpiexec"), "-n", str(RANKS), sys.executable, __file__]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--as-rank", str(options.rounds)],
        env={**os.environ, "PYTHONPATH": path.strip(os.pathsep)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    per: dict[str, list[float]] = {}
    for name, answers in found["answers"].items():
        assert all(count == COUNT for count, _ in answers), name
        per[name] = [seconds / COUNT for _, seconds in answers]
    beyond = [ours - theirs for ours, theirs in zip(per["pynas"], per["mpi4py.futures"], strict=True)]
    per["beyond mpi4py.futures"] = beyond
    results = {name: harness.spread(values) for name, values in per.items()}
    rows = [(name, *(f"{1e3 * value[key]:.2f}" for key in ("median", "min", "max"))) for name, value in results.items()]
    idle = found["idle"]
    rows += [(f"waiting, {who}: % of a core", f"{100 * share:.2f}", "", "") for who, share in idle.items()]
    median = results["beyond mpi4py.futures"]["median"]
    targets = [
        (f"a candidate of {COUNT} below 50 ms beyond mpi4py.futures", f"{1e3 * median:.1f} ms", median < 0.050),
        ("a waiting rank below 2% of a core", f"{100 * max(idle.values()):.2f}%", max(idle.values()) < 0.02),
    ]
    data = {"seconds_a_candidate": results, "idle": idle, "ranks": RANKS, "count": COUNT, "library": found["library"]}
    harness.report("mpi_executor", options, around, ("one of 1000 candidates", "ms", "min", "max"), rows, targets, data)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        from pynas.ranks.launch import detect
        from pynas.ranks.supervisor import supervise

        launch = detect(os.environ)
        assert launch is not None
        sys.exit(supervise(lambda: on_ranks(int(sys.argv[2])), launch))
    main()
