"""Ridge regression on the encoded genome and its statistics: the baseline shown beside every predictor.

From about 80 labels on it matches or beats the paper's MLP on rank, so users must see both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas.space.space import Space

_ALPHAS = np.logspace(-3, 4, 15)


def ridge_features(space: Space, genomes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Encoded genome, log FLOPs and log parameters: float64 ``(n, features + 2)``."""
    costs = space.costs(genomes)
    counted = np.stack([costs["flops"], costs["params"]], axis=1)
    statistics = np.log(np.maximum(counted, 1).astype(np.float64))  # a model that no table describes counts as 0
    return np.concatenate([space.features(genomes).astype(np.float64), statistics], axis=1)


def fit_ridge(space: Space, genomes: NDArray[np.uint8], accuracies: NDArray[np.float64]) -> Any:
    """A fitted scikit-learn pipeline (standardise, ridge; penalty by leave-one-out) on `ridge_features`."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(_ALPHAS)).fit(ridge_features(space, genomes), accuracies)
