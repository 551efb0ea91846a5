"""The predictor in numpy, in double precision, straight from sec. 3.1 of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np

from pynas import _core


def random_weights(architecture: int, recipe: int, embedding: int, hidden: int, seed: int) -> dict[str, Any]:
    """`architecture` counts the statistics too."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return (rng.normal(size=shape) / np.sqrt(max(shape[-1], 1))).astype(np.float32)

    return {
        "embedding_weight": normal(embedding, architecture),
        "embedding_bias": normal(embedding),
        "hidden_weight": normal(hidden, embedding + recipe),
        "hidden_bias": normal(hidden),
        "output_weight": normal(hidden),
        "output_bias": 0.3,
        "mean": 2.0,
        "scale": 1.5,
    }


def logarithms(space: Any, statistics: tuple[str, ...], genomes: Any) -> Any:
    costs = space.costs(genomes, 1)[:, [_core.COSTS.index(name) for name in statistics]]
    return np.log(np.maximum(costs, 1).astype(np.float64))


def reference_scores(space: Any, weights: dict[str, Any], genomes: Any, statistics: tuple[str, ...] = ()) -> Any:
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    features = space.features(genomes).astype(np.float64)
    architecture = w["embedding_weight"].shape[1] - len(statistics)
    inputs = np.concatenate([features[:, :architecture], logarithms(space, statistics, genomes)], axis=1)
    embedding = np.maximum(inputs @ w["embedding_weight"].T + w["embedding_bias"], 0)
    joined = np.concatenate([embedding, features[:, architecture:]], axis=1)
    hidden = np.maximum(joined @ w["hidden_weight"].T + w["hidden_bias"], 0)
    return (hidden @ w["output_weight"] + w["output_bias"]) * w["scale"] + w["mean"]
