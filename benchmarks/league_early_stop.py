"""What stopping trainings early saves and costs, on a table that has learning curves.

Aimed selection in eight rounds; the first trains to the end. *to the end*: so does every other. *0.92*: they stop at
the first epoch whose rank correlation with the last reaches 0.92 in the first round (section 3.3), what a study does;
answers are the best at that epoch. *epoch N*: they stop there. *hopeless*: a training stops where what its curve lets
expect (`pynas.nars.curves`), and two deviations more, is below the best of every budget that admits it; its label is
what was expected, with its variance. Regret is of the accuracy after the last epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from league_search import Game
from league_tables import Table, read_csv

from pynas.nars.acquisition import shortlist
from pynas.nars.aimed import aimed_picks, best_within, first_picks
from pynas.nars.curves import expected
from pynas.nars.early_stop import early_stop_epoch

TABLE = Path(__file__).parent / "tables" / "fbnetv3_28.csv"
ROUNDS, COUNT, SEEDS = 8, 64, 20


class Played(NamedTuple):
    regret: float
    epochs: float  # trained, as a share of training every candidate to the end


def play(table: Table, seed: int, rule: str) -> Played:
    curves, within = table.curves, table.within
    assert curves is not None
    game, last, m = Game(table, seed), curves.shape[1], COUNT // ROUNDS
    chosen = first_picks(within, m, seed=seed)
    stop = last
    if rule == "0.92":
        stop = early_stop_epoch(curves[chosen].tolist(), 0.92, last).epoch
    elif rule.startswith("epoch"):
        stop = int(rule.split()[1])
    spent = last * m
    whole = list(chosen)  # trained as far as answers are compared
    labels = dict(zip(chosen, curves[chosen, stop - 1].tolist(), strict=True))
    variances = dict.fromkeys(chosen, 0.0)
    while len(chosen) < COUNT:
        rows = np.array(chosen)
        settings = {"variance": np.array([variances[row] for row in chosen])}
        model = _fit(game, rows, np.array([labels[row] for row in chosen]), settings)
        features, open_ = game.features(model), within & game.free(chosen)
        mean, deviation = model.process.predict(features)
        listed = shortlist(mean, deviation, open_, m)
        greedy = len(chosen) + m >= COUNT
        believer = None if greedy else model.process.believer(features[listed])
        picks = aimed_picks(
            mean[listed],
            deviation[listed],
            open_[:, listed],
            m,
            turn=len(chosen),
            seed=seed,
            greedy=greedy,
            picked=believer,
        )
        new = [int(row) for row in listed[np.array(picks)]]
        complete = [curves[row].tolist() for row in whole]
        best = {b: max((labels[row] for row in whole if within[b, row]), default=-np.inf) for b in range(len(within))}
        for row in new:
            curve = curves[row].tolist()
            labels[row], variances[row], epochs = curve[stop - 1], 0.0, stop
            if rule == "hopeless":
                least = min(best[b] for b in best if within[b, row])
                for epoch in range(1, last):
                    guess = expected(complete, curve[:epoch], last)
                    if guess and guess.accuracy + 2 * guess.variance**0.5 < least:
                        labels[row], variances[row], epochs = guess.accuracy, guess.variance, epoch
                        break
            spent += epochs
            if epochs == stop:
                whole.append(row)
        chosen += new
    rows = np.array(whole)
    found = best_within(np.array([labels[row] for row in whole]), within[:, rows])
    answers = [None if i is None else int(rows[i]) for i in found]
    return Played(game.regret(answers), spent / (COUNT * last))


def _fit(game: Game, rows: Any, labels: Any, settings: dict[str, Any]) -> Any:
    from pynas.predict.models import fit_model

    domain, batch = game.table.domain, game.table.batch[rows]
    return fit_model("gaussian_process", domain, game.unlabelled, batch, labels, seed=game.seed, **settings)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def main(table: Path = TABLE) -> None:
    options = harness.arguments(__doc__, rounds=SEEDS)
    around = harness.machine("scipy")
    read = read_csv(table)
    assert read.curves is not None
    rules = ["to the end", "0.92", *(f"epoch {n}" for n in range(3, read.curves.shape[1])), "hopeless"]
    games = {rule: [play(read, seed, rule) for seed in range(options.rounds)] for rule in rules}
    rows: list[Sequence[Any]] = []
    for rule, played in games.items():
        regret, error = mean_and_error([game.regret for game in played])
        against = [one.regret - other.regret for one, other in zip(played, games["to the end"])]
        more, its_error = mean_and_error(against)
        share = float(np.mean([game.epochs for game in played]))
        rows.append([rule, f"{share:.2f}", f"{regret:.2f} ± {error:.2f}", f"{more:+.2f} ± {its_error:.2f}"])
    columns = ["rule", "epochs, of all", "regret, points", "more than to the end"]
    data = {"seeds": options.rounds, "candidates": COUNT, "games": {k: [list(g) for g in v] for k, v in games.items()}}
    harness.report("league_early_stop", options, around, columns, rows, [], data)


if __name__ == "__main__":
    main()
