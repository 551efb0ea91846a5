"""The adaptive genetic algorithm: its probabilities, its two modes, its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import UNBOUNDED, Declaration, random_genomes, within
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_weights

from pynas import _core

DEFAULT = {
    "mode": "default", "children": 24, "keep": 40, "random": 50, "patience": 5, "epsilon": 1e-6,
    "max_evaluations": 50_000, "restarts": 1, "k1": 1.0, "k2": 0.1, "k3": 1.0, "k4": 0.1, "mutation_floor": 2 / 35,
}  # fmt: skip
PAPER = {**DEFAULT, "mode": "paper", "patience": 1, "k2": 0.5, "k4": 0.5, "mutation_floor": 0.0}
BOUNDS = within({"params": 7_500_000}, {"flops": 550_000_000})


@pytest.fixture(scope="module")
def predictor(table2):
    return _core.Predictor(table2, (), **random_weights(36, 7, 24, 32, seed=1))


@pytest.fixture(scope="module")
def initial(table2):
    return table2.sample(50, 99, *BOUNDS, 1)


def evolve(space, predictor, initial, bounds, settings, seed=0, threads=1):
    return _core.evolve(space, predictor, initial, *bounds, settings, seed, threads)


def check_result(space, predictor, result, keep):
    genomes, scores = result["genomes"], result["scores"]
    assert genomes.dtype == np.uint8
    assert scores.dtype == np.float32
    assert len(genomes) == len(scores) <= keep
    assert (predictor.score(genomes, 1, "auto") == scores).all()
    assert (np.diff(scores) <= 0).all()
    assert result["proposals"] >= result["evaluations"]
    history = result["history"]
    assert result["evaluations"] == sum(
        history["evaluations"][history["restart"] == r].max() for r in set(history["restart"])
    )
    for restart in set(history["restart"]):
        own = history["restart"] == restart
        assert (history["generation"][own] == np.arange(own.sum())).all()
        assert (np.diff(history["best"][own]) >= 0).all()
        assert (np.diff(history["evaluations"][own]) > 0).all()
    assert history["best"].max() == scores[0]


def test_default_mode(table2, predictor, initial):
    kept = initial.copy(), BOUNDS[0].copy(), BOUNDS[1].copy(), dict(DEFAULT)
    result = evolve(table2, predictor, initial, BOUNDS, DEFAULT)
    check_result(table2, predictor, result, 40)
    costs = table2.costs(result["genomes"], 1)
    assert ((costs >= BOUNDS[0]) & (costs <= BOUNDS[1])).all()
    assert len(np.unique(result["genomes"], axis=0)) == 40
    assert (initial == kept[0]).all()
    assert (BOUNDS[0] == kept[1]).all()
    assert (BOUNDS[1] == kept[2]).all()
    assert kept[3] == DEFAULT


@pytest.mark.parametrize("mode", [DEFAULT, PAPER], ids=["default", "paper"])
def test_statistics_among_the_inputs(table2, initial, mode):
    predictor = _core.Predictor(table2, ("flops", "params"), **random_weights(38, 7, 24, 32, seed=1))
    settings = {**mode, "restarts": 3, "max_evaluations": 5000}
    result = evolve(table2, predictor, initial, BOUNDS, settings)
    check_result(table2, predictor, result, 40)
    costs = table2.costs(result["genomes"], 1)
    assert ((costs >= BOUNDS[0]) & (costs <= BOUNDS[1])).all()
    for threads in (2, 8):
        again = evolve(table2, predictor, initial, BOUNDS, settings, threads=threads)
        assert np.array_equal(again["genomes"], result["genomes"])
        assert np.array_equal(again["scores"], result["scores"])


@pytest.mark.parametrize("seed", range(3))
def test_better_than_random_at_equal_evaluations(table2, seed):
    predictor = _core.Predictor(table2, (), **random_weights(36, 7, 24, 32, seed=seed))
    settings = {**DEFAULT, "max_evaluations": 10_000, "patience": 1000}
    result = evolve(table2, predictor, random_genomes(table2, 0), BOUNDS, settings, seed)
    assert result["evaluations"] == 10_000
    random = predictor.score(table2.sample(10_050, seed, *BOUNDS, 1), 1, "auto")
    assert result["scores"][-1] > random.max()


@pytest.mark.parametrize("mode", [DEFAULT, PAPER], ids=["default", "paper"])
def test_the_same_for_any_threads(table2, predictor, initial, mode):
    settings = {**mode, "restarts": 5, "max_evaluations": 5000}
    results = [evolve(table2, predictor, initial, BOUNDS, settings, 7, threads) for threads in (1, 2, 8, 1)]
    for other in results[1:]:
        for key in ("genomes", "scores", "evaluations", "proposals"):
            assert np.array_equal(results[0][key], other[key])
        assert all(np.array_equal(results[0]["history"][key], other["history"][key]) for key in other["history"])
    assert not np.array_equal(results[0]["genomes"], evolve(table2, predictor, initial, BOUNDS, settings, 8)["genomes"])


def test_restarts_are_merged(table2, predictor, initial):
    settings = {**DEFAULT, "restarts": 6, "keep": 10, "max_evaluations": 4000}
    result = evolve(table2, predictor, initial, BOUNDS, settings, 3, 2)
    check_result(table2, predictor, result, 10)
    assert len(np.unique(result["genomes"], axis=0)) == 10
    history = result["history"]
    bests = [history["best"][history["restart"] == restart].max() for restart in range(6)]
    assert len(set(bests)) > 1
    assert result["scores"][0] == max(bests)


def test_patience_and_epsilon_stop(table2, predictor, initial):
    def gains(settings):
        return np.diff(evolve(table2, predictor, initial, BOUNDS, settings)["history"]["best"])

    for patience in (1, 3):
        found = gains({**DEFAULT, "patience": patience})
        stalled = found <= DEFAULT["epsilon"]
        assert stalled[-patience:].all()
        runs = "".join("x" if stall else " " for stall in stalled).split()
        assert max(map(len, runs)) == patience
    assert len(gains({**DEFAULT, "epsilon": 1e9, "patience": 1})) <= 1


def test_evaluations_are_bounded_to_the_last_child(table2, predictor, initial):
    for most in (1, 63, 1001):
        result = evolve(table2, predictor, initial, BOUNDS, {**DEFAULT, "max_evaluations": most, "patience": 99})
        assert result["evaluations"] == most


def test_paper_mode_returns_what_the_letter_says(table2, predictor, initial):
    result = evolve(table2, predictor, initial, BOUNDS, PAPER)
    check_result(table2, predictor, result, 40)
    gains = np.diff(result["history"]["best"])
    assert (gains[:-1] > PAPER["epsilon"]).all()
    assert gains[-1] <= PAPER["epsilon"]


def test_paper_mode_never_starts_below_zero(table2, initial):
    """s0* = 0: a best initial score that is negative ends the loop before its first generation."""
    weights = {**random_weights(36, 7, 24, 32, seed=1), "mean": -100.0}
    predictor = _core.Predictor(table2, (), **weights)
    result = evolve(table2, predictor, initial, BOUNDS, PAPER)
    assert result["evaluations"] == 0
    assert len(result["scores"]) == 40
    assert evolve(table2, predictor, initial, BOUNDS, DEFAULT)["evaluations"] > 0


def infeasible_favourite(space, predictor):
    """The best of many genomes that break the bounds: better than all that the search finds within them."""
    genomes = random_genomes(space, 20_000)
    outside = genomes[(space.costs(genomes, 1) > BOUNDS[1]).any(1)]
    tight = within({}, {"flops": 260_000_000})
    return outside[[predictor.score(outside, 1, "auto").argmax()]], tight


def test_paper_mode_keeps_an_inherited_individual_outside_the_bounds(table2, predictor):
    favourite, bounds = infeasible_favourite(table2, predictor)
    literal = evolve(table2, predictor, favourite, bounds, {**PAPER, "random": 10})
    assert (literal["genomes"] == favourite).all(1).any()
    inside = (table2.costs(literal["genomes"], 1) <= bounds[1]).all(1)
    assert not inside.all()
    mended = evolve(table2, predictor, favourite, bounds, {**DEFAULT, "random": 10})
    assert (table2.costs(mended["genomes"], 1) <= bounds[1]).all()


def test_paper_mode_makes_clones_of_the_best(table2, predictor, initial):
    """p_c = p_m = 0 for the best member, so that its children are copies of it; nothing drops them."""
    result = evolve(table2, predictor, initial[:1], UNBOUNDED, {**PAPER, "random": 30, "patience": 3})
    assert len(np.unique(result["genomes"], axis=0)) < len(result["genomes"]) / 2


def test_a_tiny_space_is_exhausted(table2):
    table = Declaration()
    table.variable("a", range(3))
    table.variable("b", [0, 1])
    space = table.compile()
    predictor = _core.Predictor(space, (), **random_weights(3, 0, 2, 3, seed=0))
    settings = {**DEFAULT, "patience": 10**9, "max_evaluations": 10**9, "random": 2, "mutation_floor": 0.5}
    result = evolve(space, predictor, np.zeros((0, 2), np.uint8), UNBOUNDED, settings)
    assert len(result["genomes"]) == 6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 80), st.integers(1, 70), st.integers(1, 30), st.integers(150, 1500))
def test_default_mode_invariants(table2, predictor, seed, children, keep, random, megaflops):
    bounds = within({"flops": megaflops * 10**6}, {"flops": megaflops * 10**6 * 13 // 10 + 10**8})
    settings = {**DEFAULT, "children": children, "keep": keep, "random": random, "max_evaluations": 700}
    result = evolve(table2, predictor, random_genomes(table2, 5, seed=seed), bounds, settings, seed)
    costs = table2.costs(result["genomes"], 1)
    assert ((costs >= bounds[0]) & (costs <= bounds[1])).all()
    assert len(np.unique(result["genomes"], axis=0)) == len(result["genomes"])
    assert (predictor.score(result["genomes"], 1, "auto") == result["scores"]).all()
    assert result["evaluations"] <= 700


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "fast"}, 'mode is "fast"; allowed are "paper" and "default"'),
        ({"children": 0}, "children is 0; allowed are 1 to"),
        ({"children": 2.5}, "children is 2.5; expected a whole number"),
        ({"children": True}, "children is True; expected a whole number"),
        ({"keep": "many"}, "keep is 'many'"),
        ({"random": -1}, "random is -1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"max_evaluations": 0}, "max_evaluations is 0"),
        ({"epsilon": -1.0}, "epsilon is -1; it must be at least 0"),
        ({"k1": 1.5}, "k1 is 1.5; allowed are 0 to 1"),
        ({"mutation_floor": float("nan")}, "mutation_floor is nan"),
        ({"mutation": 0.1}, "unknown key 'mutation'; keys are children, epsilon"),
    ],
)
def test_wrong_settings(table2, predictor, initial, change, told):
    with pytest.raises(ValueError, match=told):
        evolve(table2, predictor, initial, BOUNDS, {**DEFAULT, **change})


@pytest.mark.parametrize("key", DEFAULT)
def test_every_setting_is_required(table2, predictor, initial, key):
    with pytest.raises(ValueError, match=f'lacks "{key}"'):
        evolve(table2, predictor, initial, BOUNDS, {k: v for k, v in DEFAULT.items() if k != key})


def test_wrong_arguments(table2, predictor, initial):
    with pytest.raises(ValueError, match="initial has dtype int64"):
        evolve(table2, predictor, initial.astype(np.int64), BOUNDS, DEFAULT)
    wrong = initial.copy()
    wrong[3, 4] = 99
    with pytest.raises(ValueError, match="initial: row 3, variable 4"):
        evolve(table2, predictor, wrong, BOUNDS, DEFAULT)
    with pytest.raises(ValueError, match="flops of at most 1000"):
        evolve(table2, predictor, initial, within({}, {"flops": 1000}), DEFAULT)
    with pytest.raises(ValueError, match="nothing to start from: 50 initial individuals, none of them within"):
        evolve(table2, predictor, initial, within({}, {"flops": 215_000_000}), {**DEFAULT, "random": 0})
    table = Declaration()
    table.variable("a", range(3))
    other = table.compile()
    with pytest.raises(ValueError, match="another space"):
        evolve(other, predictor, np.zeros((0, 1), np.uint8), BOUNDS, DEFAULT)


K = (1.0, 0.5, 1.0, 0.5)


def test_adaptive_probabilities_by_hand():
    crossover, mutation = _core.adaptive_probabilities(np.array([1.0, 2.0, 3.0, 4.0]), *K, 0.0)
    assert crossover == pytest.approx([1, 1, 2 / 3, 0])
    assert mutation == pytest.approx([0.5, 0.5, 1 / 3, 0])
    _, floored = _core.adaptive_probabilities(np.array([1.0, 2.0, 3.0, 4.0]), *K, 0.005)
    assert floored == pytest.approx([0.5, 0.5, 1 / 3, 0.005])


@pytest.mark.parametrize("fitness", [[3.0], [0.1, 0.1, 0.1], [-1e300, -1e300]])
def test_adaptive_probabilities_of_equals(fitness):
    crossover, mutation = _core.adaptive_probabilities(np.array(fitness), 0.9, 0.8, 0.7, 0.6, 0.0)
    assert crossover.tolist() == [0.7] * len(fitness)
    assert mutation.tolist() == [0.6] * len(fitness)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=50),
    st.sampled_from([0.25, 1.0, 3.0, 1024.0]),
    st.integers(-100, 100),
)
def test_adaptive_probabilities_do_not_change_under_affine_maps(fitness, factor, shift):
    fitness = np.array(fitness, np.float64)
    before = _core.adaptive_probabilities(fitness, 1.0, 0.5, 0.9, 0.4, 0.01)
    after = _core.adaptive_probabilities(fitness * factor + shift, 1.0, 0.5, 0.9, 0.4, 0.01)
    for p, q in zip(before, after):
        assert p == pytest.approx(q, abs=1e-9)
        assert ((p >= 0) & (p <= 1)).all()
    mean, best = fitness.mean(), fitness.max()
    if best - mean > 1e-6:
        clear = np.abs(fitness - mean) > 1e-6
        above = fitness > mean
        expected = np.where(above, 0.5 * (best - fitness) / (best - mean), 0.4)
        assert before[1][clear] == pytest.approx(np.maximum(expected, 0.01)[clear])


def test_wrong_adaptive_arguments():
    with pytest.raises(ValueError, match="fitness is empty"):
        _core.adaptive_probabilities(np.zeros(0), *K, 0.0)
    with pytest.raises(ValueError, match="element 1 is inf"):
        _core.adaptive_probabilities(np.array([0, np.inf]), *K, 0.0)
    with pytest.raises(ValueError, match="k2 is 2"):
        _core.adaptive_probabilities(np.zeros(2), 1.0, 2.0, 1.0, 1.0, 0.0)
