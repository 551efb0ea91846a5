"""The search in a supernet: what it learns, that it goes on where it was, and that bad numbers do it no harm."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import together
from test_distribution import SMALL
from torch.nn import functional

import pynas
from pynas.data.batches import Batch
from pynas.data.config import DataConfig
from pynas.data.memory import MemoryData
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.distribution import Distribution
from pynas.fpnas.search import Search
from pynas.space.latency import LatencyModel
from pynas.space.space import Space
from pynas.space.table import parse_table
from pynas.train.world import World

CPU = torch.device("cpu")
SPACE = Space(parse_table(SMALL.replace("resolution: [16, 20]", "resolution: 8"), "small.yaml"))
CONFIG = {"epochs": 4, "warmup_epochs": 1, "batch_size": 32, "theta": 2, "lr": 0.05, "augment": "none", "lambda": 1.0}


def halves(batch_size: int = 32, images: int = 128) -> tuple[MemoryData, MemoryData]:
    config = DataConfig(name="digits", withhold="half", train=images, validation=images)
    shared: dict[str, Any] = {"resolution": 8, "device": CPU, "batch_size": batch_size, "augment": "none"}
    return MemoryData(config, seed=0, **shared), MemoryData(config, seed=1, exchanged=True, **shared)


def search(seed: int = 0, space: Space = SPACE, targets: dict[str, float] | None = None, **changes: Any) -> Search:
    latency = changes.pop("latency", None)
    config = SupernetConfig(**{**CONFIG, **changes})
    return Search(space, config, targets or {}, steps_per_epoch=4, seed=seed, device=CPU, latency=latency)


def planted_latency(milliseconds: float, space: Space = SPACE) -> LatencyModel:
    """The model of a device that takes so long for a FLOP."""
    genomes = space.sample(40, seed=5)
    return LatencyModel.fit(space, genomes, milliseconds * space.costs(genomes)["flops"], {"device": "planted"})


def test_the_halves_are_two_and_exchanged() -> None:
    first, second = halves()
    mean = [float(next(data.train_batches(0)).images.mean()) for data in (first, second)]
    assert mean[0] != mean[1]
    seen = torch.cat([batch.images for batch in first.validation_batches()])
    held_out = torch.cat([batch.images for batch in second.train_batches(0)])
    assert {image.numpy().tobytes() for image in held_out} <= {image.numpy().tobytes() for image in seen}
    assert first.train_images == second.train_images == 128


def test_alpha_waits_for_the_warm_up_and_the_distribution_becomes_joint_at_theta() -> None:
    found = search()
    uniform = found.distribution.entropy()
    data = halves()
    epochs, factors = [], []
    for _ in range(4):
        epochs.append(found.run_epoch(*data))
        factors.append(len(found.distribution.factors))
    assert epochs[0].entropy == uniform == pytest.approx(math.log(96))
    assert epochs[1].entropy < uniform
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[0].samples == 4 * math.floor(uniform)
    assert factors == [6, 6, 2, 2]
    assert epochs[2].entropy != pytest.approx(epochs[3].entropy, rel=1e-6)  # learned from the joint one too
    assert all(epoch.dropped == 0 and math.isfinite(epoch.loss) and 0 <= epoch.accuracy <= 1 for epoch in epochs)
    assert epochs[-1].loss < epochs[0].loss
    assert set(epochs[0].costs) == {"flops", "macs", "params", "parameters"}
    assert epochs[-1].accuracy == found.accuracy(found.distribution.mode(), data[0].validation_batches())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_search_that_was_cut_goes_on_bit_for_bit(cut: int) -> None:
    data = halves()
    whole = search()
    epochs = [whole.run_epoch(*data) for _ in range(4)]
    begun = search()
    for _ in range(cut):
        begun.run_epoch(*data)
    state = copy.deepcopy(begun.state_dict())
    again = search(seed=0)
    again.load_state_dict(state)
    rest = [again.run_epoch(*halves()) for _ in range(4 - cut)]
    assert rest == epochs[cut:]
    assert torch.equal(again.distribution.alpha, whole.distribution.alpha)
    for name, weight in whole.supernet.state_dict().items():
        assert torch.equal(weight, again.supernet.state_dict()[name]), name
    other = search(seed=1)
    assert other.run_epoch(*data) != epochs[0]


def images(seed: int, size: int = 20) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(16, 1, size, size, generator=random), torch.randint(10, (16,), generator=random))


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (2, {}),  # of the warm-up
        (9, {"temperature": 0.015, "gradient_clip": 0.05, "label_smoothing": 0.2, "beta": 0.7}),
        (5, {"likelihood": "sum", "temperature": 0.3, "baseline": False}),
    ],
)
def test_a_step_is_the_one_written_down(step: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha's gradient (equation 7), and SGD's step by the sum of the losses times the importance weights."""
    space = Space(parse_table(SMALL, "small.yaml"))  # of two resolutions
    targets = {"flops": float(np.median(space.costs(space.sample(99, seed=0))["flops"]))}
    found = search(space=space, targets=targets, weight_decay=0.1, **changes)
    config, net = found.config, found.supernet
    genomes = np.concatenate([space.sample(7, seed=1), space.sample(1, seed=1)])
    monkeypatch.setattr(found.distribution, "sample", lambda *_: genomes)
    monkeypatch.setattr("pynas.fpnas.search.sample_count", lambda *_: len(genomes))
    found.step = step
    with torch.no_grad():
        for weight in (*net.parameters(), found.distribution.alpha):
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    before = {name: weight.detach().clone() for name, weight in net.weights.items()}
    distribution = Distribution(space, found.distribution.factors, found.distribution.alpha)
    paths = [space.decode(genome)[0] for genome in genomes]
    batch, held_out = images(0), images(1)

    importance = torch.full((8,), 1 / 8, dtype=torch.float64)
    if step >= 4:
        with torch.no_grad():
            logits = [net(held_out.images, path).double() for path in paths]
            losses = [functional.cross_entropy(one, held_out.labels) for one in logits]
        scale = 16 if config.likelihood == "sum" else 1
        importance = torch.softmax(-torch.stack(losses) * scale / config.temperature, 0)
        assert 1e-4 < importance.min() < 0.01
        over = np.maximum(space.costs(genomes)["flops"] / targets["flops"] - 1, 0)
        mean = 1 / 8 if config.baseline else 0.0
        weights = (importance - mean) - config.beta * (torch.from_numpy(over / over.sum()) - mean)
        (-weights * distribution.log_probability(genomes)).sum().backward()
    losses = [
        functional.cross_entropy(net(batch.images, path), batch.labels, label_smoothing=config.label_smoothing)
        for path in paths
    ]
    total = sum(float(weight) * loss for weight, loss in zip(importance, losses, strict=True))
    gradients = torch.autograd.grad(total, list(net.weights.values()), allow_unused=True)
    norm = float(torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm())
    clip = min(1.0, (config.gradient_clip or math.inf) / norm)
    assert (clip < 1) == ("gradient_clip" in changes)
    rate = config.lr * 0.5 * (1 + math.cos(math.pi * step / 16))  # of 4 epochs of 4 steps

    drawn = found.update(batch, held_out)
    assert drawn.losses == pytest.approx([float(loss.detach()) for loss in losses], rel=1e-4)
    grad = found.distribution.alpha.grad
    assert (grad is None) == (step < 4)
    if grad is not None:
        torch.testing.assert_close(grad, distribution.alpha.grad, rtol=1e-4, atol=1e-6)
    for (name, weight), gradient in zip(before.items(), gradients, strict=True):
        change = torch.zeros_like(weight)
        if gradient is not None:
            change = -rate * (clip * gradient + (0.1 if weight.dim() > 1 else 0.0) * weight)
        torch.testing.assert_close(net.weights[name].detach() - weight, change, rtol=1e-3, atol=1e-6)


class Asked:
    """Batches that are told from each other, and which epochs were asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epochs: list[int] = []

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        self.epochs.append(epoch)
        for _ in range(self.count):
            yield images(epoch % 1000, size=8)

    def validation_batches(self) -> Iterator[Batch]:
        yield images(0, size=8)


def test_an_epoch_s_batches_are_its_own_also_where_the_second_half_has_fewer() -> None:
    found = search(sampling="fixed", samples=1)
    first, second = Asked(4), Asked(3)
    for _ in range(2):
        found.run_epoch(first, second)  # type: ignore[arg-type]
    assert first.epochs == [0, 1]
    assert len(second.epochs) == len({*second.epochs}) == 4  # once more in each epoch, in another order
    assert second.epochs[0] == 0
    assert second.epochs[2] == 1


def test_a_cheap_target_makes_the_mode_cheap() -> None:
    """With likelihoods that count for nothing only the cost is left to be learned from."""
    cheap = float(np.quantile(SPACE.costs(SPACE.sample(200, seed=0))["flops"], 0.2))
    found = search(targets={"flops": cheap}, temperature=1e9, alpha_lr=0.3, epochs=12, theta=6, beta=1.0)
    data = halves(images=64)
    first = found.run_epoch(*data)
    for _ in range(11):
        last = found.run_epoch(*data)
    assert last.costs["flops"] < first.costs["flops"]
    assert SPACE.costs(found.distribution.mode()[None])["flops"][0] <= cheap


def test_a_latency_target_makes_the_mode_fast() -> None:
    model = planted_latency(1e-6)
    fast = float(np.quantile(model.predict(SPACE.sample(200, seed=0)), 0.2))
    found = search(
        targets={"latency": fast}, latency=model, temperature=1e9, alpha_lr=0.3, epochs=12, theta=6, beta=1.0
    )
    data = halves(images=64)
    first = found.run_epoch(*data)
    for _ in range(11):
        last = found.run_epoch(*data)
    assert last.costs["latency"] < first.costs["latency"]
    assert model.predict(found.distribution.mode()[None])[0] <= fast


def test_a_latency_below_its_target_counts_for_nothing() -> None:
    model = planted_latency(1e-6)
    data = halves(images=64)
    free, bound = search(latency=model), search(latency=model, targets={"latency": 1e3})
    for found in (free, bound):
        found.run_epoch(*data)
        found.run_epoch(*data)
    assert torch.equal(free.distribution.alpha, bound.distribution.alpha)


@pytest.mark.parametrize("distribution", ["mixed", "joint", "factorised"])
def test_the_mode_becomes_the_likeliest_architecture(distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihoods are planted: each choice that differs from the answer's costs a nat, and two together two more."""
    answer = np.array([2, 1, 0, 1, 1, 1], np.uint8)

    def planted(genomes: np.ndarray, batch: Batch) -> torch.Tensor:
        wrong = genomes != answer
        return torch.from_numpy(-wrong.sum(1) - 2.0 * (wrong[:, 0] & wrong[:, 2])).double()

    found = search(epochs=60, warmup_epochs=0, theta=20, distribution=distribution, alpha_lr=0.05, temperature=1.0)
    monkeypatch.setattr(found, "log_likelihoods", planted)
    monkeypatch.setattr(found, "_update_weights", lambda *_: [0.0])
    monkeypatch.setattr(found, "accuracy", lambda *_: 0.0)
    data = halves()
    drawn = [found.run_epoch(*data).samples for _ in range(60)]
    assert found.distribution.mode().tolist() == answer.tolist()
    assert found.distribution.entropy() < 2.5  # of 4.6 in the beginning
    assert drawn[-1] <= drawn[0] / 2  # adaptive


class Poisoned:
    """Batches of which one has an image that is not a number."""

    def __init__(self, data: MemoryData, step: int, value: float = math.nan) -> None:
        self.data, self.step, self.value = data, step, value

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self.data.train_batches(epoch, start)):
            if step == self.step:
                batch = Batch(batch.images * self.value, batch.labels)
            yield batch

    def validation_batches(self) -> Iterator[Batch]:
        return self.data.validation_batches()


@pytest.mark.parametrize("half", [0, 1])
def test_a_bad_batch_changes_neither_alpha_nor_weights(half: int, caplog: pytest.LogCaptureFixture) -> None:
    found = search(warmup_epochs=0, theta=0)
    data: list[Any] = [*halves()]
    data[half] = Poisoned(data[half], step=2)
    with caplog.at_level(logging.WARNING):
        epoch = found.run_epoch(data[0], data[1])
    assert epoch.dropped > 0
    assert "dropped: their" in caplog.text
    assert found.distribution.alpha.detach().nan_to_num(0, 0, 0).isfinite().all()
    assert math.isfinite(found.distribution.entropy())
    assert all(weight.isfinite().all() for weight in found.supernet.parameters())
    assert math.isfinite(epoch.loss)


def test_one_bad_path_is_dropped_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """Weights that only paths with kernel 5 have are poisoned: no other weight may be, nor alpha."""
    found = search(warmup_epochs=0, theta=0, **{"lambda": 3.0})
    bad = [name for name in found.supernet.weights if "depthwise5" in name]
    assert bad
    with torch.no_grad():
        for name in bad:
            found.supernet.weights[name].fill_(math.nan)
    with caplog.at_level(logging.WARNING):
        epoch = found.run_epoch(*halves())
    assert 0 < epoch.dropped < epoch.samples
    assert "their likelihood is not finite" in caplog.text
    assert all(weight.isfinite().all() for name, weight in found.supernet.weights.items() if name not in bad)
    assert math.isfinite(epoch.entropy)


def test_a_gradient_that_is_not_finite_is_dropped_where_the_loss_is_finite(caplog: pytest.LogCaptureFixture) -> None:
    found = search()
    for name, weight in found.supernet.weights.items():
        if "depthwise5" in name:
            weight.register_hook(lambda gradient: gradient * math.inf)
    batch = next(halves()[0].train_batches(0))
    with caplog.at_level(logging.WARNING):
        drawn = found.update(batch, batch)
    assert 0 < drawn.dropped < drawn.count
    assert len(drawn.losses) == drawn.count - drawn.dropped
    assert f"{drawn.dropped} of {drawn.count} architectures dropped: their gradient" in caplog.text
    assert all(weight.isfinite().all() for weight in found.supernet.parameters())


@pytest.mark.parametrize("baseline", [False, True])
def test_alpha_learns_as_if_a_bad_sample_had_not_been_drawn(baseline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [search(warmup_epochs=0, theta=0, baseline=baseline, targets={"flops": 40_000}) for _ in range(2)]
    likelihood = torch.tensor([0.1, math.nan, -0.2, math.inf, 0.0], dtype=torch.float64)
    genomes = found[0].distribution.sample(5, np.random.default_rng(0))
    batch = next(halves()[0].train_batches(0))
    for one, kept in zip(found, ([0, 1, 2, 3, 4], [0, 2, 4]), strict=True):
        monkeypatch.setattr(one.distribution, "sample", lambda *_, kept=kept: genomes[kept])
        monkeypatch.setattr(one, "log_likelihoods", lambda *_, kept=kept: likelihood[kept])
        one.update(batch, batch)
    assert torch.equal(found[0].distribution.alpha, found[1].distribution.alpha)
    assert found[0].distribution.alpha.detach().nan_to_num(0, 0, 0).abs().max() > 0


def test_only_what_was_drawn_moves() -> None:
    found = search(warmup_epochs=0, theta=0, sampling="fixed", samples=1, momentum=0.0)
    before = {name: weight.detach().clone() for name, weight in found.supernet.weights.items()}
    batch = next(halves()[0].train_batches(0))
    genome = found.distribution.sample(1, np.random.default_rng(0))
    found._update_weights(genome, torch.ones(1, dtype=torch.float64), batch)
    _, names = found.supernet.path(SPACE.decode(genome[0])[0])
    moved = {name for name, weight in found.supernet.weights.items() if not torch.equal(weight, before[name])}
    assert moved
    assert moved <= set(names)


def test_shipped_small_space_runs() -> None:
    space = pynas.load_space("fbnetv2_fpp_28")
    config = SupernetConfig(epochs=2, warmup_epochs=1, batch_size=8, theta=1, augment="none")
    found = Search(space, config, {"flops": 1e6}, steps_per_epoch=1, seed=0, device=CPU)
    images = torch.randn(8, 1, 28, 28)
    drawn = found.update(Batch(images, torch.arange(8)), Batch(images, torch.arange(8)))
    assert drawn.count == math.floor(math.log(space.size["architectures"]) / 4) == 7


def outcome(world: World, sampling: str) -> tuple[list[dict[str, Any]], torch.Tensor, dict[str, torch.Tensor]]:
    config = SupernetConfig(**{**CONFIG, "theta": 1, "sampling": sampling, "samples": 3, "temperature": 0.1})
    found = Search(SPACE, config, {"flops": 50_000}, steps_per_epoch=4, seed=0, device=CPU, world=world)
    data = halves()
    epochs = [asdict(found.run_epoch(*data)) for _ in range(3)]
    return epochs, found.distribution.alpha.detach(), found.supernet.state_dict()


@pytest.mark.parametrize("sampling", ["adaptive", "fixed"])
def test_ranks_that_share_the_architectures_find_what_one_finds(tmp_path: Path, sampling: str) -> None:
    epochs, alpha, weights = outcome(World(), sampling)
    ranks = together(tmp_path / "ranks", 2, partial(outcome, sampling=sampling))
    for its_epochs, its_alpha, its_weights in ranks:
        assert torch.equal(its_alpha, ranks[0][1])
        assert all(torch.equal(its_weights[name], ranks[0][2][name]) for name in weights)
        torch.testing.assert_close(its_alpha, alpha, atol=1e-4, rtol=0)
        for mine, one in zip(its_epochs, epochs, strict=True):
            assert mine["samples"] == one["samples"]
            assert mine["costs"] == one["costs"]  # the same architectures were drawn
            assert mine["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert mine["entropy"] == pytest.approx(one["entropy"], rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(its_weights[name], weight, atol=1e-4, rtol=1e-3)


def with_dropped(world: World, bad: str) -> dict[str, torch.Tensor]:
    """The weights after a step in which the gradients of weights that have `bad` in their name are not finite."""
    config = SupernetConfig(**{**CONFIG, "weight_decay": 0.5})
    found = Search(SPACE, config, {}, steps_per_epoch=4, seed=0, device=CPU, world=world)
    for name, weight in found.supernet.weights.items():
        if bad in name:
            weight.register_hook(lambda gradient: gradient * math.inf)
    batch = next(halves()[0].train_batches(0))
    drawn = found.update(batch, batch)
    assert 0 < drawn.dropped <= drawn.count
    return found.supernet.state_dict()


@pytest.mark.parametrize("bad", ["depthwise5", "linear"])
def test_ranks_do_not_move_what_only_dropped_architectures_have(tmp_path: Path, bad: str) -> None:
    weights = with_dropped(World(), bad)
    if bad == "linear":  # all are dropped
        assert all(torch.equal(weight, search().supernet.state_dict()[name]) for name, weight in weights.items())
    for its_weights in together(tmp_path / "ranks", 2, partial(with_dropped, bad=bad)):
        for name, weight in weights.items():
            torch.testing.assert_close(its_weights[name], weight, atol=1e-6, rtol=1e-4)


def test_a_last_batch_of_one_image_is_evaluated_with_the_one_before() -> None:
    """Batch-norm has no statistics of one image of one pixel; the others' should not be its alone either."""
    found = search()
    batch = next(iter(halves()[0].validation_batches()))
    parts = [Batch(batch.images[a:b], batch.labels[a:b]) for a, b in ((0, 60), (60, 120), (120, 121))]
    whole = [Batch(batch.images[a:b], batch.labels[a:b]) for a, b in ((0, 60), (60, 121))]
    mode = found.distribution.mode()
    assert found.accuracy(mode, parts) == found.accuracy(mode, whole)
    assert found.accuracy(mode, parts) * 121 == pytest.approx(round(found.accuracy(mode, parts) * 121))
