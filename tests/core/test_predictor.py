"""Scores against a numpy reference, and the same bits on every instruction set and number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Declaration, declare_table2, random_genomes
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_weights, reference_scores

from pynas import _core


def compile_predictor(space, weights):
    return _core.Predictor(space, **weights)


def check_scores(space, weights, genomes):
    predictor = compile_predictor(space, weights)
    kept = genomes.copy(), {name: np.copy(value) for name, value in weights.items()}
    scores = predictor.score(genomes, 1, "baseline")
    assert scores.dtype == np.float32
    expected = reference_scores(space, weights, genomes)
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


@settings(max_examples=40, deadline=None)
@given(variables(), st.integers(0, 12), st.integers(1, 20), st.integers(0, 2**31))
def test_any_variables(table, embedding, hidden, seed):
    """Uneven ranges, lists of any length, spaces without architecture variables or without a recipe."""
    space = table.compile()
    widths = {"architecture": 0, "recipe": 0}
    for variable in table.variables:
        widths[variable["group"]] += len(variable["values"]) if variable["kind"] == "list" else 1
    weights = random_weights(widths["architecture"], widths["recipe"], embedding, hidden, seed)
    check_scores(space, weights, random_genomes(space, 70, seed=seed))


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
