"""Distillation: what a model of accuracy says, learnt by the MLP that the compiled core scores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pynas.errors import PynasError
from pynas.predict.domain import STATISTICS
from pynas.predict.mlp import TwoHeadedMLP, minimise, reproducible
from pynas.predict.predictor import Predictor
from pynas.predict.ranking import kendall_tau
from pynas.predict.settings import PredictorSettings
from pynas.randomness import derive_seed, generator
from pynas.space.space import Space, check_seed, load_space

if TYPE_CHECKING:
    from pynas.predict.models import AccuracyModel

SAMPLES = 8000  # random genomes to learn from
HELD_OUT = 1000  # and others, for the rank agreement
_SHAPE = PredictorSettings(embedding=24, hidden=64)
_EPOCHS, _BATCH, _RATE = 40, 512, 1e-2
_LOWEST = 0.01  # quantile of what the model says below which it does not matter how bad a candidate is


@dataclass(frozen=True)
class Distilled:
    """`predictor` is what the core scores, `kendall_tau` its agreement with the model on genomes not learnt from."""

    predictor: Predictor
    kendall_tau: float
    seconds: float


def distill(
    model: AccuracyModel, space: Space | str | Path, *, genomes: NDArray[np.uint8] | None = None, seed: int = 0
) -> Distilled:
    """An MLP on architecture, recipe, log FLOPs and log parameters that says what `model` says of genomes of `space`.

    Learnt from `genomes`, uint8 ``(n, variables)`` (by default 8000 random ones), with squared error. `model.domain`
    must be that of the space. Raises PynasError for fewer than 10 genomes.
    """
    start = time.perf_counter()
    space = space if isinstance(space, Space) else load_space(space)
    check_seed(seed)
    if genomes is not None and len(genomes) < 10:
        raise PynasError(f"distill: {len(genomes)} genomes; allowed: 10 and more")
    if genomes is None:
        genomes = space.sample(SAMPLES + HELD_OUT, seed=derive_seed(seed, "distill"))
    batch = model.domain.genomes(space, genomes)
    labels = model.mean(batch)
    labels = np.maximum(labels, np.quantile(labels, _LOWEST))
    held_out = min(HELD_OUT, len(genomes) // 5)
    learnt = len(genomes) - held_out
    mean, deviation = float(labels[:learnt].mean()), float(labels[:learnt].std()) or 1.0

    inputs = STATISTICS if space.architecture_features else ()
    statistics = np.stack([np.log(np.maximum(space.costs(genomes)[name], 1)) for name in inputs], 1) if inputs else None
    features, split, scales = _joined(space.features(genomes), space.architecture_features, statistics)
    with reproducible(derive_seed(seed, "distill")):
        student = TwoHeadedMLP(split, features.shape[1] - split, _SHAPE)
        given = torch.from_numpy(features[:learnt])
        targets = torch.from_numpy(((labels[:learnt] - mean) / deviation).astype(np.float32))
        minimise(
            lambda i: nn.functional.mse_loss(student.accuracy(given[i]), targets[i]),
            [p for name, p in student.named_parameters() if not name.startswith("proxy")],
            samples=learnt,
            batch=_BATCH,
            epochs=_EPOCHS,
            lr=_RATE,
            weight_decay=0.0,
            rng=generator(seed, "distill"),
        )
        weights = {name: value for name, value in student.arrays().items() if not name.startswith("proxy")}
    predictor = Predictor(
        space.fingerprint,
        _folded(weights, len(inputs), *scales),
        np.array([mean, deviation]),
        np.array([[0.0] * len(STATISTICS), [1.0] * len(STATISTICS)]),
        inputs=inputs,
    )
    agreement = kendall_tau(predictor.score(space, genomes[learnt:]), labels[learnt:])
    return Distilled(predictor, agreement, time.perf_counter() - start)


Scales = tuple[NDArray[np.float64], NDArray[np.float64]]


def _joined(
    features: NDArray[np.float32], architecture_features: int, statistics: NDArray[np.float64] | None
) -> tuple[NDArray[np.float32], int, Scales]:
    """Standardised statistics put between the architecture's features and the recipe's; how many come first; scales."""
    if statistics is None:
        return features, architecture_features, (np.zeros(0), np.ones(0))
    mean, deviation = statistics.mean(0), statistics.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    architecture, recipe = np.split(features, [architecture_features], axis=1)
    standardised = ((statistics - mean) / deviation).astype(np.float32)
    joined = np.concatenate([architecture, standardised, recipe], axis=1)
    return joined, architecture_features + statistics.shape[1], (mean, deviation)


def _folded(
    weights: dict[str, NDArray[np.float32]], inputs: int, mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """The embedding's weights for statistics as the core counts them, not standardised."""
    if inputs == 0:
        return weights
    weight = weights["embedding.weight"].astype(np.float64)
    own = weight[:, -inputs:] / deviation
    weight[:, -inputs:] = own
    bias = weights["embedding.bias"] - own @ mean
    return weights | {"embedding.weight": weight.astype(np.float32), "embedding.bias": bias.astype(np.float32)}
