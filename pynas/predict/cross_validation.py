"""Out-of-fold predictions of several models, side by side: what tells a user whether to believe one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas.predict.domain import Domain
from pynas.predict.models import fit_model
from pynas.predict.ranking import kendall_tau
from pynas.randomness import generator
from pynas.space.space import Space

Rows = NDArray[np.intp]
Fold = Callable[[Rows, Rows], NDArray[Any]]
"""(rows to fit to, rows held out) -> what is predicted of the latter."""


def cross_validate(
    models: Mapping[str, Fold], accuracies: NDArray[np.float64], *, folds: int, seed: int
) -> dict[str, Any]:
    """Kendall's tau with the measured accuracies by model, and under ``NAME_predicted`` what it predicted of each.

    Further keys: ``labels``, ``measured``, and ``models``, the names. NaN where there are fewer than two labels.
    """
    count = len(accuracies)
    order = generator(seed, "cross_validate").permutation(count)
    check: dict[str, Any] = {"labels": count, "models": list(models), "measured": accuracies.tolist()}
    for name, fold in models.items():
        predicted = np.full(count, np.nan)
        for held_out in np.array_split(order, min(folds, count)) if count > 1 else ():
            predicted[held_out] = fold(np.setdiff1d(order, held_out), held_out)
        check[name] = kendall_tau(predicted, accuracies)
        check[f"{name}_predicted"] = predicted.tolist()
    return check


def models_to_check(
    space: Space,
    pool: NDArray[np.uint8],
    genomes: NDArray[np.uint8],
    accuracies: NDArray[np.float64],
    kinds: Sequence[str],
    *,
    seed: int,
) -> dict[str, Fold]:
    """Folds of `fit_model`'s kinds; features are standardised over the first genomes of the pool."""
    domain = Domain.of(space)
    unlabelled, batch = domain.genomes(space, pool[:2000]), domain.genomes(space, genomes)

    def fold_of(kind: str) -> Fold:
        def fold(kept: Rows, held_out: Rows) -> NDArray[Any]:
            model = fit_model(kind, domain, unlabelled, batch[kept], accuracies[kept], seed=seed)
            return model.mean(batch[held_out])

        return fold

    return {kind: fold_of(kind) for kind in kinds}
