"""The Gaussian process: its gradient, its posterior against a dense reference, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pynas.predict.domain import Batch, Dimension, Domain
from pynas.predict.encoding import Encoding, Features
from pynas.predict.gaussian_process import (
    CONSTANT,
    MANY,
    MOST,
    Evidence,
    GaussianProcess,
    Hyperparameters,
    prior_medians,
)

DOMAIN = Domain(
    (
        Dimension("k1", (3, 5), kind="k"),
        Dimension("k2", (3, 5, 7), kind="k"),
        Dimension("c1", (8, 16, 24), ordered=True, kind="c"),
        Dimension("c2", (16, 24, 32, 40), ordered=True, kind="c"),
        Dimension("lr", (1e-3, 1e-2, 1e-1), ordered=True, log=True, recipe=True),
        Dimension("mixup", None, recipe=True),
    ),
    ("flops",),
)


def draw(n: int, seed: int = 0, domain: Domain = DOMAIN) -> Batch:
    rng = np.random.default_rng(seed)
    columns = [rng.random(n) if d.values is None else rng.integers(0, len(d.values), n) for d in domain.dimensions]
    return domain.batch(np.stack(columns, axis=1), {"flops": np.exp(rng.normal(14, 1, n))})


def truth(batch: Batch) -> NDArray[np.float64]:
    points = batch.points
    return points[:, 2] + 0.5 * points[:, 3] * (points[:, 1] == 2) - points[:, 5] ** 2 + 0.3 * batch.statistics[:, 0]


def features(batch: Batch) -> Features:
    return Encoding(DOMAIN, draw(500, seed=99))(batch)


def matern52(r: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)


def dense(one: Features, other: Features, at: Hyperparameters) -> NDArray[np.float64]:
    """The formula of the module's docstring, entry by entry."""
    found = np.full((len(one), len(other)), CONSTANT)
    for i in range(len(one)):
        for j in range(len(other)):
            for variance, left, right in zip(at.variances, one.linear, other.linear, strict=True):
                found[i, j] += variance * left[i] @ right[j] / left.shape[1]
            if at.lengths:
                square = 0.0
                for length, left, right in zip(at.length_scales, one.lengths, other.lengths, strict=True):
                    square += ((left[i] - right[j]) ** 2).sum() / length**2
                found[i, j] += at.matern * matern52(np.sqrt(square))
    return found


def random_hyperparameters(of: Features, matern: bool) -> Hyperparameters:
    start = prior_medians(of, matern)
    return start.replaced(start.vector + np.random.default_rng(1).normal(size=len(start.vector)) * 0.7)


@pytest.mark.parametrize("matern", [True, False])
def test_the_gradient_of_the_evidence_is_that_of_finite_differences(matern: bool) -> None:
    batch = draw(40)
    inputs = features(batch)
    variance = np.random.default_rng(2).random(40) * 0.2
    evidence = Evidence(inputs, truth(batch), variance, prior_medians(inputs, matern))
    at = random_hyperparameters(inputs, matern).vector
    _, gradient = evidence(at)
    for i, step in enumerate(np.eye(len(at)) * 1e-5):
        difference = (evidence(at + step)[0] - evidence(at - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("matern", [True, False])
def test_evidence_and_posterior_are_those_of_the_dense_formulas(matern: bool) -> None:
    batch, asked = draw(30), draw(20, seed=1)
    inputs, queries = features(batch), features(asked)
    labels, variance = truth(batch), np.linspace(0, 0.3, 30)
    at = random_hyperparameters(inputs, matern)
    covariance = dense(inputs, inputs, at) + np.diag(at.noise + variance)
    inverse = np.linalg.inv(covariance)
    away = at.vector - prior_medians(inputs, matern).vector
    expected = (
        -0.5 * labels @ inverse @ labels - 0.5 * np.linalg.slogdet(covariance)[1] - 0.5 * (away / 1.5) @ (away / 1.5)
    )
    assert Evidence(inputs, labels, variance, prior_medians(inputs, matern))(at.vector)[0] == pytest.approx(expected)
    cross = dense(queries, inputs, at)
    mean, deviation = GaussianProcess(inputs, labels, variance, at).predict(queries)
    assert mean == pytest.approx(cross @ inverse @ labels, abs=1e-8)
    own = np.diag(dense(queries, queries, at)) - (cross @ inverse * cross).sum(axis=1)
    assert deviation == pytest.approx(np.sqrt(own), abs=1e-6)


def test_the_climb_raises_the_evidence_and_the_fit_ranks_unseen_candidates() -> None:
    batch, asked = draw(120), draw(200, seed=1)
    labels = (truth(batch) - truth(batch).mean()) / truth(batch).std()
    inputs = features(batch)
    start = prior_medians(inputs)
    evidence = Evidence(inputs, labels, np.zeros(120), start)
    fitted = GaussianProcess.fit(inputs, labels)
    assert evidence(fitted.at.vector)[0] > evidence(start.vector)[0] + 10
    mean, deviation = fitted.predict(features(asked))
    scaled = (truth(asked) - truth(batch).mean()) / truth(batch).std()
    assert np.corrcoef(mean, scaled)[0, 1] > 0.98
    assert np.abs((mean - scaled) / deviation).mean() < 3  # deviations tell how far off it is


def test_the_order_of_variables_changes_nothing() -> None:
    order = [5, 2, 0, 4, 3, 1]
    other = Domain(tuple(DOMAIN.dimensions[i] for i in order), ("flops",))

    def predicted(domain: Domain, columns: list[int]) -> NDArray[np.float64]:
        def turned(batch: Batch) -> Batch:
            return Batch(batch.points[:, columns], batch.statistics)

        encoding = Encoding(domain, turned(draw(500, seed=99)))
        labels = truth(draw(60))
        process = GaussianProcess.fit(encoding(turned(draw(60))), (labels - labels.mean()) / labels.std())
        return process.predict(encoding(turned(draw(50, seed=1))))[0]

    assert predicted(DOMAIN, list(range(6))) == pytest.approx(predicted(other, order), abs=1e-4)


def test_the_scale_of_costs_and_of_values_changes_nothing() -> None:
    """Statistics are logarithms that are standardised, and ranges are min-max: units do not matter."""
    scaled = Domain(
        tuple(
            Dimension(d.name, tuple(1000 * v for v in d.values), d.ordered, d.kind, d.log, d.recipe)
            if d.ordered and d.values
            else d
            for d in DOMAIN.dimensions
        ),
        ("flops",),
    )

    def predicted(domain: Domain, factor: float) -> NDArray[np.float64]:
        def turned(batch: Batch) -> Batch:
            return domain.batch(batch.points, {"flops": factor * np.exp(batch.statistics[:, 0])})

        encoding = Encoding(domain, turned(draw(500, seed=99)))
        labels = truth(draw(60))
        process = GaussianProcess.fit(encoding(turned(draw(60))), (labels - labels.mean()) / labels.std())
        return process.predict(encoding(turned(draw(50, seed=1))))[0]

    assert predicted(DOMAIN, 1.0) == pytest.approx(predicted(scaled, 1e3), abs=1e-4)


def test_believing_leaves_means_and_shrinks_deviations_near_what_is_pending() -> None:
    batch, asked = draw(40), features(draw(100, seed=1))
    process = GaussianProcess.fit(features(batch), truth(batch) - truth(batch).mean())
    pending = asked[np.arange(5)]
    believing = process.believing(pending)
    before, after = process.predict(asked), believing.predict(asked)
    assert after[0] == pytest.approx(before[0], abs=1e-8)
    assert (after[1] <= before[1] + 1e-9).all()
    assert (after[1][:5] < 0.9 * before[1][:5]).all()
    assert process.believing(asked[np.arange(0)]) is process


def test_believing_one_after_another_is_believing_them_all() -> None:
    batch, asked = draw(40), features(draw(60, seed=1))
    process = GaussianProcess.fit(features(batch), truth(batch) - truth(batch).mean())
    believe = process.believer(asked)
    for row, rows in ((7, [7]), (20, [7, 20]), (3, [7, 20, 3])):
        expected = process.believing(asked[np.array(rows)]).predict(asked)[1]
        assert believe(row) == pytest.approx(expected, abs=1e-5)


def test_more_labels_than_it_takes_are_thinned_and_the_best_stay() -> None:
    batch = draw(MOST + 500)
    labels = truth(batch) - truth(batch).mean()
    process = GaussianProcess.fit(features(batch), labels / labels.std())
    assert len(process.labels) == MOST
    assert process.labels.max() == (labels / labels.std()).max()
    mean, _ = process.predict(features(draw(300, seed=1)), deviation=False)
    assert np.corrcoef(mean, truth(draw(300, seed=1)))[0, 1] > 0.99


def test_the_order_of_rows_changes_nothing() -> None:
    batch = draw(MANY + 50)
    labels = truth(batch) - truth(batch).mean()
    given, order = features(batch), np.random.default_rng(0).permutation(len(labels))
    one, other = GaussianProcess.fit(given, labels), GaussianProcess.fit(given[order], labels[order])
    assert other.at.vector == pytest.approx(one.at.vector, rel=1e-3, abs=1e-3)
    assert other.predict(features(draw(50, 1)))[0] == pytest.approx(one.predict(features(draw(50, 1)))[0], abs=1e-4)


def test_same_seed_same_bits() -> None:
    batch = draw(MANY + 50)
    labels = truth(batch) - truth(batch).mean()
    one, other = (GaussianProcess.fit(features(batch), labels, seed=3) for _ in range(2))
    assert np.array_equal(one.at.vector, other.at.vector)
    assert np.array_equal(one.predict(features(draw(50, 1)))[0], other.predict(features(draw(50, 1)))[0])


def test_a_variable_that_never_varies_and_a_single_label_do_no_harm() -> None:
    batch = draw(1)
    mean, deviation = GaussianProcess.fit(features(batch), np.zeros(1)).predict(features(draw(20, 1)))
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
    unlabelled = draw(50, 5)
    unlabelled.points[:, 0] = 0
    encoding = Encoding(DOMAIN, unlabelled)
    assert np.isfinite(GaussianProcess.fit(encoding(draw(5)), np.arange(5.0)).predict(encoding(draw(20, 1)))[0]).all()
