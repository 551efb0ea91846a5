"""Training a candidate: it learns, every recipe variable counts, and the same payload gives the same bits."""

import dataclasses
from typing import Any

import pytest
import torch
from train_examples import PLAIN, digits_payload, small

import pynas.train.loop as loop
from pynas.data.batches import Batch
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec
from pynas.train.candidate import train_candidate
from pynas.train.device import choose_device

PAPER = dataclasses.replace(
    PLAIN, lr=0.026, optimizer="RMSProp", ema=True, dropout=0.17, stochastic_depth=0.09, mixup=0.19, weight_decay=7e-6
)  # Table 9 of the appendix


def trained(payload: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return train_candidate(payload, reports.append), reports


def weights(recipe: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, torch.Tensor]:
    """What a short training leaves in the network that is evaluated."""
    seen: list[torch.nn.Module] = []
    real = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda network, *rest: (seen.append(network), real(network, *rest))[1])
    trained(digits_payload(recipe, data={"name": "digits", "train": 128}, **{"epochs": 1, **changes}))
    monkeypatch.undo()
    return seen[-1].state_dict()


def test_the_papers_recipe_learns_digits() -> None:
    payload = digits_payload(PAPER, data={"name": "digits"}, test=True, batch_size=16)
    payload["training"]["epochs"] = payload["epochs"] = 3
    result, reports = trained(payload)
    assert result["accuracy"] > 0.9
    assert result["test_accuracy"] > 0.85
    assert reports == [{"epoch": i, "accuracy": a} for i, a in enumerate(result["curve"], start=1)]
    assert result["accuracy"] == result["curve"][-1]
    assert result["epochs"] == 3
    assert result["seconds"] > 0


def test_the_same_payload_gives_the_same_bits_whatever_the_random_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    first = weights(PAPER, monkeypatch, augment="basic")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = weights(PAPER, monkeypatch, augment="basic")
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    other = weights(PAPER, monkeypatch, augment="basic", seed=2)
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_stopping_early_gives_the_prefix_of_the_full_curve() -> None:
    full = digits_payload(PAPER, augment="basic")
    full["training"]["epochs"] = full["epochs"] = 4
    short = {**full, "epochs": 2}
    curve = trained(full)[0]["curve"]
    result, _ = trained(short)
    assert result["curve"] == curve[:2]
    assert (result["epochs"], result["test_accuracy"]) == (2, None)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.05},
        {"optimizer": "RMSProp"},
        {"ema": True},
        {"dropout": 0.3},
        {"stochastic_depth": 0.3},
        {"mixup": 0.2},
        {"weight_decay": 1e-3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_recipe_variable_changes_the_outcome(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = weights(PLAIN, monkeypatch, ema_decay=0.9)
    changed = weights(dataclasses.replace(PLAIN, **change), monkeypatch, ema_decay=0.9)
    assert not torch.equal(plain["blocks.0.conv.weight"], changed["blocks.0.conv.weight"])


def test_two_recipes_see_the_same_images_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def remember(self: loop.Trainer, batch: Batch) -> None:
        seen.append(batch.images)
        real(self, batch)

    real = loop.Trainer.update
    monkeypatch.setattr(loop.Trainer, "update", remember)
    for recipe in (PLAIN, PAPER):
        trained(digits_payload(recipe, epochs=1))
    assert len(seen) == 32
    assert all(torch.equal(one, other) for one, other in zip(seen[:16], seen[16:], strict=True))


def test_the_average_is_what_is_evaluated() -> None:
    """An average that never moves leaves the initial network, which knows nothing."""
    frozen = dataclasses.replace(PLAIN, ema=True)
    changes = {"ema_decay": 0.999999, "batch_size": 8, "lr_decay": 0.3}
    assert trained(digits_payload(frozen, **changes))[0]["accuracy"] < 0.2
    assert trained(digits_payload(PLAIN, **changes))[0]["accuracy"] > 0.3


def test_the_resolution_is_the_models() -> None:
    result, _ = trained(digits_payload(model=ModelSpec.of(small(resolution=12)).to_dict(), epochs=1))
    assert 0.0 <= result["accuracy"] <= 1.0


def test_a_training_that_diverges_names_epoch_step_and_lr() -> None:
    wild = dataclasses.replace(PLAIN, lr=1e30)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in epoch 1, step \d+ of 16, lr \d"):
        trained(digits_payload(wild))


def test_an_evaluation_that_is_not_finite_names_epoch_step_and_lr(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last update of an epoch can break a network whose losses were all finite."""
    wild = dataclasses.replace(PLAIN, lr=1e38)
    payload = digits_payload(wild, data={"name": "digits", "train": 32}, epochs=1)
    with pytest.raises(FloatingPointError, match="outputs are not finite after epoch 1, step 1 of 1, lr 1e\\+38"):
        trained(payload)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, r"epochs: got 3, allowed are 1 to training\.epochs, 2"),
        ({"epochs": 0}, "epochs: got 0, allowed are 1 to"),
        ({"batch_size": 600}, r"training\.batch_size: got 600, allowed are at most the 512 training images"),
        ({"model": ModelSpec.of(small(classes=7)).to_dict()}, "model network: got 7 classes, the data have 10 classes"),
        (
            {"model": ModelSpec.of(small(input_channels=3)).to_dict()},
            "model network: cannot take images of 1 x 8 x 8",
        ),
    ],
)
def test_payloads_that_cannot_be_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        trained(digits_payload(**changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none() -> None:
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(PynasError, match=r"training\.device: got cuda, torch finds no CUDA device"):
        choose_device("cuda")
