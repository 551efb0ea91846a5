"""Models behind one interface: labels warped and back, failed trainings, features, distillation, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pynas
from pynas.errors import PynasError
from pynas.nars.evolve import evolve
from pynas.predict.cross_validation import cross_validate, models_to_check
from pynas.predict.domain import Dimension, Domain
from pynas.predict.labels import LabelWarp
from pynas.predict.models import MODELS, ProcessModel, fit_model, fit_predictor, mlp_features
from pynas.predict.ranking import kendall_tau
from pynas.predict.settings import PredictorSettings
from pynas.space.space import load_space

SPACE = pynas.load_space("fbnetv3_28")
DOMAIN = Domain.of(SPACE)
GENOMES = SPACE.sample(1200, seed=0)
QUICK = PredictorSettings(pretrain_epochs=10)


def accuracies(genomes: np.ndarray) -> np.ndarray:
    features = SPACE.features(genomes).astype(np.float64)
    noise = np.random.default_rng(0).normal(size=len(genomes)) * 2e-3
    return 0.7 + 0.05 * np.log(SPACE.costs(genomes)["flops"] / 1e6) - 0.03 * features[:, -2] + noise


def fitted(kind: str, labels: int = 80, **settings: object) -> object:
    batch = DOMAIN.genomes(SPACE, GENOMES[:labels])
    pool = DOMAIN.genomes(SPACE, GENOMES)
    return fit_model(kind, DOMAIN, pool, batch, accuracies(GENOMES[:labels]), **settings)


def test_features_of_the_domain_are_those_of_the_space() -> None:
    assert np.array_equal(mlp_features(DOMAIN, DOMAIN.genomes(SPACE, GENOMES)), SPACE.features(GENOMES))


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_ranks_unseen_candidates_in_units_of_accuracy_and_is_reproducible(kind: str) -> None:
    settings = {"settings": QUICK} if "mlp" in kind else {}
    model = fitted(kind, **settings)
    unseen = DOMAIN.genomes(SPACE, GENOMES[200:])
    mean, deviation = model.predict(unseen)
    assert mean.shape == deviation.shape == (1000,)
    assert kendall_tau(mean, accuracies(GENOMES[200:])) > 0.7
    assert np.abs(mean - accuracies(GENOMES[200:])).mean() < 0.03
    assert np.isfinite(deviation).all() if isinstance(model, ProcessModel) else np.isnan(deviation).all()
    assert model.mean(unseen) == pytest.approx(mean)
    assert np.array_equal(fitted(kind, **settings).predict(unseen)[0], mean)


def test_ridge_sees_the_statistics() -> None:
    labels = np.log(SPACE.costs(GENOMES)["params"])
    batch = DOMAIN.genomes(SPACE, GENOMES)
    model = fit_model("ridge", DOMAIN, batch, batch[:60], labels[:60])
    assert kendall_tau(model.mean(batch[60:]), labels[60:]) > 0.9


@pytest.mark.parametrize("kind", MODELS)
def test_one_label_and_failed_ones_are_enough_for_every_model(kind: str) -> None:
    for labels in ([0.8], [0.8, np.nan], [0.8, 0.8, 0.8], [np.inf, 0.8, 0.1, -np.inf]):
        batch = DOMAIN.genomes(SPACE, GENOMES[: len(labels)])
        pool = DOMAIN.genomes(SPACE, GENOMES[:100])
        settings = {"settings": QUICK} if "mlp" in kind else {}
        mean, _ = fit_model(kind, DOMAIN, pool, batch, np.array(labels), **settings).predict(pool)
        assert np.isfinite(mean).all()


def test_a_failed_training_keeps_its_neighbours_low() -> None:
    labels = accuracies(GENOMES[:60])
    wide = GENOMES[:60, -1] > 7  # half of the weight decays fail
    labels[wide] = np.nan
    batch, pool = DOMAIN.genomes(SPACE, GENOMES[:60]), DOMAIN.genomes(SPACE, GENOMES)
    mean = fit_model("gaussian_process", DOMAIN, pool, batch, labels).mean(pool)
    fails = GENOMES[:, -1] > 7
    assert mean[fails].mean() < mean[~fails].mean() - 0.02


def test_a_training_that_went_wrong_does_not_bend_the_rest() -> None:
    labels = accuracies(GENOMES[:80])
    labels[7] = 0.1  # chance
    batch, unseen = DOMAIN.genomes(SPACE, GENOMES[:80]), DOMAIN.genomes(SPACE, GENOMES[200:])
    model = fit_model("gaussian_process", DOMAIN, DOMAIN.genomes(SPACE, GENOMES), batch, labels)
    assert kendall_tau(model.mean(unseen), accuracies(GENOMES[200:])) > 0.7


def test_the_label_warp_is_monotone_and_its_inverse_inverts_it() -> None:
    rng = np.random.default_rng(0)
    for labels in (rng.normal(size=50), rng.integers(0, 4, 30) / 10, np.array([0.1, 0.8, 0.81, 0.82]), np.full(3, 0.5)):
        warp = LabelWarp.fit(labels)
        points = np.linspace(labels.min() - 0.5, labels.max() + 0.5, 200)
        assert (np.diff(warp(points)) > 0).all()
        assert warp.inverse(warp(points)) == pytest.approx(points)
    for size in (1e17, 1e18, 1e30, 1e38, 1e300, 1.7e308):
        labels = np.concatenate([rng.normal(size=30), -size * rng.random(10)])
        assert (np.diff(LabelWarp.fit(labels)(np.sort(labels))) >= 0).all()
        assert LabelWarp.fit(labels)(labels)[30:].max() < LabelWarp.fit(labels)(labels)[:30].min()
    low = LabelWarp.fit(np.array([0.1, *np.linspace(0.7, 0.8, 60)]))
    assert low(np.array([0.1]))[0] > -6  # compressed: it is 20 robust deviations away


def test_the_variance_of_a_guessed_label_makes_it_weigh_less() -> None:
    labels = accuracies(GENOMES[:40])
    labels[0] += 0.2
    batch, pool = DOMAIN.genomes(SPACE, GENOMES[:40]), DOMAIN.genomes(SPACE, GENOMES)
    variance = np.zeros(40)
    variance[0] = 1.0
    sure = fit_model("gaussian_process", DOMAIN, pool, batch, labels)
    unsure = fit_model("gaussian_process", DOMAIN, pool, batch, labels, variance=variance)
    true = accuracies(GENOMES[:1])[0]
    assert abs(unsure.mean(batch[:1])[0] - true) < abs(sure.mean(batch[:1])[0] - true)


@pytest.mark.parametrize("kind", ["gaussian_process", "ridge"])
def test_distilled_it_ranks_as_its_model_does_and_the_core_scores_it(kind: str) -> None:
    model = fitted(kind, 200)
    distilled = model.distill(SPACE)
    unseen = SPACE.sample(1000, seed=77)
    said = model.mean(DOMAIN.genomes(SPACE, unseen))
    scores = distilled.predictor.score(SPACE, unseen)
    assert distilled.kendall_tau > 0.9
    assert kendall_tau(scores, said) > 0.9
    assert np.abs(scores - said).mean() < 0.01
    result = pynas.evolve(SPACE, distilled.predictor, budget={"flops": 2e6}, seed=0)
    assert (result.costs["flops"] <= 2e6).all()
    found = model.mean(DOMAIN.genomes(SPACE, result.genomes[:1]))[0]
    random = SPACE.sample(5000, budget={"flops": 2e6}, seed=1)
    assert found > np.quantile(model.mean(DOMAIN.genomes(SPACE, random)), 0.999)
    again = model.distill(SPACE)
    assert np.array_equal(again.predictor.score(SPACE, unseen), scores)


def test_from_results_to_answers_in_three_lines() -> None:
    model = pynas.fit_predictor(SPACE, GENOMES[:100], accuracies(GENOMES[:100]))
    mean, deviation = model.predict(model.domain.genomes(SPACE, GENOMES[200:]))
    errors = np.abs(mean - accuracies(GENOMES[200:])) / deviation
    assert (errors < 2).mean() > 0.5  # deviations are about right
    assert kendall_tau(mean, accuracies(GENOMES[200:])) > 0.8
    with pytest.raises(PynasError, match="fbnetv3_28: "):
        pynas.fit_predictor(SPACE, GENOMES[:10, :5], accuracies(GENOMES[:10]))


def test_distillation_of_a_recipe_alone() -> None:
    pins = {v.name: SPACE.values(GENOMES[0])[v.name] for v in SPACE.variables if v.group == "architecture"}
    space = pynas.load_space("fbnetv3_28", pin=pins)
    genomes = space.sample(300, seed=0)
    domain = Domain.of(space)
    assert domain.statistics == ()
    labels = 0.8 - 0.1 * space.features(genomes)[:, -2].astype(np.float64)
    batch = domain.genomes(space, genomes)
    model = fit_model("gaussian_process", domain, batch, batch[:60], labels[:60])
    assert model.distill(space).kendall_tau > 0.9


def test_cross_validation_never_predicts_what_it_was_fitted_on() -> None:
    noise = np.random.default_rng(0).normal(size=60)
    kinds = ["gaussian_process", "ridge"]
    models = models_to_check(SPACE, GENOMES, GENOMES[:60], noise, kinds, seed=0)
    check = cross_validate(models, noise, folds=5, seed=0)
    assert all(abs(check[kind]) < 0.4 for kind in kinds)
    real = accuracies(GENOMES[:60])
    models = models_to_check(SPACE, GENOMES, GENOMES[:60], real, kinds, seed=0)
    check = cross_validate(models, real, folds=5, seed=0)
    assert all(check[kind] > 0.6 for kind in kinds)
    assert (check["labels"], check["models"], len(check["ridge_predicted"])) == (60, kinds, 60)
    one = cross_validate(models, real[:1], folds=5, seed=0)
    assert np.isnan(one["ridge"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "forest"}, "model 'forest'; allowed: gaussian_process, linear, ridge, mlp, pretrained_mlp"),
        ({"labels": np.full(5, np.nan)}, "5 accuracies, none of them a finite number; a model needs at least one"),
        ({"labels": np.zeros(4)}, r"accuracies of shape \(4,\); allowed: \(5,\), one a candidate"),
        ({"labels": ["a"] * 5}, r"accuracies: \['a', .*; allowed: numbers"),
        ({"kind": ["ridge"]}, r"model \['ridge'\]; allowed: gaussian_process"),
        ({"variance": np.ones(3)}, r"variance of shape \(3,\); allowed: \(5,\), one a candidate"),
        ({"tunne": False}, "ridge: unknown setting 'tunne'; allowed: seed, variance"),
        ({"variance": -np.ones(5)}, "variance: some below 0, or not a number; allowed: 0 and above"),
        ({"settings": 3}, "ridge: settings 3; allowed: PredictorSettings"),
        ({"seed": -1}, "seed -1; allowed: whole numbers"),
    ],
)
def test_what_cannot_be_fitted_is_said(change: dict[str, Any], message: str) -> None:
    batch, given = DOMAIN.genomes(SPACE, GENOMES[:5]), dict(change)
    kind, labels = given.pop("kind", "ridge"), given.pop("labels", np.zeros(5))
    with pytest.raises(PynasError, match=message):
        fit_model(kind, DOMAIN, batch, batch, labels, **given)


def test_the_front_door_takes_names_and_genomes() -> None:
    labels = np.ma.masked_array(accuracies(GENOMES[:60]), mask=np.arange(60) == 3)
    model = fit_predictor(SPACE, GENOMES[:60], labels, kind="ridge")
    mean, _ = model.predict(GENOMES)
    assert np.array_equal(mean, model.predict(DOMAIN.genomes(SPACE, GENOMES))[0])
    assert np.array_equal(mean, model.mean(GENOMES))
    own = load_space("fbnetv3_28")
    named = fit_predictor("fbnetv3_28", own.sample(20), np.arange(20), kind="ridge")
    assert named.distill("fbnetv3_28").predictor.fingerprint == own.fingerprint
    with pytest.raises(PynasError, match="distill: 0 genomes; allowed: 10 and more"):
        model.distill(SPACE, genomes=GENOMES[:0])
    with pytest.raises(PynasError, match="predict: ndarray; allowed: a Batch"):
        fitted("ridge").predict(GENOMES)  # type: ignore[attr-defined]
    with pytest.raises(PynasError, match="predictor of type RidgeModel; allowed: a Predictor, as"):
        evolve(own, named)


def test_points_and_costs_outside_of_the_domain_are_said() -> None:
    domain = Domain((Dimension("a", (1, 2)), Dimension("b", None)), ("flops",))
    for points, costs, message in [
        (np.zeros((3, 1)), {}, r"points of shape \(3, 1\); allowed: \(n, 2\)"),
        (np.array([[2, 0.5]]), {}, "variable a: 2; allowed: choice indices from 0 to 1"),
        (np.array([[0.5, 0.5]]), {}, "variable a: 0.5; allowed: choice indices from 0 to 1"),
        (np.array([[0, 1.5]]), {}, "variable b: 1.5; allowed: positions from 0 to 1"),
        (np.array([[np.nan, 0.5]]), {}, "variable a: nan; allowed"),
        (np.array([[0, 0.5]]), {}, "costs: flops is missing; needed: flops"),
        (np.array([[0, 0.5]]), {"flops": np.array([np.inf])}, "costs: flops has shape"),
    ]:
        with pytest.raises(PynasError, match=message):
            domain.batch(points, costs)
