"""Scores against a numpy reference, and the same bits on every instruction set and number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Declaration, declare_table2, random_genomes
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import logarithms, random_weights, reference_scores

import pynas
from pynas import _core


def compile_predictor(space, weights, statistics=()):
    return _core.Predictor(space, statistics, **weights)


def check_scores(space, weights, genomes, statistics=()):
    predictor = compile_predictor(space, weights, statistics)
    kept = genomes.copy(), {name: np.copy(value) for name, value in weights.items()}
    scores = predictor.score(genomes, 1, "baseline")
    assert scores.dtype == np.float32
    expected = reference_scores(space, weights, genomes, statistics)
    assert np.abs(scores - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    for name in (*_core.instruction_sets(), "auto"):
        for threads in (1, 2, 8):
            assert (predictor.score(genomes, threads, name) == scores).all(), (name, threads)
    assert (genomes == kept[0]).all()
    assert all((weights[name] == value).all() for name, value in kept[1].items())


SIZES = [(e, h, n) for e, h in [(24, 32), (1, 1), (7, 13), (64, 100), (0, 5)] for n in (1, 63, 64, 65)]


@pytest.mark.parametrize(("embedding", "hidden", "count"), [*SIZES, (24, 32, 9000)])
def test_table2_scores(table2, embedding, hidden, count):
    weights = random_weights(36, 7, embedding, hidden, seed=count)
    check_scores(table2, weights, random_genomes(table2, count))


@st.composite
def variables(draw):
    table = Declaration()
    for i in range(draw(st.integers(1, 20))):
        table.variable(f"list{i}", list(range(draw(st.integers(2, 6)))), "architecture")
    for group in ("architecture", "recipe"):
        for i in range(draw(st.integers(0, 5))):
            values = draw(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9, unique=True))
            table.variables.append({"name": f"{group}{i}", "kind": "range", "group": group, "values": values})
    if draw(st.booleans()):
        table.variable("wide", list(range(256)), "recipe")
    if draw(st.booleans()):
        table.variables = [{**variable, "group": "recipe"} for variable in table.variables]
    return table


some_statistics = st.lists(st.sampled_from(_core.COSTS), unique=True).map(tuple)


@settings(max_examples=40, deadline=None)
@given(variables(), st.integers(0, 12), st.integers(1, 20), some_statistics, st.integers(0, 2**31))
def test_any_variables(table, embedding, hidden, statistics, seed):
    """Uneven ranges, lists of any length, spaces without architecture variables or without a recipe."""
    space = table.compile()
    widths = {"architecture": 0, "recipe": 0}
    for variable in table.variables:
        widths[variable["group"]] += len(variable["values"]) if variable["kind"] == "list" else 1
    weights = random_weights(widths["architecture"] + len(statistics), widths["recipe"], embedding, hidden, seed)
    check_scores(space, weights, random_genomes(space, 70, seed=seed), statistics)


@pytest.mark.parametrize("embedding", [0, 3])
def test_a_recipe_alone_with_statistics(embedding):
    """Statistics are the only inputs of the embedding: of a network without choices."""
    table = Declaration()
    table.row("conv", c=16)
    table.row("fc", c=10)
    table.variable("lr", range(20, 31), "recipe")
    space = table.compile(32)
    weights = random_weights(2, 1, embedding, 5, seed=0)
    check_scores(space, weights, random_genomes(space, 65), ("params", "flops"))


@pytest.mark.parametrize("statistics", [("flops", "params"), ("parameters",), _core.COSTS[::-1]])
@pytest.mark.parametrize("name", ["fbnetv3", "fbnetv3_28"])
def test_scores_with_statistics(name, statistics):
    space = pynas.load_space(name)
    for embedding, hidden, count in [(24, 32, 9000), (7, 13, 1), (1, 1, 65), (0, 5, 63)]:
        width = space.architecture_features + len(statistics)
        weights = random_weights(width, space.recipe_features, embedding, hidden, seed=count)
        check_scores(space.core, weights, random_genomes(space.core, count), statistics)


def test_statistics_of_weight_zero_change_no_bit(table2):
    weights = random_weights(36, 7, 24, 32, seed=0)
    wider = {**weights, "embedding_weight": np.pad(weights["embedding_weight"], ((0, 0), (0, 2)))}
    genomes = random_genomes(table2, 1000)
    with_statistics = compile_predictor(table2, wider, ("flops", "params")).score(genomes, 1, "auto")
    assert (with_statistics == compile_predictor(table2, weights).score(genomes, 1, "auto")).all()


def only_statistic(architecture, recipe, weight, bias):
    """score = weight log(cost) + bias, where that is not negative."""
    embedding = np.zeros((1, architecture + 1), np.float32)
    embedding[0, -1] = weight
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    return {
        "embedding_weight": embedding, "embedding_bias": np.full(1, bias, np.float32),
        "hidden_weight": np.eye(1, 1 + recipe, dtype=np.float32),
        "hidden_bias": zero, "output_weight": one, "output_bias": 0.0, "mean": 0.0, "scale": 1.0,
    }  # fmt: skip


def counted_space(kind):
    """Spaces whose costs are all the small numbers, of eight magnitudes, beyond 32 bits, or 0."""
    table = Declaration()
    if kind == "small":
        table.row("fc", c=range(1, 257))
        return table.compile(1, input_channels=1)
    if kind == "none":
        table.variable("a", range(3))
        return table.compile()
    table.row("conv", k=[1, 3, 5, 7], c=range(8, 512, 8))
    table.row("fc", c=range(1, 250))
    return table.compile(range(8, 64, 8) if kind == "narrow" else range(8, 2048, 100))


@pytest.mark.parametrize("kind", ["small", "narrow", "wide", "none"])
@pytest.mark.parametrize("statistic", _core.COSTS)
def test_logarithms_are_as_exact_as_floats(kind, statistic):
    space = counted_space(kind)
    genomes = random_genomes(space, 20_000)
    expected = logarithms(space, (statistic,), genomes)[:, 0]
    if kind == "wide" and statistic == "flops":
        assert expected.max() > np.log(2.0**32)
    weights = only_statistic(space.features(genomes[:1]).shape[1], 0, 1, 0)
    found = compile_predictor(space, weights, (statistic,)).score(genomes, 1, "auto")
    assert np.abs(found - expected).max() <= 2e-7 * expected.max()


def test_small_differences_of_large_logarithms_are_kept(table2):
    """As a standardisation asks for, which is folded into weights and biases."""
    genomes = random_genomes(table2, 5000)
    weights = only_statistic(36, 7, 64, 2 - 64 * 20)
    scores = compile_predictor(table2, weights, ("flops",)).score(genomes, 1, "auto")
    expected = np.maximum(64 * logarithms(table2, ("flops",), genomes)[:, 0] + 2 - 64 * 20, 0)
    assert np.abs(scores - expected).max() < 1e-5  # 64 times a float near 20 would err by up to 6e-5


def test_biases_of_linear_layers_may_be_arrays_of_one():
    table, resolution = declare_table2()
    space = table.compile(resolution)
    weights = random_weights(36, 7, 4, 4, 0)
    genomes = random_genomes(space, 10)
    as_array = {**weights, "output_bias": np.array([weights["output_bias"]], np.float32)}
    assert np.allclose(
        compile_predictor(space, weights).score(genomes, 1, "auto"),
        compile_predictor(space, as_array).score(genomes, 1, "auto"),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"embedding_weight": np.zeros((24, 35), np.float32)}, r"embedding_weight has shape \(24, 35\).*\(24, 36\)"),
        ({"embedding_weight": np.zeros((24, 36))}, "embedding_weight has dtype float64"),
        ({"embedding_weight": np.zeros((36, 24), np.float32).T}, "not C-contiguous"),
        ({"hidden_weight": np.zeros((32, 30), np.float32)}, r"expected .* \(32, 31\)"),
        ({"hidden_bias": np.zeros(0, np.float32), "hidden_weight": np.zeros((0, 31), np.float32),
          "output_weight": np.zeros(0, np.float32)}, "at least 1"),
        ({"output_weight": np.zeros((1, 32), np.float32)}, r"output_weight has shape \(1, 32\)"),
        ({"output_weight": np.full(32, np.nan, np.float32)}, "output_weight holds nan"),
        ({"scale": np.inf}, "scale is inf"),
        ({"mean": "high"}, "mean is 'high'; expected a number"),
    ],
)  # fmt: skip
def test_wrong_weights(table2, change, told):
    with pytest.raises(ValueError, match=told):
        compile_predictor(table2, {**random_weights(36, 7, 24, 32, 0), **change})


@pytest.mark.parametrize(
    ("statistics", "told"),
    [
        (("flops", "latency"), 'statistics holds "latency"; allowed are flops, macs, params, parameters'),
        (("params", "flops", "params"), 'statistics holds "params" twice'),
        (("flops",), r"embedding_weight has shape \(24, 36\).*\(24, 37\)"),
    ],
)
def test_wrong_statistics(table2, statistics, told):
    with pytest.raises(ValueError, match=told):
        compile_predictor(table2, random_weights(36, 7, 24, 32, 0), statistics)


def test_wrong_score_arguments(table2):
    predictor = compile_predictor(table2, random_weights(36, 7, 24, 32, 0))
    genomes = random_genomes(table2, 3)
    with pytest.raises(ValueError, match='instruction_set is "sse9"; this processor has auto, baseline'):
        predictor.score(genomes, 1, "sse9")
    with pytest.raises(ValueError, match="threads is 0"):
        predictor.score(genomes, 0, "auto")
    with pytest.raises(ValueError, match="genomes has dtype"):
        predictor.score(genomes.astype(np.int32), 1, "auto")
    genomes[2, 0] = 7
    with pytest.raises(ValueError, match=r'row 2, variable 0 \("resolution"\) is 7; allowed are 0 to 6'):
        predictor.score(genomes, 1, "auto")
    assert predictor.score(genomes[:0], 1, "auto").shape == (0,)
