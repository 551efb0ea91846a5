"""A search in its directory: killed and stopped ones end as an undisturbed one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import finish, start
from test_distribution import SMALL
from test_fpnas_search import CONFIG, SPACE, planted_latency

import pynas
from pynas.data.batches import Batch, Data
from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.run import search_supernet
from pynas.fpnas.search import Search
from pynas.space.space import Space
from pynas.space.table import parse_table
from pynas.train.signals import Stopped

DATA = DataConfig(name="digits", withhold="half", train=96, validation=96)
TARGETS = {"flops": 40_000.0}


def run(path: Path, **changes: Any) -> dict[str, Any]:
    world = changes.pop("world", None)
    data, targets = changes.pop("data", DATA), changes.pop("targets", TARGETS)
    seed, space = changes.pop("seed", 0), changes.pop("space", SPACE)
    more = {"seed": seed, "world": world, "latency": changes.pop("latency", None)}
    return search_supernet(space, SupernetConfig(**{**CONFIG, **changes}), targets, data, path, **more)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def timeless(result: dict[str, Any]) -> dict[str, Any]:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result["history"]]
        return {**result, "seconds": None, "history": rows}

    return timeless(one) == timeless(other)


def at_step(number: int, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a search do something in the middle of its step `number`."""
    real = Search._update_weights

    def update(self: Search, *arguments: Any) -> list[float]:
        if self.step == number:
            act()
        return real(self, *arguments)

    monkeypatch.setattr(Search, "_update_weights", update)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("whole") / "search")


def test_a_search_leaves_its_result_and_log(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path)
    assert same(result, undisturbed)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert len(result["history"]) == 4
    assert result["samples"] == sum(row["samples"] for row in result["history"])
    last = result["history"][-1]
    assert (result["accuracy"], result["entropy"]) == (last["accuracy"], last["entropy"])
    assert len({(row["accuracy"], row["entropy"]) for row in result["history"]}) > 1
    assert list(result["marginals"]) == [variable.name for variable in SPACE.variables]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4
    assert run(tmp_path) == result  # finished: nothing is computed again
    architecture, _ = SPACE.decode(result["genome"])
    assert result["costs"] == architecture.cost()


def test_weights_train_on_one_half_augmented_and_alpha_on_the_other_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(batches: Iterable[Batch]) -> set[bytes]:
        return {image.numpy().tobytes() for batch in batches for image in batch.images}

    seen: list[set[bytes]] = []
    real = Search.run_epoch

    def run_epoch(self: Search, first: Data, second: Data, *arguments: Any) -> Any:
        if not seen:
            assert next(first.train_batches(0)).images.shape[1:] == (1, 12, 12)  # the largest resolution
            trained = [images(data.train_batches(0)) for data in (first, second)]
            seen.extend([*trained, images(first.validation_batches()), images(second.validation_batches())])
        return real(self, first, second, *arguments)

    monkeypatch.setattr(Search, "run_epoch", run_epoch)
    space = Space(parse_table(SMALL.replace("resolution: [16, 20]", "resolution: [8, 12]"), "small.yaml"))
    run(tmp_path, epochs=2, theta=1, augment="basic", space=space, targets={})
    first, second, first_held_out, second_held_out = seen
    assert len(first) == len(second) == len(second_held_out) == 96
    assert not second & second_held_out
    assert second == first_held_out
    assert len(first & second_held_out) < 48
    assert not first & second


@pytest.mark.parametrize("step", [0, 2, 3, 7, 11])
def test_kill_9_at_any_step_changes_nothing(
    undisturbed: dict[str, Any], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL), patch)
        process = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path,))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    assert same(run(tmp_path), undisturbed)


def test_a_signal_stops_before_the_next_step_and_the_search_goes_on(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(5, lambda: signal.raise_signal(signal.SIGTERM), patch)
        with pytest.raises(Stopped) as stopped:
            run(tmp_path)
    assert stopped.value.signal == signal.SIGTERM
    assert stopped.value.steps_made
    assert same(run(tmp_path), undisturbed)


def test_two_ranks_that_lose_one_go_on_and_end_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    results = finish(tmp_path / "a", start(tmp_path / "a", 2, lambda world: run(whole, world=world)))
    assert [kind for kind, _ in results] == ["value", "value"]
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        stopped = finish(tmp_path / "b", start(tmp_path / "b", 2, lambda world: run(cut, world=world)))
    assert [kind for kind, _ in stopped] == ["error", "error"]
    assert all(error[0] == "Stopped" for _, error in stopped)
    again = finish(tmp_path / "c", start(tmp_path / "c", 2, lambda world: run(cut, world=world)))
    for _, result in again:
        assert same(result, results[0][1])


def test_another_search_is_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=2, theta=1)
    with pytest.raises(
        PynasError, match=r"began with other settings: search.beta \(0.3 -> 0.5\).*only device and workers may"
    ):
        run(tmp_path, epochs=2, theta=1, beta=0.5)
    with pytest.raises(PynasError, match=r"seed \(0 -> 1\)"):
        run(tmp_path, epochs=2, theta=1, seed=1)
    with pytest.raises(PynasError, match="space"):
        run(tmp_path, epochs=2, theta=1, space=pynas.load_space("fbnetv2_f_28"), targets={"flops": 1e6})
    assert run(tmp_path, epochs=2, theta=1, device="cpu")["samples"]


def test_latency_is_a_cost_by_its_model(tmp_path: Path) -> None:
    model = planted_latency(1e-6)
    target = {"latency": 1.05 * model.least}
    result = run(tmp_path, epochs=2, theta=1, targets=target, latency=model)
    assert result["costs"]["latency"] == model.predict(np.array([result["genome"]], np.uint8))[0]
    assert result["costs"]["flops"] == SPACE.decode(result["genome"])[0].cost()["flops"]
    assert all(row["costs"]["latency"] > model.least for row in result["history"])
    assert run(tmp_path, epochs=2, theta=1, targets=target, latency=model) == result
    with pytest.raises(PynasError, match=r"began with other settings: latency \(.* -> .*\)"):
        run(tmp_path, epochs=2, theta=1, targets=target, latency=planted_latency(0.99e-6))
    with pytest.raises(PynasError, match=r"began with other settings: .*latency \(.* -> null\)"):
        run(tmp_path, epochs=2, theta=1, targets={}, latency=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": {"latency": 1.5}}, "target latency: 1.5 ms needs a latency model of small: see pynas latency"),
        (
            {"targets": {"latency": 1e-9}, "latency": planted_latency(1e-6)},
            r"target latency: 1e-09; the cheapest of small has 0\.\d+",
        ),
        (
            {"targets": {"flop": 1}, "latency": planted_latency(1e-6)},
            "target flop: unknown cost; allowed: flops, macs, params, parameters, latency",
        ),
        (
            {"latency": planted_latency(1e-6, pynas.load_space("fbnetv2_f_28"))},
            "latency: a model of space fbnetv2_f_28; allowed: one of small",
        ),
        ({"targets": {"flop": 1e6}}, "target flop: unknown cost; allowed: flops, macs, params, parameters"),
        ({"targets": {"flops": 10}}, r"target flops: 10; the cheapest of small has \d+"),
        ({"data": DataConfig(name="digits", withhold="half", classes=5)}, "small: got 10 classes, digits has 5"),
        ({"batch_size": 500}, "search.batch_size: got 500, allowed: up to the 96 images of data.train"),
        (
            {"space": pynas.load_space("fbnetv2_f"), "targets": {}},
            "fbnetv2_f: got 1000 classes, digits has 10",
        ),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        run(tmp_path, **changes)


def test_a_warm_up_without_end_is_told() -> None:
    with pytest.raises(ValueError, match="warmup_epochs: got 4, allowed: fewer than epochs, 4"):
        SupernetConfig(epochs=4, warmup_epochs=4)
