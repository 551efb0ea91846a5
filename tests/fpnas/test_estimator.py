"""What a step's architectures count for, against exact enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_distribution import ALL, SPACE, some

from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.distribution import Distribution
from pynas.fpnas.estimator import alpha_loss, cost_aware_weights, hinge, importance_weights, sample_count
from pynas.randomness import generator

LIKELIHOOD = torch.from_numpy(generator(0, "likelihood").normal(size=len(ALL)))  # log P(y | X, A) of every architecture
COSTS = SPACE.costs(ALL)
TARGET = {"flops": float(np.quantile(COSTS["flops"], 0.4)), "params": float(np.quantile(COSTS["params"], 0.7))}
INDEX = {genome.tobytes(): i for i, genome in enumerate(ALL)}


def exact(distribution: Distribution, beta: float) -> torch.Tensor:
    """The gradient of equation 6 by summing over all architectures."""
    distribution.alpha.grad = None
    logs = distribution.log_probability(ALL)
    loss = -torch.logsumexp(LIKELIHOOD + logs, 0)
    if beta:
        loss = loss + beta * torch.log((logs.exp() * torch.from_numpy(hinge(COSTS, TARGET))).sum())
    loss.backward()
    gradient = distribution.alpha.grad
    assert gradient is not None
    distribution.alpha.grad = None
    return gradient


def estimated(distribution: Distribution, chosen: np.ndarray, beta: float, *, baseline: bool = False) -> torch.Tensor:
    distribution.alpha.grad = None
    costs = hinge({name: values[chosen] for name, values in COSTS.items()}, TARGET)
    weights = cost_aware_weights(importance_weights(LIKELIHOOD[chosen]), costs, beta, baseline=baseline)
    alpha_loss(distribution, ALL[chosen], weights).backward()
    gradient = distribution.alpha.grad
    assert gradient is not None
    distribution.alpha.grad = None
    return gradient


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("make", [Distribution.joint, Distribution.factorised])
def test_with_every_architecture_drawn_once_the_gradient_is_exact(make, beta: float, baseline: bool) -> None:
    distribution = make(SPACE)  # uniform: once each is what is drawn on average
    found = estimated(distribution, np.arange(len(ALL)), beta, baseline=baseline)
    torch.testing.assert_close(found, exact(distribution, beta), atol=1e-12, rtol=0)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["joint", "factorised"])
def test_many_samples_give_the_exact_gradient_to_within_their_error(kind: str, beta: float) -> None:
    distribution = some(kind)
    expected = exact(distribution, beta)
    errors = {}
    for count in (2_000, 200_000):
        genomes = distribution.sample(count, generator(1, "architectures", count))
        chosen = np.array([INDEX[genome.tobytes()] for genome in genomes])
        errors[count] = float((estimated(distribution, chosen, beta) - expected).norm() / expected.norm())
    assert errors[200_000] < 0.03
    assert errors[200_000] < 0.5 * errors[2_000]  # ten times the samples a tenth of the variance: 0.1 is expected


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_baseline_changes_the_gradient_s_noise_and_not_its_mean(beta: float) -> None:
    distribution = some("factorised")
    found: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for repeat in range(2000):
        genomes = distribution.sample(8, generator(2, "architectures", repeat))
        chosen = np.array([INDEX[genome.tobytes()] for genome in genomes])
        for baseline, gradients in found.items():
            gradients.append(estimated(distribution, chosen, beta, baseline=baseline).clone())
    plain, less = (torch.stack(found[baseline]) for baseline in (False, True))
    error = (plain - less).std(0) / len(plain) ** 0.5
    assert ((plain.mean(0) - less.mean(0)).abs() < 5 * error + 1e-12).all()
    assert less.var(0).sum() < 0.8 * plain.var(0).sum()


def test_one_architecture_is_reinforced_with_and_without_a_baseline() -> None:
    for baseline in (False, True):
        assert cost_aware_weights(torch.ones(1).double(), np.zeros(1), 0.3, baseline=baseline).tolist() == [1]
        assert cost_aware_weights(torch.ones(1).double(), np.ones(1), 0.3, baseline=baseline).tolist() == [0.7]
    two = cost_aware_weights(torch.tensor([0.9, 0.1]).double(), np.array([0.0, 2.0]), 0.3, baseline=True)
    assert two.tolist() == pytest.approx([0.4 + 0.15, -0.4 - 0.15])


def test_the_cost_term_is_zero_where_no_architecture_is_over_its_target() -> None:
    importance = torch.tensor([0.2, 0.8], dtype=torch.float64)
    costs = {"flops": np.array([10, 20]), "params": np.array([5, 5])}
    assert hinge(costs, {"flops": 20.0}).tolist() == [0, 0]
    assert torch.equal(cost_aware_weights(importance, hinge(costs, {"flops": 20.0}), 0.3), importance)
    assert hinge(costs, {}).tolist() == [0, 0]
    assert hinge(costs, {"flops": 10.0, "params": 4.0}).tolist() == pytest.approx([0.25, 1.25])
    found = cost_aware_weights(importance, hinge(costs, {"flops": 10.0}), 0.3)
    assert found.tolist() == pytest.approx([0.2, 0.5])


def test_the_number_of_samples_follows_the_entropy() -> None:
    """Section 5.2.1: lambda = 1/4 draws 14 samples in the beginning, of a space of 6e25, and one in the end."""
    adaptive, fixed = SupernetConfig(), SupernetConfig(sampling="fixed", samples=5)
    assert adaptive.lambda_ == 0.25
    assert [sample_count(adaptive, h) for h in (math.log(6e25), 8.0, 7.9, 3.0, 0.0)] == [14, 2, 1, 1, 1]
    assert sample_count(SupernetConfig(**{"lambda": 0.5}), 8.0) == 4
    assert [sample_count(fixed, h) for h in (59.0, 0.0)] == [5, 5]


def test_importance_is_a_softmax_and_drops_what_is_not_finite() -> None:
    weights = importance_weights(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))
    assert weights.tolist() == pytest.approx([0.25, 0.75])
    cooler = importance_weights(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64), temperature=0.5)
    assert cooler.tolist() == pytest.approx([0.1, 0.9])
    bad = torch.tensor([math.nan, -1e9, math.inf, -1e9, -math.inf], dtype=torch.float64)
    assert importance_weights(bad).tolist() == [0, 0.5, 0, 0.5, 0]
    assert importance_weights(bad[:1]).tolist() == [0]
    assert importance_weights(bad[1:2]).tolist() == [1]  # K = 1: pure reinforcement
