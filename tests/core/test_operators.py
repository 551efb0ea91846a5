"""Distributions of the genetic operators, seen through searches of a single generation whose children are all kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import UNBOUNDED, Declaration, within

from pynas import _core

ONE_GENERATION = {
    "mode": "paper", "children": 40, "keep": 100_000, "random": 0, "patience": 1, "epsilon": 0.0,
    "max_evaluations": 10**6, "restarts": 500, "k1": 0.0, "k2": 0.0, "k3": 0.0, "k4": 0.0, "mutation_floor": 0.0,
}  # fmt: skip


def indifferent_predictor(space: Any, features: int) -> Any:
    """Scores everything 1, so that all are equally fit: p_c = k3 and p_m = k4."""

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    return _core.Predictor(space, (), zeros(1, features), zeros(1), zeros(1, 1), zeros(1), zeros(1), 0.0, 1.0, 1.0)


def wide_space(choices: list[int]) -> tuple[Any, Any]:
    table = Declaration()
    for i, count in enumerate(choices):
        table.variable(f"v{i}", range(count))
    space = table.compile()
    return space, indifferent_predictor(space, len(choices))


def one_generation(space: Any, predictor: Any, initial: Any, **settings: Any) -> Any:
    """(parents, 20 000, variables): the children of each parent. Equal scores stay in the order they came in."""
    full = {**ONE_GENERATION, **settings}
    full["max_evaluations"] = full["children"] * len(initial)
    result = _core.evolve(space, predictor, initial, *UNBOUNDED, full, 5, 2)
    restarts = result["genomes"].reshape(full["restarts"], -1, initial.shape[1])
    assert (restarts[:, : len(initial)] == initial).all()
    children = restarts[:, len(initial) :].reshape(full["restarts"], len(initial), full["children"], -1)
    return children.transpose(1, 0, 2, 3).reshape(len(initial), full["restarts"] * full["children"], -1)


def close(observed: Any, probability: Any, trials: int) -> None:
    """Within 5 standard deviations of a binomial frequency."""
    spread = 5 * np.sqrt(np.asarray(probability) * (1 - np.asarray(probability)) / trials) + 1e-9
    assert (np.abs(observed - probability) <= spread).all()


@pytest.mark.parametrize("variables", [6, 35, 100])
@pytest.mark.parametrize("probability", [0.0, 0.06, 0.3, 0.5, 0.7, 1.0])
def test_each_gene_mutates_independently_to_another_choice(variables, probability):
    choices = [2, 3, 7, 40] * (variables // 4) + [5] * (variables % 4)
    space, predictor = wide_space(choices)
    parent = np.array([count // 2 for count in choices], np.uint8)
    (children,) = one_generation(space, predictor, parent[None], k4=probability)
    assert len(children) == 20_000
    changed = children != parent
    close(changed.mean(0), probability, 20_000)
    counts = np.bincount(changed.sum(1), minlength=variables + 1) / 20_000
    exact = [
        math.comb(variables, i) * probability**i * (1 - probability) ** (variables - i) for i in range(variables + 1)
    ]
    close(counts, np.array(exact), 20_000)
    if probability in (0.3, 0.7):
        # Independence of two genes, and equal probabilities of the other choices.
        close((changed[:, 0] & changed[:, -1]).mean(), probability**2, 20_000)
        for v in (1, 2, 3):
            seen = np.bincount(children[changed[:, v], v], minlength=choices[v]) / changed[:, v].sum()
            assert seen[parent[v]] == 0
            close(np.delete(seen, parent[v]), 1 / (choices[v] - 1), int(changed[:, v].sum()))


@pytest.mark.parametrize("variables", [3, 35, 130])
def test_uniform_crossover(variables):
    space, predictor = wide_space([9] * variables)
    parents = np.array([[1] * variables, [8] * variables], np.uint8)
    children = one_generation(space, predictor, parents, k3=0.6)
    assert np.isin(children, [1, 8]).all()
    for parent, own in zip(parents, children):
        # The mate is the other parent in half of the cases, crossover happens in 0.6, and takes half of its genes.
        exchanged = own != parent
        close(exchanged.mean(0), 0.5 * 0.6 * 0.5, 20_000)
        close((~exchanged).all(1).mean(), 1 - 0.3 * (1 - 0.5**variables), 20_000)
        close((exchanged[:, 1:] & exchanged[:, :-1]).mean(0), 0.3 * 0.25, 20_000)
        close((exchanged[:, 0] & exchanged[:, -1]).mean(), 0.3 * 0.25, 20_000)


def test_crossover_goes_by_the_fitter_of_two():
    """k1 = k3 = 1: the best has p_c = 0 and the other p_c = 1, but its only other mate is the best."""
    space, _ = wide_space([9] * 20)
    ones = np.ones((1, 20), np.float32)
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    predictor = _core.Predictor(space, (), ones, zero, one[None], zero, one, 0.0, 0.0, 1.0)  # the sum of the features
    parents = np.array([[8] * 20, [1] * 20], np.uint8)
    settings = {**ONE_GENERATION, "restarts": 1, "children": 500, "keep": 2000, "max_evaluations": 1000, "k1": 1.0}
    genomes = _core.evolve(space, predictor, parents, *UNBOUNDED, {**settings, "k3": 1.0}, 0, 1)["genomes"]
    assert len(genomes) == 1002
    assert len(np.unique(genomes, axis=0)) == 2


def test_genes_are_taken_back_in_random_order():
    """Three like blocks whose kernels all grow, within a budget for one: each keeps its new kernel equally often."""
    table = Declaration()
    for _ in range(3):
        table.row("mbconv", k=[3, 5], c=16, e=2)
    space = table.compile(16, input_channels=16)
    predictor = indifferent_predictor(space, 6)
    small = np.zeros((1, 3), np.uint8)
    flops = space.costs(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.uint8), 1)[:, 0]
    assert len(set(flops[1:])) == 1
    settings = {**ONE_GENERATION, "mode": "default", "children": 1, "max_evaluations": 1}
    settings |= {"restarts": 1, "k4": 1.0}
    bounds = within({}, {"flops": int(flops[1])})
    kept = np.zeros(3)
    for seed in range(3000):
        child = _core.evolve(space, predictor, small, *bounds, settings, seed, 1)["genomes"][1]
        assert child.sum() == 1
        kept += child
    close(kept / 3000, 1 / 3, 3000)
