"""Measuring latency: which networks, how often, and that the command's answer is a model. No time decides a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_pynas
from net_examples import small, varied

import pynas
import pynas.nets.latency as measuring
from pynas.errors import PynasError
from pynas.nets.latency import device_name, measure_latency, measure_space
from pynas.space.latency import LatencyModel

SPACE = pynas.load_space("fbnetv2_f_28")


def test_every_network_gets_a_time() -> None:
    told: list[float] = []
    networks = [small(), small(20), small(classes=3), varied("relu", 0), varied("swish", 1), varied("hswish", 2)]
    measured = measure_latency(networks, batch_size=2, rounds=3, advance=told.append)
    assert measured.shape == (6,)
    assert measured.dtype == np.float64
    assert (np.isfinite(measured) & (measured > 0)).all()
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_the_lower_quartile_of_the_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that calls move on: by 1, 2, 3, ... ms those of one network, by ten times as much those of the other."""
    now, calls, threads = [0.0], {10: 0, 5: 0}, torch.get_num_threads()

    def call(architecture: Any, *_: Any) -> Any:
        def advance() -> None:
            assert torch.get_num_threads() == threads + 1
            calls[architecture.classes] += 1
            now[0] += calls[architecture.classes] * {10: 1e-3, 5: 1e-2}[architecture.classes]

        return advance

    monkeypatch.setattr(measuring, "_call", call)
    monkeypatch.setattr(measuring, "WARM_UP", 1)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])  # thread_time is of one thread
    measured = measure_latency([small(), small(classes=5)], rounds=5, threads=threads + 1)
    assert measured == pytest.approx([3.0, 30.0])
    assert torch.get_num_threads() == threads
    assert calls == {10: 6, 5: 6}


@pytest.mark.parametrize(("rounds", "each"), [(7, 7 + 3), (2, 2 + 2)])
def test_networks_that_cannot_all_be_held_are_made_in_passes(
    rounds: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [small(classes=classes) for classes in range(2, 7)]
    held = 2 * max(network.cost()["parameters"] for network in networks)
    calls = dict.fromkeys(range(2, 7), 0)
    made: list[int] = []

    def call(architecture: Any, *_: Any) -> Any:
        made.append(architecture.classes)

        def count() -> None:
            calls[architecture.classes] += 1

        return count

    monkeypatch.setattr(measuring, "_call", call)
    monkeypatch.setattr(measuring, "WARM_UP", 1)
    monkeypatch.setattr(measuring, "HELD", held)
    assert len(measure_latency(networks, rounds=rounds)) == 5
    assert set(calls.values()) == {each}  # every pass warms up
    passes = [made[i : i + 5] for i in range(0, len(made), 5)]
    assert [sorted(order) for order in passes] == [list(range(2, 7))] * min(3, rounds)
    assert passes[0] != passes[1]


def test_which_networks_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(architectures: list[Any], **_: Any) -> np.ndarray:
        return np.array([1e-6 * network.cost()["flops"] for network in architectures])

    monkeypatch.setattr(measuring, "measure_latency", planted)
    one, again, other = (measure_space(SPACE, 40, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint
    assert np.array_equal(one.measured, 1e-6 * SPACE.costs(one.genomes)["flops"])
    assert not np.array_equal(one.genomes, other.genomes)
    assert one.setting["device"] == device_name("cpu") != ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "latency: device 'tpu'; allowed here: cpu"),
        ({"device": "cuda:99"}, "latency: device 'cuda:99'; allowed here: cpu"),
        ({"networks": 9}, "latency: networks: 9; allowed: at least 10"),
        ({"threads": 0}, "latency: threads: 0; allowed: at least 1"),
        ({"seed": -1}, "seed -1; allowed"),
    ],
)
def test_what_cannot_be_measured_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        measure_space(SPACE, **changes)


def test_the_command_writes_a_model(tmp_path: Path) -> None:
    table = str(Path(__file__).parent.parent / "examples" / "tiny.yaml")
    arguments = ["latency", table, "--networks", "10", "--rounds", "2"]
    done = run_pynas(*arguments, "--out", "1.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 networks of tiny: " in done.stdout
    assert "held out: median error " in done.stdout
    space = pynas.load_space(table)
    model = LatencyModel.load(tmp_path / "1.json", space)
    assert (model.predict(model.genomes) > 0).all()
    told = json.loads(run_pynas(*arguments, "--out", "2.json", "--batch", "2", "--json", cwd=tmp_path).stdout)
    again = LatencyModel.load(tmp_path / "2.json", space)
    assert np.array_equal(again.genomes, model.genomes)
    assert told["measured"] == [again.measured.min(), again.measured.max()]
    assert (told["batch_size"], told["held_out"]) == (2, again.held_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fbnetv9", "--out", "x.json"], "pynas: no table 'fbnetv9'"),
        (["fbnetv2_f_28", "--out", "absent/x.json"], "pynas: absent/x.json: cannot be written: there is no folder"),
        (["fbnetv2_f_28", "--out", "x.json", "--networks", "3"], "pynas: latency: networks: 3; allowed: at least 10"),
        (["fbnetv2_f_28", "--out", "x.json", "--device", "tpu"], "pynas: latency: device 'tpu'; allowed here: cpu"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_pynas("latency", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.json").exists()
