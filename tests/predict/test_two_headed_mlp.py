"""The predictor: scored in C++ as torch would, fitted reproducibly, saved and loaded without loss."""

from __future__ import annotations

from dataclasses import replace
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


def distilled(inputs: tuple[str, ...] = ("flops", "params")) -> Predictor:
    """As distilled from another model: statistics among the inputs, and no proxy head."""
    rng = np.random.default_rng(0)
    shapes = {"embedding": (24, SPACE.architecture_features + len(inputs)), "output": (1, 32)}
    shapes |= {"hidden": (32, 24 + SPACE.recipe_features)}
    weights = {f"{layer}.weight": rng.normal(0, shape[1] ** -0.5, shape) for layer, shape in shapes.items()}
    weights |= {f"{layer}.bias": rng.normal(size=shape[0]) for layer, shape in shapes.items()}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return Predictor(SPACE.fingerprint, arrays, np.array([2.0, 1.5]), np.zeros((2, 2)), inputs)


def embedding_of(predictor: Predictor, genomes: np.ndarray) -> np.ndarray:
    """The embedding in float64."""
    costs = SPACE.costs(genomes)
    logarithms = [np.log(costs[name]) for name in predictor.inputs]
    inputs = np.column_stack([SPACE.features(genomes)[:, : SPACE.architecture_features], *logarithms])
    w = predictor.weights
    return np.maximum(inputs.astype(np.float64) @ w["embedding.weight"].T + w["embedding.bias"], 0)


def changed_file(path: Path, **changes: np.ndarray | None) -> Path:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {name.replace("__", "."): array for name, array in changes.items()}
    changed = path.with_name("changed.npz")
    np.savez(changed, **{name: array for name, array in arrays.items() if array is not None})
    return changed


def test_statistics_among_the_inputs(genomes: np.ndarray) -> None:
    predictor = distilled()
    w = predictor.weights
    joined = np.hstack([embedding_of(predictor, genomes), SPACE.features(genomes)[:, SPACE.architecture_features :]])
    hidden = np.maximum(joined @ w["hidden.weight"].T + w["hidden.bias"], 0)
    expected = (hidden @ w["output.weight"][0] + w["output.bias"]) * 1.5 + 2
    assert np.allclose(predictor.score(SPACE, genomes), expected, atol=1e-5)
    found = pynas.evolve(SPACE, predictor, budget={"flops": 20e6}, seed=0)
    assert SPACE.feasible(found.genomes, pynas.Budget(flops=(None, 20e6))).all()
    assert np.array_equal(predictor.score(SPACE, found.genomes), found.scores)


def test_a_proxy_head_may_be_absent(genomes: np.ndarray) -> None:
    predictor = distilled()
    with pytest.raises(PynasError, match=r"no proxy head \(proxy.weight is absent\): it predicts accuracy only"):
        predictor.statistics(SPACE, genomes)
    proxy = {"proxy.weight": np.ones((2, 24), np.float32), "proxy.bias": np.zeros(2, np.float32)}
    scale = np.array([[0.0, 1.0], [1.0, 2.0]])
    with_head = replace(predictor, weights={**predictor.weights, **proxy}, proxy_scale=scale)
    embedding = embedding_of(predictor, genomes)
    found = with_head.statistics(SPACE, genomes)
    assert np.allclose(found["flops"], embedding.sum(1))
    assert np.allclose(found["params"], 2 * embedding.sum(1) + 1)


def test_a_predictor_of_other_inputs_does_not_fit() -> None:
    one = replace(distilled(), inputs=("flops",))
    with pytest.raises(PynasError, match="does not fit fbnetv3_28: embedding_weight has shape"):
        one.for_space(SPACE)
    with pytest.raises(PynasError, match='does not fit fbnetv3_28: statistics holds "latency"; allowed are flops'):
        replace(one, inputs=("latency", "flops")).for_space(SPACE)


@pytest.mark.parametrize(("inputs", "version"), [((), 1), (("flops", "params"), 2)])
def test_files_tell_the_inputs(inputs: tuple[str, ...], version: int, genomes: np.ndarray, tmp_path: Path) -> None:
    """A predictor without any is written as before there were any, and read by a pynas of then."""
    path = tmp_path / "predictor.npz"
    predictor = distilled(inputs)
    predictor.save(path)
    with np.load(path) as file:
        assert int(file["format"]) == version
        assert ("inputs" in file.files) == (version == 2)
    loaded = Predictor.load(path)
    assert loaded.inputs == inputs
    assert loaded.weights.keys() == predictor.weights.keys()
    assert np.array_equal(loaded.score(SPACE, genomes), predictor.score(SPACE, genomes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inputs": None}, "KeyError: 'inputs"),
        ({"inputs": np.array(["flops", "latency"])}, "inputs holds 'latency'; allowed: flops, macs, params"),
        ({"inputs": np.array(["flops", "flops"])}, "inputs holds a name twice: flops, flops"),
        ({"inputs": np.array([1, 2])}, r"inputs has shape \(2,\) and dtype int64; expected \(n,\) names"),
        ({"inputs": np.array("flops")}, r"inputs has shape \(\)"),
        ({"proxy__bias": np.zeros(2, np.float32)}, "has proxy.bias alone; a proxy head is proxy.weight and proxy.bias"),
        ({"embedding__bias": None}, "KeyError: 'embedding.bias"),
        ({"proxy_scale": np.zeros(2)}, r"scales have shapes \(2,\) and \(2,\)"),
        ({"format": np.array(3)}, "predictor format 3; this pynas reads formats 1 and 2"),
    ],
)
def test_damaged_files(changes: dict[str, np.ndarray | None], told: str, tmp_path: Path) -> None:
    distilled().save(tmp_path / "predictor.npz")
    with pytest.raises(PynasError, match=told):
        Predictor.load(changed_file(tmp_path / "predictor.npz", **changes))


def test_rank_correlations_by_hand() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert spearman_rho([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
    assert np.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman_rho([1], [1]))
