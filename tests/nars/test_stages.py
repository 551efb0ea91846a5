"""The stages of the search one by one: pool, selection, early stopping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynas
from pynas.nars.early_stop import early_stop_epoch
from pynas.nars.iterate import select_candidates
from pynas.nars.pool import make_pool

SPACE = pynas.load_space("fbnetv3_28")


def test_the_pool_is_within_budget_spread_evenly_and_reproducible() -> None:
    budget = pynas.Budget(flops=(1e6, 4e6))
    pool = make_pool(SPACE, 5000, budget=budget, seed=0)
    assert pool.genomes.shape == (5000, len(SPACE.variables))
    assert SPACE.feasible(pool.genomes, budget).all()
    assert 0 < pool.acceptance < 1
    again = make_pool(SPACE, 5000, budget=budget, seed=0)
    assert np.array_equal(pool.genomes, again.genomes)
    assert not np.array_equal(pool.genomes, make_pool(SPACE, 5000, budget=budget, seed=1).genomes)


def test_sobol_points_cover_each_variable_more_evenly_than_random_ones() -> None:
    variable = [v.name for v in SPACE.variables].index("mixup")
    choices = len(SPACE.variables[variable].values)

    def spread(genomes: np.ndarray) -> float:
        return float(np.std(np.bincount(genomes[:, variable], minlength=choices)))

    sobol = make_pool(SPACE, 4096, budget=pynas.Budget(), seed=0).genomes
    assert spread(sobol) < 0.3 * spread(SPACE.sample(4096, seed=0))


def test_a_needle_in_a_haystack_still_fills_the_pool() -> None:
    low, high = SPACE.cost_range()["flops"]
    budget = pynas.Budget(flops=(None, low + 0.002 * (high - low)))
    pool = make_pool(SPACE, 50, budget=budget, seed=0)
    assert len(pool.genomes) == 50
    assert SPACE.feasible(pool.genomes, budget).all()


def genomes_of(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8).reshape(n, 1)


def test_each_flop_bin_gives_its_best() -> None:
    flops = np.array([10, 15, 25, 28, 35, 39])
    scores = np.array([0.1, 0.9, 0.2, 0.1, 0.5, 0.6])
    chosen = select_candidates(genomes_of(6), flops, scores, 3, flop_range=(10, 40))
    assert chosen.tolist() == [1, 2, 5]


def test_taken_and_equal_genomes_are_not_chosen_again() -> None:
    genomes = np.array([[0], [1], [1], [2]], np.uint8)
    flops, scores = np.array([10, 11, 11, 12]), np.array([0.1, 0.9, 0.9, 0.5])
    chosen = select_candidates(genomes, flops, scores, 4, flop_range=(10, 40), taken={genomes[3].tobytes()})
    assert sorted(chosen.tolist()) == [0, 1]


def test_empty_bins_are_made_up_for_by_the_best_of_the_rest() -> None:
    flops, scores = np.full(5, 10), np.array([0.3, 0.5, 0.1, 0.9, 0.7])
    assert select_candidates(genomes_of(5), flops, scores, 3, flop_range=(10, 10)).tolist() == [3, 4, 1]
    assert len(select_candidates(genomes_of(5), flops, scores, 3, flop_range=(0, 1000))) == 3


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_selection_is_distinct_and_as_large_as_it_can_be(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genomes, flops = rng.integers(0, 20, (n, 1)).astype(np.uint8), rng.integers(0, 100, n)
    chosen = select_candidates(genomes, flops, rng.random(n), m, flop_range=(0, 100))
    distinct = len(np.unique(genomes))
    assert len(chosen) == min(m, distinct)
    assert len(np.unique(genomes[chosen])) == len(chosen)


def test_the_early_stop_epoch_is_the_first_that_ranks_like_the_last() -> None:
    final = np.arange(6) / 10
    curves = np.stack([final[::-1], [0, 1, 2, 4, 3, 5], final / 2, final], axis=1)
    stop = early_stop_epoch(curves.tolist(), 0.92, 4)
    assert stop.epoch == 2
    assert stop.correlation == pytest.approx((-1, 1 - 6 * 2 / 210, 1, 1))
    assert early_stop_epoch(curves.tolist(), 0.99, 4).epoch == 3


def test_too_few_or_constant_curves_stop_nothing_early() -> None:
    assert early_stop_epoch([[0.1, 0.2], [0.2, 0.3]], 0.92, 2).epoch == 2
    assert early_stop_epoch([[0.1, 0.1]] * 5, 0.92, 2).epoch == 2
