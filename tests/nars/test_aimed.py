"""Aimed selection: which candidates it picks, from where, and what unfinished curves say."""

from __future__ import annotations

import numpy as np
import pytest

import pynas
from pynas.errors import PynasError
from pynas.nars.acquisition import Acquisition, keys
from pynas.nars.aimed import aimed_picks, best_within, first_picks, spread_caps
from pynas.nars.curves import expected
from pynas.nars.pool import make_pool

COSTS = np.arange(100)
WITHIN = np.array([cap >= COSTS for cap in (9, 29, 89)])  # segments of 10, 20 and 60; ten candidates in none


def test_the_first_picks_are_spread_over_the_segments_and_a_few_are_the_first_of_many() -> None:
    picks = first_picks(WITHIN, 12, seed=0)
    assert len(set(picks)) == 12
    assert np.bincount(np.searchsorted([9, 29, 89], COSTS[picks])).tolist() == [4, 4, 4]
    assert first_picks(WITHIN, 7, seed=0) == picks[:7]
    assert first_picks(WITHIN, 12, seed=1) != picks
    assert sorted(first_picks(WITHIN, 1000, seed=0)) == list(range(90))
    free = COSTS >= 50
    assert sorted(first_picks(WITHIN, 1000, seed=0, free=free)) == list(range(50, 90))


def test_greedy_picks_are_the_best_of_each_budget_in_turns_without_repetition() -> None:
    mean = COSTS / 100
    picks = aimed_picks(mean, np.ones(100), WITHIN, 6, turn=0, seed=0, greedy=True)
    assert picks == [9, 29, 89, 8, 28, 88]
    assert aimed_picks(mean, np.ones(100), WITHIN, 2, turn=1, seed=0, greedy=True) == [29, 89]
    free = np.ones(100, bool)
    free[:10] = False
    free[29] = False
    assert aimed_picks(mean, np.ones(100), WITHIN, 2, turn=0, seed=0, greedy=True, free=free) == [28, 27]
    assert free.sum() == 89  # the caller's array stays as it was


def test_what_has_been_picked_is_believed_at_once() -> None:
    def picked(row: int) -> np.ndarray:
        return np.where(np.arange(3) <= 1, 0.0, deviation)  # the first two are much the same

    mean, deviation = np.zeros(3), np.array([3.0, 2.9, 1.0])
    within = np.ones((1, 3), bool)
    assert aimed_picks(mean, deviation, within, 2, turn=0, seed=0) == [0, 1]
    assert aimed_picks(mean, deviation, within, 2, turn=0, seed=0, picked=picked) == [0, 2]


def test_a_budget_without_candidates_gives_its_turn_to_the_next() -> None:
    within = np.array([COSTS < 2, COSTS < 50])
    picks = aimed_picks(COSTS / 100, np.zeros(100), within, 60, turn=0, seed=0)
    assert sorted(picks) == list(range(50))
    assert aimed_picks(COSTS / 100, np.zeros(100), np.zeros((2, 100), bool), 3, turn=0, seed=0) == []


def test_optimism_is_exponential_and_belongs_to_the_pick_not_to_the_call() -> None:
    """Two candidates, one sure and one unsure: the unsure one is picked where kappa exceeds their ratio, exp(-1)."""
    mean, deviation = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    within = np.ones((1, 2), bool)
    unsure = [aimed_picks(mean, deviation, within, 1, turn=turn, seed=5)[0] for turn in range(2000)]
    assert np.mean(unsure) == pytest.approx(np.exp(-1), abs=0.03)
    assert unsure[:50] == [aimed_picks(mean, deviation, within, 1, turn=turn, seed=5)[0] for turn in range(50)]


def test_answers_are_the_best_that_were_trained_within_each_budget() -> None:
    accuracies = np.array([0.5, np.nan, 0.9, 0.7])
    within = np.array([[True, True, False, False], [True, True, True, True], [False, True, False, False]])
    assert best_within(accuracies, within) == [0, 2, None]


def test_caps_are_spread_over_the_range() -> None:
    assert spread_caps(1.0, 5.0, 4) == [2.0, 3.0, 4.0, 5.0]


SPACE = pynas.load_space("fbnetv3_28")
AIMS = {"small": pynas.Budget(flops=1.2e6), "large": pynas.Budget(flops=(2e6, 4e6))}


def truth(genomes: np.ndarray) -> np.ndarray:
    """Grows with FLOPs and kernels, and has an optimum in the recipe."""
    features = SPACE.features(genomes).astype(np.float64)
    log = np.log(SPACE.costs(genomes)["flops"] / 1e6)
    return 0.7 + 0.05 * log + 0.01 * features[:, 2] - 0.05 * (features[:, -2] - 0.4) ** 2


@pytest.fixture(scope="module")
def acquisition() -> Acquisition:
    pool = make_pool(SPACE, 3000, budget=pynas.Budget(flops=(None, 4e6)), seed=0).genomes
    return Acquisition(SPACE, pool, AIMS, seed=0)


def test_candidates_are_within_a_budget_new_and_expected_to_be_good(acquisition: Acquisition) -> None:
    first = acquisition.first(16, set())
    assert np.isnan(first.predicted).all()
    model = acquisition.fit(first.genomes, truth(first.genomes))
    distilled = model.distill(SPACE, genomes=acquisition.learnt)
    proposals = acquisition.propose(distilled.predictor, first.genomes, turn=16)
    taken = keys(first.genomes.tolist())
    picks = acquisition.pick(model, proposals, 10, turn=16, taken=taken, greedy=True)
    assert len(keys(picks.genomes.tolist()) | taken) == 26
    small, large = (SPACE.feasible(picks.genomes, budget) for budget in AIMS.values())
    assert (small | large).all()
    assert small.sum() == large.sum() == 5
    # Beyond the pool: the genetic algorithm finds what is expected to be better than any of thousands.
    pool = acquisition.pool[SPACE.feasible(acquisition.pool, AIMS["large"])]
    assert picks.predicted[large].max() > model.mean(acquisition.domain.genomes(SPACE, pool)).max()
    # What is pending makes its neighbours less attractive than they were.
    crowd = acquisition.pick(model, proposals, 10, turn=16, taken=taken, pending=picks.genomes)
    assert len(crowd.genomes) == 10


def test_a_few_rounds_find_better_candidates_than_as_many_random_ones(acquisition: Acquisition) -> None:
    genomes = acquisition.first(8, set()).genomes
    for turn in (8, 16, 24):
        model = acquisition.fit(genomes, truth(genomes))
        proposals = acquisition.propose(model.distill(SPACE, genomes=acquisition.learnt).predictor, genomes, turn=turn)
        taken = keys(genomes.tolist())
        picks = acquisition.pick(model, proposals, 8, turn=turn, taken=taken, greedy=turn == 24)
        genomes = np.concatenate([genomes, picks.genomes])
    for budget in AIMS.values():
        found = truth(genomes[SPACE.feasible(genomes, budget)]).max()
        as_many = [truth(SPACE.sample(16, budget=budget, seed=seed)).max() for seed in range(50)]
        assert found > np.median(as_many)


def test_a_budget_that_nothing_meets_is_said_with_what_there_is() -> None:
    with pytest.raises(PynasError, match=r"fbnetv3_28: .*flops.*"):
        Acquisition(SPACE, SPACE.sample(10, seed=0), {"none": pynas.Budget(flops=1000)}, seed=0)


def test_an_unfinished_curve_says_what_complete_ones_say_of_it() -> None:
    rng = np.random.default_rng(0)
    finals = rng.uniform(0.6, 0.9, 20)
    curves = [[0.5 * final, final - 0.1 + rng.normal() * 0.001, final] for final in finals]
    guess = expected(curves, [0.4, 0.7], 3)
    assert guess is not None
    assert guess.accuracy == pytest.approx(0.8, abs=0.003)
    assert 0 < guess.variance < 0.003**2
    assert expected(curves, [0.4], 3).accuracy == pytest.approx(0.8)
    assert expected(curves, [0.4, 0.7, 0.81], 3).accuracy == 0.81
    assert expected(curves, [], 3) is None
    assert expected(curves[:5], [0.4, 0.7], 3) is None


def test_curves_that_say_nothing_leave_the_mean_and_its_spread() -> None:
    rng = np.random.default_rng(0)
    curves = [[0.1, final] for final in rng.uniform(0.6, 0.9, 40)]
    guess = expected(curves, [0.1], 2)
    assert guess.accuracy == pytest.approx(np.mean([curve[1] for curve in curves]))
    assert guess.variance == pytest.approx(np.var([curve[1] for curve in curves]), rel=0.2)
