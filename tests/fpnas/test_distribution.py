"""The distribution over architectures, against enumeration of a space small enough for it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import pynas
from pynas.errors import PynasError
from pynas.fpnas.distribution import Distribution, layers
from pynas.randomness import generator
from pynas.space.space import Space
from pynas.space.table import parse_table

SMALL = """
name: small
input_channels: 1
resolution: [16, 20]
stages: |
  | block  | k         | e        | c          | n | s | se     | act           |
  | conv   | 3         | -        | 8          | 1 | 2 | -      | hswish        |
  | mbconv | [0, 3, 5] | [1, 2]^1 | [8, 16]    | 1 | 1 | N      | [relu, swish] |
  | mbconv | 3         | [1, 2]^1 | [8, 16]    | 1 | 2 | [0, 2] | relu          |
  | mbpool | -         | 6        | 32         | 1 | - | -      | hswish        |
  | fc     | -         | -        | 10         | 1 | - | -      | -             |
"""
SPACE = Space(parse_table(SMALL, "small.yaml"))
ALL = np.array([*itertools.product(*(range(len(v.values)) for v in SPACE.variables))], np.uint8)
KINDS = {"joint": Distribution.joint, "factorised": Distribution.factorised}


def some(kind: str, seed: int = 0) -> Distribution:
    distribution = KINDS[kind](SPACE)
    noise = torch.from_numpy(generator(seed, "alpha").normal(size=distribution.alpha.shape))
    return Distribution(SPACE, distribution.factors, distribution.alpha.detach() + 2 * noise)


def test_layers_are_the_rows_and_a_tied_variable_belongs_to_the_first() -> None:
    names = [[SPACE.variables[v].name for v in layer] for layer in layers(SPACE)]
    assert names == [
        ["stage1.k", "stage1.e", "stage1.c", "stage1.act"],
        ["stage2.c", "stage2.se"],
        ["resolution"],
    ]
    assert len(ALL) == 2 * 24 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_add_up_and_entropy_is_theirs(kind: str) -> None:
    uniform = KINDS[kind](SPACE)
    assert uniform.entropy() == pytest.approx(math.log(len(ALL)), rel=1e-12)
    distribution = some(kind)
    logs = distribution.log_probability(ALL).detach().numpy()
    assert math.fsum(np.exp(logs)) == pytest.approx(1, abs=1e-12)
    assert distribution.entropy() == pytest.approx(-math.fsum(np.exp(logs) * logs), rel=1e-12)
    marginals = distribution.marginals()
    for i, variable in enumerate(SPACE.variables):
        expected = [np.exp(logs)[ALL[:, i] == choice].sum() for choice in range(len(variable.values))]
        assert marginals[variable.name] == pytest.approx(expected, abs=1e-12)


def test_alpha_counts_sums_or_products_of_the_choices() -> None:
    """Section 3.3: prod(3, 2, 2, 6, 10) = 720 parameters of the joint distribution, sum 23 of the factorised one."""
    space = pynas.load_space("fbnetv2_f")
    assert 720 in Distribution.joint(space).sizes
    assert sum(Distribution.joint(space).sizes[-1:]) == 720
    assert sum(Distribution.factorised(space).sizes[-5:]) == 23


def test_the_conversion_to_joint_keeps_every_probability_and_the_entropy() -> None:
    factorised = some("factorised")
    joint = factorised.to_joint()
    assert joint.factors == Distribution.joint(SPACE).factors
    expected = factorised.log_probability(ALL).detach().numpy()
    np.testing.assert_allclose(joint.log_probability(ALL).detach().numpy(), expected, atol=1e-12, rtol=0)
    assert joint.entropy() == pytest.approx(factorised.entropy(), rel=1e-12)
    assert np.array_equal(joint.mode(), factorised.mode())
    assert not joint.sample(0, generator(0)).size
    again = joint.to_joint()
    np.testing.assert_allclose(again.log_probability(ALL).detach().numpy(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_probabilities_and_the_seed(kind: str) -> None:
    distribution = some(kind)
    count = 20_000
    genomes = distribution.sample(count, generator(0, "samples"))
    assert genomes.dtype == np.uint8
    assert np.array_equal(genomes, distribution.sample(count, generator(0, "samples")))
    assert not np.array_equal(genomes, distribution.sample(count, generator(1, "samples")))
    expected = count * distribution.log_probability(ALL).detach().exp().numpy()
    weights = np.array([len(v.values) for v in SPACE.variables][::-1]).cumprod()[::-1]
    strides = np.append(weights[1:], 1)
    found = np.bincount(genomes @ strides, minlength=len(ALL))
    often = expected > 5
    observed = np.append(found[often], found[~often].sum())
    assert chisquare(observed, np.append(expected[often], expected[~often].sum())).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_probable_are_found_in_order(kind: str) -> None:
    """By enumeration: genomes that differ in a skipped row's activation alone are one network."""
    distribution = some(kind, seed=3)
    variables = [variable.name for variable in SPACE.variables]
    kernel, act = variables.index("stage1.k"), variables.index("stage1.act")
    networks = ALL.copy()
    networks[networks[:, kernel] == 0, act] = 0
    probabilities: dict[bytes, float] = {}
    for network, log in zip(networks, distribution.log_probability(ALL).tolist(), strict=True):
        probabilities[network.tobytes()] = probabilities.get(network.tobytes(), 0.0) + math.exp(log)
    order = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
    assert len(order) < len(ALL)
    assert distribution.mode().tobytes() == order[0]
    assert [genome.tobytes() for genome in distribution.most_probable(50)] == order[:50]
    assert {genome.tobytes() for genome in distribution.most_probable(10_000)} == set(order)
    assert len(distribution.most_probable(10_000)) == len(order)
    assert distribution.most_probable(0).shape == (0, ALL.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_log_probability(kind: str) -> None:
    """d log P(a) / d alpha_b = [a = b] - P(b), and an optimizer leaves the padding alone."""
    distribution = some(kind)
    genome = ALL[17:18]
    distribution.log_probability(genome).sum().backward()
    probabilities = torch.softmax(distribution.alpha.detach(), 1)
    chosen = torch.zeros_like(probabilities)
    for row, factor in enumerate(distribution.factors):
        sizes = [len(SPACE.variables[v].values) for v in factor]
        chosen[row, np.ravel_multi_index(tuple(genome[0, list(factor)]), sizes)] = 1
    assert distribution.alpha.grad is not None
    torch.testing.assert_close(distribution.alpha.grad, chosen - probabilities, atol=1e-12, rtol=0)
    torch.optim.Adam([distribution.alpha], 0.1).step()
    assert distribution.entropy() > 0
    assert math.fsum(distribution.log_probability(ALL).detach().exp().tolist()) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_comes_back_bit_for_bit(kind: str) -> None:
    distribution = some(kind)
    again = Distribution.from_dict(SPACE, distribution.to_dict())
    assert torch.equal(again.alpha, distribution.alpha)
    assert again.factors == distribution.factors


def test_what_has_no_distribution_is_told() -> None:
    with pytest.raises(PynasError, match=r"fbnetv3_28: FP-NAS searches architectures, and lr, .* pin them"):
        Distribution.joint(pynas.load_space("fbnetv3_28"))
    row = "| mbconv | [0, 3, 5] | [1, 2]^1 | [8, 16]    | 1 | 1 | N      | [relu, swish] |"
    wide = "| mbconv | (1, 15, 2) | (1, 16) | (1, 256) | 1 | 1 | [0, 1, 2, 4] | [relu, swish, hswish] |"
    assert row in SMALL
    space = Space(parse_table(SMALL.replace(row, wide).replace("[1, 2]^1", "2"), "wide.yaml"))
    with pytest.raises(PynasError, match=r"joint distribution of stage1.k, .* 393216 choices; allowed: up to 262144"):
        Distribution.joint(space)
    assert Distribution.factorised(space).entropy() == pytest.approx(math.log(math.prod(space.size.values())))


def test_the_mode_is_of_networks_and_not_of_their_names() -> None:
    """A skip has as many names as its row has expansions, splits and activations; they count together."""
    space = pynas.load_space("fbnetv2_f_28")
    distribution = Distribution.joint(space)
    kernels = [v for v, variable in enumerate(space.variables) if variable.name.endswith(".k")]
    with torch.no_grad():
        for row, factor in enumerate(distribution.factors):
            kernel = next(v for v in factor if v in kernels)
            skipped = distribution._digits(factor)[:, factor.index(kernel)] == 0
            alpha = torch.where(skipped, 0.0, -3.0).double()
            alpha[int((~skipped).nonzero()[-1])] = 0.1  # more probable than any one name of a skip
            distribution.alpha[row, : len(alpha)] = alpha
    assert all(distribution.mode()[kernels] == 0)
    found = distribution.most_probable(300)
    assert len({genome.tobytes() for genome in found}) == 300
    widths = [v for v, variable in enumerate(space.variables) if variable.name.endswith(".c")]
    others = [v for v in range(len(space.variables)) if v not in (*kernels, *widths)]
    skips = [genome for genome in found if not genome[kernels].any()]
    assert len(skips) > 1
    assert not any(genome[others].any() for genome in skips)  # one name for each


def test_merging_names_keeps_probabilities() -> None:
    space = pynas.load_space("fbnetv2_fpp_28")
    distribution = Distribution.joint(space)
    with torch.no_grad():
        noise = torch.from_numpy(np.random.default_rng(0).normal(size=distribution.alpha.shape))
        distribution.alpha.add_(noise)
    networks = distribution.networks()
    assert networks.entropy() < distribution.entropy()
    for name, probabilities in networks.marginals().items():
        if name.endswith((".k", ".c")):  # which a skip has too
            assert sum(probabilities) == pytest.approx(1)
            assert probabilities == pytest.approx(distribution.marginals()[name])
