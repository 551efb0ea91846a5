"""Predictor-based evolutionary search: pynas.evolve, evotorch, pymoo and a plain numpy GA, 50 000 evaluations each.

The paper's space (35 variables), at most 550M FLOPs, predictors of embedding 24 and hidden 32, one thread. Peers run
twice: with scores and FLOPs in torch, and with pynas' compiled ones, where what is left is the search itself. Every
round is another predictor or seed, the same for all but "with statistics", whose predictors have the logarithms of
FLOPs and params among their inputs too. Every answer is checked before a time is printed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import peers
from reference import CoreFitness, Encoding, FlopTables, TorchFitness, reference_flops, reference_score

import pynas
from pynas import EvolutionResult, Predictor, Space

LIMIT = 550_000_000
EVALUATIONS = 50_000
PREDICTORS = 4
STATISTICS = ("flops", "params")
WITH_STATISTICS = "pynas, with statistics"
SPEND_ALL = {"restarts": 1, "patience": 10**9, "max_evaluations": EVALUATIONS}

# The best settings found for each (--tune prints the trials): the best mean score, the faster of equals.
PEERS: dict[str, tuple[str | None, Callable[..., peers.Answer], dict[str, Any]]] = {
    "evotorch": ("evotorch", peers.evotorch_search, {"popsize": 200, "children": 2000}),
    "evotorch functional": ("evotorch", peers.evotorch_functional_search, {"popsize": 200, "children": 2000}),
    "pymoo": ("pymoo", peers.pymoo_search, {"popsize": 200, "children": 2000}),
    "numpy": (None, peers.numpy_search, {"popsize": 100, "children": 2000}),
}

# Around the chosen settings, one change at a time and the corners.
TRIALS: dict[str, list[dict[str, Any]]] = {
    "evotorch": [
        *({"popsize": p, "children": c} for p in (100, 200, 500) for c in (1000, 2000, 4000)),
        *({"genes": genes} for genes in (1.0, 1.5, 3.0)),
        *({"tournament": size} for size in (2, 8)),
        {"crossover": "two-point"},
        {"feasible": False},
    ],
    "evotorch functional": [{"popsize": p, "children": c} for p in (100, 200, 500) for c in (1000, 2000, 4000)],
    "pymoo": [
        *({"popsize": p, "children": c} for p, c in ((100, 100), (200, 200), (100, 1000), (500, 2000), (100, 5000))),
        *({"genes": genes} for genes in (1.0, 3.0)),
        {"duplicates": True},
        {"crossover": "two-point"},
        {"crossover": "sbx", "mutation": "pm"},
        {"crossover": "sbx", "mutation": "pm", "children": 100, "duplicates": True},
        {"feasible": False},
    ],
    "numpy": [
        *({"popsize": p, "children": c} for p in (40, 100, 200) for c in (1000, 2000, 4000)),
        *({"genes": genes} for genes in (1.0, 3.0)),
        {"mating": 1.0},
    ],
}


class Problems:
    """Round i has predictor i modulo PREDICTORS and seed i."""

    def __init__(self) -> None:
        from reference import synthetic_predictor

        self.space: Space = pynas.load_space("fbnetv3", pin={"ema": True})
        self.encoding, self.tables = Encoding(self.space), FlopTables(self.space)
        some = self.space.sample(20_000, seed=1)
        assert np.array_equal(self.tables(some), self.space.costs(some)["flops"]), "the tables of the peers are wrong"
        self.predictors: list[Predictor] = [synthetic_predictor(self.space, i) for i in range(PREDICTORS)]
        self.with_statistics = [synthetic_predictor(self.space, i, inputs=STATISTICS) for i in range(PREDICTORS)]
        self.fitness: dict[str, list[Any]] = {
            "torch": [TorchFitness(p, self.encoding, self.tables) for p in self.predictors],
            "core": [CoreFitness(self.space, p) for p in self.predictors],
        }

    def check(self, i: int, genome: Any, claimed: float | None = None, *, statistics: bool = False) -> float:
        """The reference's score of an answer, which must be feasible."""
        flops = reference_flops(self.space, genome)
        assert flops == self.tables(genome[None])[0], "the tables disagree with the count block by block"
        assert flops <= LIMIT, f"infeasible: {flops} FLOPs"
        predictor = (self.with_statistics if statistics else self.predictors)[i % PREDICTORS]
        costs = self.space.decode(genome)[0].cost()
        score = float(reference_score(predictor, self.encoding, genome[None], costs)[0])
        assert claimed is None or abs(score - claimed) < 1e-3, f"claimed {claimed}, is {score}"
        return score

    def peer(self, name: str, scoring: str, **changes: Any) -> Callable[[int], peers.Answer]:
        _, search, settings = PEERS[name]

        def run(i: int) -> peers.Answer:
            fitness = self.fitness[scoring][i % PREDICTORS]
            return search(peers.Task(self.space, fitness, LIMIT, EVALUATIONS, i), **settings | changes)

        return run

    def pynas(self, *, statistics: bool = False, **settings: Any) -> Callable[[int], EvolutionResult]:
        def run(i: int) -> EvolutionResult:
            predictor = (self.with_statistics if statistics else self.predictors)[i % PREDICTORS]
            return pynas.evolve(self.space, predictor, budget={"flops": LIMIT}, seed=i, threads=1, **settings)

        return run


def installed() -> list[str]:
    names = []
    for name, (package, _, _) in PEERS.items():
        try:
            if package:
                __import__(package)
            names.append(name)
        except ImportError as error:
            harness.missing(name, error)
    return names


def tune(problems: Problems, rounds: int) -> None:
    for name in installed():
        for changes in [{}, *TRIALS[name]]:
            scores, seconds = [], []
            run = problems.peer(name, "torch", **changes)
            for i in range(rounds):
                start = time.process_time()
                genome, _ = run(i)
                seconds.append(time.process_time() - start)
                scores.append(problems.check(i, genome))
            settings = ", ".join(f"{key} {value}" for key, value in (PEERS[name][2] | changes).items())
            times = f"{1e3 * statistics.median(seconds):6.0f} cpu ms (min {1e3 * min(seconds):5.0f})"
            print(f"{name:20}{statistics.mean(scores):8.3f} {times}  {settings}", flush=True)


def main() -> None:
    tuning = "--tune" in sys.argv
    if tuning:
        sys.argv.remove("--tune")
    options = harness.arguments(f"{__doc__}\n--tune: try settings of the peers instead.", rounds=12)
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"torch: not installed ({error}); all peers score with it: pip install torch") from None
    torch.set_num_threads(harness.THREADS)
    around = harness.machine("torch", "evotorch", "pymoo")
    problems = Problems()
    if tuning:
        return tune(problems, options.rounds)

    cases: dict[str, Callable[[int], Any]] = {"pynas": problems.pynas(**SPEND_ALL), "pynas, defaults": problems.pynas()}
    cases[WITH_STATISTICS] = problems.pynas(statistics=True, **SPEND_ALL)
    for name in installed():
        cases[f"{name}, torch scoring"] = problems.peer(name, "torch")
        cases[f"{name}, pynas scoring"] = problems.peer(name, "core")
    runs = harness.measure(cases, options.rounds)

    results: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        scores, spent = [], []
        for i, answer in enumerate(run.answers):
            ours = isinstance(answer, EvolutionResult)
            genome = answer.genomes[0] if ours else answer[0]
            claimed = float(answer.scores[0]) if ours else None
            scores.append(problems.check(i, genome, claimed, statistics=name == WITH_STATISTICS))
            spent.append(answer.evaluations if ours else answer[1])
        results[name] = run.summary(runs["pynas"]) | {
            "evaluations": statistics.mean(spent),
            "evaluations_per_second": statistics.median([n / s for n, s in zip(spent, run.wall, strict=True)]),
            "best_score": statistics.mean(scores),
        }
    rows = [
        (
            name,
            *harness.milliseconds(result),
            f"{result['evaluations']:.0f}",
            f"{result['evaluations_per_second'] / 1e6:.3f}",
            f"{result['ratio']['median']:.1f}",
            f"{result['cpu_ratio']['median']:.1f}",
            f"{result['best_score']:.3f}",
        )
        for name, result in results.items()
    ]
    speed, whole = results["pynas"]["evaluations_per_second"], results["pynas"]["seconds"]["median"]
    targets = [
        ("8 million scored feasible children a second", f"{speed / 1e6:.2f} million", speed >= 8e6),
        ("a whole search below 10 ms", f"{1e3 * whole:.1f} ms", whole < 0.010),
    ]
    for peer, times in (("evotorch", 20), ("pymoo", 300)):
        for scoring in ("torch", "pynas"):
            case = f"{peer}, {scoring} scoring"
            if case in results:
                measured = results[case]["ratio"]["median"]
                targets.append((f"{times} times {peer} with {scoring} scoring", f"{measured:.1f}", measured >= times))
    settings = {name: PEERS[name][2] for name in PEERS}
    columns = ("search", *harness.TIMES, "evaluations", "million/s", "times pynas", "in cpu ms", "best score")
    data = {"settings": {"pynas": SPEND_ALL, **settings}, "results": results}
    harness.report("evolve", options, around, columns, rows, targets, data)


if __name__ == "__main__":
    main()
