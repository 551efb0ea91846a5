"""top_k and pareto_front against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pynas import _core

few_values = st.integers(-3, 3).map(float)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(0, 60), elements=few_values), st.integers(0, 70))
def test_top_k(scores, k):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert _core.top_k(scores, k).tolist() == expected


@pytest.mark.parametrize("k", [1, 7, 5000])
@pytest.mark.parametrize("order", ["rising", "falling", "random", "equal"])
def test_top_k_of_many(k, order):
    scores = np.random.default_rng(0).integers(0, 5000, 40_000).astype(np.float32)
    scores = {"rising": np.sort(scores), "falling": -np.sort(-scores), "random": scores, "equal": scores * 0}[order]
    assert _core.top_k(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def dominated(points: np.ndarray, i: int) -> bool:
    return any((p <= points[i]).all() and (p < points[i]).any() for p in points)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda d: arrays(np.float64, st.tuples(st.integers(0, 25), st.just(d)), elements=few_values)
    )
)
def test_pareto_front(points):
    expected = [i for i in range(len(points)) if not dominated(points, i)]
    kept = points.copy()
    assert _core.pareto_front(points).tolist() == expected
    assert (points == kept).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="element 1 is NaN"):
        _core.top_k(np.array([1, np.nan], np.float32), 1)
    with pytest.raises(ValueError, match="scores has dtype float64"):
        _core.top_k(np.zeros(3), 1)
    with pytest.raises(ValueError, match="k is -1"):
        _core.top_k(np.zeros(3, np.float32), -1)
    with pytest.raises(ValueError, match="row 1, column 0 is NaN"):
        _core.pareto_front(np.array([[0, 1], [np.nan, 2]]))
    with pytest.raises(ValueError, match="points has shape"):
        _core.pareto_front(np.zeros(3))
