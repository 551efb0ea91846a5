"""Architectures near what an FP-NAS study has found: the most probable ones of a search's distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pynas.errors import PynasError
from pynas.fpnas.config import FPNASConfig
from pynas.fpnas.distribution import Distribution
from pynas.fpnas.study import open_space
from pynas.search.opening import open_study
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.train.directory import RunDirectory

LOOKED_AT = 100_000
"""The most probable architectures among which those within a budget are looked for."""


def most_probable(
    path: str | Path, name: str | None = None, *, budget: Budget | None = None, top: int = 1
) -> tuple[Space, NDArray[np.uint8], NDArray[np.float64]]:
    """The `top` most probable architectures within `budget` of the search `name` of a study, from the mode on.

    Returns the space, genomes, uint8 (n, V), and their log-probabilities in nats, (n,); fewer than `top` where the
    space has no more. name: the study's only search where it is None. Raises PynasError for another method's study, for
    a search that is not finished, and where nothing near the mode is within the budget.
    """
    directory, config = open_study(path)
    if not isinstance(config, FPNASConfig):
        raise PynasError(f"{path}: a study of method {config.method} has no distribution to sample from")
    known = ", ".join(config.budgets)
    if name is None and len(config.budgets) > 1:
        raise PynasError(f"{path}: has several searches; name one of {known}")
    name = name or next(iter(config.budgets))
    if name not in config.budgets:
        raise PynasError(f"{path}: no search {name!r}; allowed: {known}")
    result = RunDirectory(directory.searches / name).read_result()
    if result is None:
        raise PynasError(f"{path}: search {name} is not finished yet; finish it first: pynas search STUDY.yaml")
    space = open_space(directory.space, config, config.final_data)  # as winners are: the search may have fewer classes
    distribution = Distribution.from_dict(space, result["distribution"]).networks()
    bounds, count = budget or Budget(), top
    while True:
        genomes = distribution.most_probable(count)
        within = genomes[space.feasible(genomes, bounds)][:top]
        if len(within) == top or len(genomes) < count or count >= LOOKED_AT:
            break
        count = min(4 * count, LOOKED_AT)
    if not len(within):
        raise PynasError(f"{path}: none of the {len(genomes)} architectures nearest to the mode is within {bounds}")
    return space, within, distribution.log_probability(within).detach().numpy()
