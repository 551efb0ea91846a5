"""Latency models: what they learn, their files, and that wrong ones are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pynas
from pynas.errors import PynasError
from pynas.space.latency import FEATURES, LatencyModel, block_sums

SPACE = pynas.load_space("fbnetv2_f_28")
SETTING = {"device": "abacus", "threads": 1, "batch_size": 1, "dtype": "float32", "rounds": 30}
COST = {"mbconvs": 0.1, "attentions": 0.2, "skips": 0.05, "depthwise_macs": 2e-7, "projection_macs": 1e-7}


def milliseconds(genomes: Any, space: Any = SPACE) -> Any:
    """What the networks would take if each of their parts took its time."""
    costs = np.array([COST.get(name, 0.0) for name in FEATURES])
    return 0.5 + block_sums(space, genomes) @ costs


def model(networks: int = 150, space: Any = SPACE) -> LatencyModel:
    genomes = space.sample(networks, seed=1)
    return LatencyModel.fit(space, genomes, milliseconds(genomes, space), SETTING)


MODEL = model()
OTHERS = SPACE.sample(300, seed=2)


@pytest.mark.parametrize("name", ["fbnetv2_f_28", "fpnas_l2", "fbnetv3"])
def test_features_are_sums_over_the_blocks_of_the_architecture(name: str) -> None:
    space = pynas.load_space(name)
    genomes = space.sample(5, seed=3)
    for genome, sums in zip(genomes, block_sums(space, genomes), strict=True):
        blocks = space.decode(genome)[0].blocks()
        found = dict(zip(FEATURES, sums, strict=True))
        inner = [block for block in blocks if block.kind == "mbconv"]
        assert found["macs"] == sum(block.macs for block in blocks)
        assert found["parameters"] == sum(block.parameters for block in blocks)
        assert found["mbconvs"] == len(inner)
        assert found["residuals"] == sum(block.residual for block in blocks)
        assert found["skips"] == sum(block.kind == "skip" and not block.identity for block in blocks)
        assert found["attentions"] == sum(block.splits > 0 for block in inner)
        assert found["splits"] == sum(block.splits > 1 for block in inner)
        assert found["swish_mbconvs"] == sum(block.act == "swish" for block in inner)
        parts = ("expansion_macs", "depthwise_macs", "projection_macs", "attention_weights")
        assert sum(found[part] for part in parts) == sum(block.macs for block in inner)


def test_a_latency_that_is_a_sum_over_blocks_is_learned() -> None:
    assert np.allclose(MODEL.predict(OTHERS), milliseconds(OTHERS), rtol=0.01)
    assert MODEL.held_out["networks"] == 30
    assert MODEL.held_out["median_error"] < 0.005
    assert MODEL.held_out["kendall_tau"] > 0.97
    assert MODEL.coefficients["splits"] == 0.0  # no network of this space has any


def test_noise_shows_in_the_held_out_errors_and_is_averaged_out() -> None:
    genomes = SPACE.sample(150, seed=1)
    noise = np.random.default_rng(0).normal(1.0, 0.05, 150)
    noisy = LatencyModel.fit(SPACE, genomes, milliseconds(genomes) * noise, SETTING)
    assert 0.02 < noisy.held_out["median_error"] < 0.08
    assert np.median(np.abs(noisy.predict(OTHERS) / milliseconds(OTHERS) - 1)) < 0.03


def test_a_prediction_depends_on_its_genome_alone() -> None:
    predicted = MODEL.predict(OTHERS)
    order = np.random.default_rng(0).permutation(len(OTHERS))
    assert np.array_equal(MODEL.predict(OTHERS[order]), predicted[order])
    assert np.array_equal(np.concatenate([MODEL.predict(genome[None]) for genome in OTHERS[:20]]), predicted[:20])
    assert MODEL.predict(OTHERS[:0]).shape == (0,)
    with pytest.raises(PynasError, match="fbnetv2_f_28: "):
        MODEL.predict(np.full_like(OTHERS[:1], 99))


def test_the_least_is_below_what_sampling_finds() -> None:
    assert 0 < MODEL.least <= MODEL.predict(OTHERS).min()


def test_a_file_gives_the_same_bits(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "cpu.json")
    loaded = LatencyModel.load(tmp_path / "cpu.json", SPACE)
    assert loaded.fingerprint == MODEL.fingerprint
    assert np.array_equal(loaded.predict(OTHERS), MODEL.predict(OTHERS))
    assert np.array_equal(loaded.genomes, MODEL.genomes)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "cpu.json").read_bytes()
    again = LatencyModel.fit(SPACE, loaded.genomes, loaded.measured, loaded.setting)
    assert again.fingerprint == MODEL.fingerprint
    assert model(100).fingerprint != MODEL.fingerprint


def without(key: str) -> dict[str, Any]:
    values = MODEL.to_dict()
    del values[key]
    return values


WRONG = {
    "no JSON": ("{", "not a latency model"),
    "a list": ("[]", "not a latency model"),
    "no coefficients": (without("coefficients"), r"not a latency model \(KeyError: 'coefficients'\)"),
    "genomes": ({**MODEL.to_dict(), "genomes": ["1,x"]}, "not a latency model"),
    "gene": ({**MODEL.to_dict(), "genomes": ["1,256"]}, "not a latency model"),
    "a time too few": ({**MODEL.to_dict(), "measured": [1.0]}, r"not a latency model .*genomes \(150, 29\)"),
    "features": ({**MODEL.to_dict(), "coefficients": {"macs": 1.0}}, "coefficients of other features .*measure anew"),
    "infinite": ({**MODEL.to_dict(), "constant": float("inf")}, "a coefficient is not finite"),
    "another space": (model(20, pynas.load_space("fbnetv3_28")).to_dict(), "of space fbnetv3_28 .*one of fbnetv2_f_28"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_file_is_told(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PynasError, match=f"wrong.json: .*{message}"):
        LatencyModel.load(path, SPACE)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(PynasError, match=r"absent.json: cannot be read: No such file.*pynas latency"):
        LatencyModel.load(tmp_path / "absent.json", SPACE)
    with pytest.raises(PynasError, match="cannot be written: there is no folder"):
        MODEL.save(tmp_path / "absent" / "cpu.json")


def test_what_cannot_be_fitted_to_is_told() -> None:
    with pytest.raises(PynasError, match="9 genomes, 9 times; allowed: 10 or more of each"):
        model(9)
    with pytest.raises(PynasError, match="a measured time is not finite and above 0"):
        LatencyModel.fit(SPACE, OTHERS[:10], np.zeros(10), SETTING)
