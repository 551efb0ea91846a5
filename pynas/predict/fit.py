"""Fitting the predictor with torch: pretraining on free statistics (stage 1), then on measured accuracy (stage 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pynas.predict.mlp import fit_accuracies, fit_statistics
from pynas.predict.predictor import PROXIES, Predictor
from pynas.predict.ranking import kendall_tau
from pynas.predict.settings import PredictorSettings
from pynas.randomness import generator
from pynas.space.space import Space


@dataclass(frozen=True)
class PretrainFit:
    """How well the proxy head predicts the statistics of the held-out 20% of the pool, by statistic."""

    samples: int
    held_out: int
    r2: dict[str, float]
    kendall_tau: dict[str, float]
    measured: dict[str, list[float]]  # of the first few hundred held-out genomes, for plots
    predicted: dict[str, list[float]]


def pretrain(
    space: Space,
    genomes: NDArray[np.uint8],
    settings: PredictorSettings,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Predictor, PretrainFit]:
    """Stage 1 (section 3.2): fit embedding and proxy head to FLOPs and parameters on 80% of the pool, test on 20%.

    `genomes` is uint8 ``(n, variables)``. Returns the predictor, whose accuracy head is still random, and its fit.
    """
    costs = space.costs(genomes)
    labels = np.stack([costs[name] for name in PROXIES], axis=1).astype(np.float64)
    rng = generator(seed, "pretrain")
    order = rng.permutation(len(genomes))
    train, test = np.split(order, [int(0.8 * len(genomes))])
    weights, scale = fit_statistics(
        space.features(genomes)[train],
        space.architecture_features,
        labels[train],
        settings,
        seed=seed,
        rng=rng,
        progress=progress,
    )
    predictor = Predictor(space.fingerprint, weights, np.array([0.0, 1.0]), scale)
    return predictor, _pretrain_fit(predictor, space, genomes[test], labels[test], len(train))


def _pretrain_fit(
    predictor: Predictor, space: Space, genomes: NDArray[np.uint8], labels: NDArray[np.float64], samples: int
) -> PretrainFit:
    predicted = predictor.statistics(space, genomes)
    r2, tau = {}, {}
    for i, name in enumerate(PROXIES):
        variance = labels[:, i].var()
        residual = np.mean((labels[:, i] - predicted[name]) ** 2)
        r2[name] = float(1 - residual / variance) if variance > 0 else float("nan")
        tau[name] = kendall_tau(predicted[name], labels[:, i])
    shown = slice(0, 400)
    return PretrainFit(
        samples,
        len(genomes),
        r2,
        tau,
        {name: labels[shown, i].tolist() for i, name in enumerate(PROXIES)},
        {name: predicted[name][shown].tolist() for name in PROXIES},
    )


def fit_accuracy(
    pretrained: Predictor,
    space: Space,
    genomes: NDArray[np.uint8],
    accuracies: NDArray[np.float64],
    settings: PredictorSettings,
    *,
    seed: int,
) -> Predictor:
    """Stage 2 (section 3.3): Huber loss on standardised accuracy, first with the embedding frozen, then everything.

    Starts from the pretrained embedding every time; a new iteration adds labels and fits anew. `genomes` is uint8
    ``(n, variables)``, `accuracies` float64 ``(n,)``.
    """
    weights, scale = fit_accuracies(
        space.features(genomes),
        space.architecture_features,
        accuracies,
        settings,
        seed=seed,
        pretrained=pretrained.weights,
    )
    return Predictor(space.fingerprint, weights, scale, pretrained.proxy_scale)
