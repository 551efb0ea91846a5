"""The predictor: scored in C++ as torch would, fitted reproducibly, saved and loaded without loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pynas
from pynas.errors import PynasError
from pynas.nars.pool import make_pool
from pynas.predict.fit import fit_accuracy, pretrain
from pynas.predict.mlp import TwoHeadedMLP
from pynas.predict.predictor import Predictor
from pynas.predict.ranking import kendall_tau, spearman_rho
from pynas.predict.settings import PredictorSettings

SPACE = pynas.load_space("fbnetv3_28")
FAST = PredictorSettings(pretrain_epochs=12)


@pytest.fixture(scope="module")
def genomes() -> np.ndarray:
    return make_pool(SPACE, 3000, budget=pynas.Budget(), seed=0).genomes


@pytest.fixture(scope="module")
def pretrained(genomes: np.ndarray) -> Predictor:
    return pretrain(SPACE, genomes, FAST, seed=0)[0]


def accuracies(genomes: np.ndarray) -> np.ndarray:
    """An accuracy that grows with FLOPs and depends on the recipe, with a little noise."""
    features = SPACE.features(genomes).astype(np.float64)
    noise = np.random.default_rng(0).normal(size=len(genomes)) * 1e-3
    return 0.7 + 0.05 * np.log(SPACE.costs(genomes)["flops"] / 1e6) - 0.03 * features[:, -2] + noise


def test_the_core_scores_as_torch_does(genomes: np.ndarray) -> None:
    torch.manual_seed(0)
    model = TwoHeadedMLP(SPACE.architecture_features, SPACE.recipe_features, PredictorSettings())
    predictor = Predictor(SPACE.fingerprint, model.arrays(), np.array([0.8, 0.05]), np.zeros((2, 2)))
    expected = model.accuracy(torch.from_numpy(SPACE.features(genomes))).detach().numpy() * 0.05 + 0.8
    assert np.allclose(predictor.score(SPACE, genomes), expected, atol=1e-6)


def test_pretraining_learns_the_statistics_of_genomes_it_has_not_seen(genomes: np.ndarray) -> None:
    predictor, fit = pretrain(SPACE, genomes, PredictorSettings(), seed=0)
    assert (fit.samples, fit.held_out) == (2400, 600)
    assert fit.r2["flops"] > 0.9
    assert fit.r2["params"] > 0.9
    fresh = SPACE.sample(500, seed=9)
    assert kendall_tau(predictor.statistics(SPACE, fresh)["flops"], SPACE.costs(fresh)["flops"]) > 0.8


def test_fitting_ranks_unseen_candidates_and_is_reproducible(pretrained: Predictor, genomes: np.ndarray) -> None:
    labels = accuracies(genomes)
    fitted = fit_accuracy(pretrained, SPACE, genomes[:80], labels[:80], FAST, seed=0)
    assert kendall_tau(fitted.score(SPACE, genomes[80:]), labels[80:]) > 0.6
    torch.rand(3)  # somebody else's random numbers must not matter
    again = fit_accuracy(pretrained, SPACE, genomes[:80], labels[:80], FAST, seed=0)
    assert all(np.array_equal(fitted.weights[key], again.weights[key]) for key in fitted.weights)
    other = fit_accuracy(pretrained, SPACE, genomes[:80], labels[:80], FAST, seed=1)
    assert not np.array_equal(fitted.weights["hidden.weight"], other.weights["hidden.weight"])


def test_fitting_leaves_the_callers_torch_alone(pretrained: Predictor, genomes: np.ndarray) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    fit_accuracy(pretrained, SPACE, genomes[:20], accuracies(genomes[:20]), FAST, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_the_embedding_stays_frozen_in_the_first_phase(pretrained: Predictor, genomes: np.ndarray) -> None:
    frozen = PredictorSettings(epochs=0)
    labels = accuracies(genomes[:40])
    head_only = fit_accuracy(pretrained, SPACE, genomes[:40], labels, frozen, seed=0)
    assert np.array_equal(head_only.weights["embedding.weight"], pretrained.weights["embedding.weight"])
    full = fit_accuracy(pretrained, SPACE, genomes[:40], labels, PredictorSettings(), seed=0)
    assert not np.array_equal(full.weights["embedding.weight"], pretrained.weights["embedding.weight"])


def test_saved_predictors_load_as_they_were(pretrained: Predictor, genomes: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "predictor.npz"
    pretrained.save(path)
    loaded = pynas.Predictor.load(path)
    assert np.array_equal(loaded.score(SPACE, genomes), pretrained.score(SPACE, genomes))
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictor.npz"]


def test_what_is_no_predictor_is_an_error(pretrained: Predictor, tmp_path: Path) -> None:
    with pytest.raises(PynasError, match=r"absent.npz: no such file; a finished search leaves"):
        Predictor.load(tmp_path / "absent.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    with pytest.raises(PynasError, match=r"broken.npz: not a pynas predictor"):
        Predictor.load(tmp_path / "broken.npz")
    with pytest.raises(PynasError, match=r"made for a space with fingerprint .*; fbnetv3 has"):
        pretrained.score(pynas.load_space("fbnetv3"), np.zeros((1, 36), np.uint8))


def test_rank_correlations_by_hand() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert spearman_rho([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
    assert np.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman_rho([1], [1]))
