"""Several ranks are one process with the whole batch: steps, evaluation, checkpoints, stops and failures alike."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import finish, join, start, together
from test_run import assert_same_bits, losses, states
from torch import Tensor, nn
from train_examples import small

from pynas.data.batches import Batch, Share
from pynas.data.config import DataConfig
from pynas.data.open import open_data
from pynas.errors import PynasError
from pynas.nets.build import build
from pynas.nets.load import ModelSpec
from pynas.train.config import TrainingRecipe
from pynas.train.directory import RunDirectory
from pynas.train.distill import Teacher
from pynas.train.log import read_log
from pynas.train.loop import Trainer, preserved_random_state
from pynas.train.run import train_model
from pynas.train.world import World

CPU = torch.device("cpu")
SPEC = ModelSpec.of(small(), name="net")
DATA = DataConfig(name="digits", train=256)
SMOOTH = TrainingRecipe(
    epochs=2, batch_size=16, augment="none", lr=0.02, optimizer="SGD", ema=False, dropout=0, stochastic_depth=0,
    mixup=0, weight_decay=1e-4,
)  # fmt: skip
"""Nothing in it is drawn at random, so ranks that share a batch compute what one process does."""

NOISY = SMOOTH.model_copy(
    update={"augment": "basic", "ema": True, "dropout": 0.2, "stochastic_depth": 0.2, "mixup": 0.2}
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"ema": True, "ema_decay": 0.9},
    "clipped": {"gradient_clip": 0.5},
    "RMSProp": {"optimizer": "RMSProp", "lr": 0.002},
    "parts": {},  # two of each rank's images
    "distilled": {"distillation": 0.5},
}


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(3)
    ]


def trainer_of(recipe: TrainingRecipe, world: World) -> Trainer:
    teacher = Teacher(build(small().blocks(), seed=9)) if recipe.distillation == 0.5 else None
    network = build(small().blocks(), seed=1)
    return Trainer(network, recipe, classes=10, steps_per_epoch=3, seed=3, device=CPU, teacher=teacher, world=world)


def steps(recipe: TrainingRecipe, world: World, order: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Three steps on this rank's part of batches in an order; weights, averages, and mean loss, accuracy and loss."""
    trainer = trainer_of(recipe, world)
    share = Share(world.rank, world.size)
    mine = order[share.of_step(0, 16 // world.size)]
    with preserved_random_state(CPU):
        for batch in batches():
            trainer.update(Batch(batch.images[mine], batch.labels[mine]))
    loss = trainer.mean_loss()
    held = share.of_all(45)
    every = [Batch(b.images[i : i + 15], b.labels[i : i + 15]) for b in batches()[:3] for i in (0,)]
    images, labels = torch.cat([b.images for b in every])[held], torch.cat([b.labels for b in every])[held]
    found = trainer.evaluate(trainer.evaluated, map(Batch, images.split(7), labels.split(7)))
    return (
        trainer.network.state_dict(),
        trainer.evaluated.state_dict(),
        (loss, found.accuracy, found.loss, found.images),
    )


@pytest.mark.parametrize(("size", "names"), [(2, list(VARIANTS)), (4, ["plain", "parts"])])
def test_ranks_step_as_one_process_does(size: int, names: list[str], tmp_path: Path) -> None:
    recipes = {name: SMOOTH.model_copy(update=VARIANTS[name]) for name in names}
    if "parts" in names:
        recipes["parts"] = SMOOTH.model_copy(update={"micro_batch": 8 // size})
    order = torch.arange(16)

    def work(world: World) -> Any:
        return {name: steps(recipe, world, order) for name, recipe in recipes.items()}

    of_ranks = together(tmp_path / "ranks", size, work)
    for name, recipe in recipes.items():
        alone, whole = recipe, order
        if recipe.micro_batch:  # one process normalises together what is together on the ranks: the first of each
            alone = recipe.model_copy(update={"micro_batch": recipe.micro_batch * size})
            whole = order.view(size, -1, recipe.micro_batch).transpose(0, 1).flatten()
        network, average, numbers = steps(alone, World(), whole)
        first = of_ranks[0][name]
        for found, expected in ((first[0], network), (first[1], average)):
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=2e-4, atol=2e-5)
        assert first[2] == pytest.approx(numbers, rel=1e-4)
        for other in of_ranks[1:]:
            assert other[name][2] == first[2]
            for found, expected in zip(other[name][:2], first[:2], strict=True):
                assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_images_that_a_rank_lost_leave_the_others_their_weight(tmp_path: Path) -> None:
    """Ranks with 5, 0, 1 and 3 images of 4 each: the step of one process with the nine that are left."""
    kept = [[0, 1, 2, 3], [], [8], [12, 13, 14]]

    def step(world: World, chosen: list[int]) -> dict[str, Tensor]:
        trainer = trainer_of(SMOOTH, world)
        with preserved_random_state(CPU):
            for batch in batches()[:3]:
                trainer.update(Batch(batch.images[chosen], batch.labels[chosen]))
            trainer.update(Batch(batch.images[:0], batch.labels[:0]))  # nobody has any: a step without an update
        assert trainer.step == 4
        return trainer.network.state_dict()

    of_ranks = together(tmp_path / "ranks", 4, lambda world: step(world, kept[world.rank]))
    alone = step(World(), [i for chosen in kept for i in chosen])
    for key, value in alone.items():
        torch.testing.assert_close(of_ranks[0][key], value, rtol=2e-4, atol=2e-5)


def test_a_rank_may_lose_all_images_of_a_step_in_parts(tmp_path: Path) -> None:
    def work(world: World) -> float:
        trainer = trainer_of(SMOOTH.model_copy(update={"micro_batch": 3}), world)
        kept = slice(0, 8 if world.first else 0)
        with preserved_random_state(CPU):
            trainer.update(Batch(batches()[0].images[kept], batches()[0].labels[kept]))
        return trainer.mean_loss()

    first, second = together(tmp_path / "ranks", 2, work)
    assert first == second
    assert first > 0


def test_the_learning_rate_goes_by_nodes_and_random_draws_by_ranks(tmp_path: Path) -> None:
    class Drawing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            drawn.append(torch.rand(()).item())
            return super().forward(x.flatten(1))

    drawn: list[float] = []

    def work(world: World) -> tuple[float, list[float]]:
        trainer = Trainer(Drawing(4, 10), SMOOTH, classes=10, steps_per_epoch=3, seed=3, device=CPU, world=world)
        trainer.update(Batch(torch.zeros(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)))
        return trainer.lr_of(0), drawn

    found = together(tmp_path / "ranks", 4, work, nodes=2)
    assert {lr for lr, _ in found} == {2 * SMOOTH.lr}
    assert len({draws[0] for _, draws in found}) == 4


def test_each_rank_has_its_own_images_of_the_one_order() -> None:
    def data(rank: int, ranks: int, batch_size: int) -> Any:
        share = Share(rank, ranks)
        return open_data(DATA, resolution=8, device=CPU, batch_size=batch_size, seed=0, augment="none", share=share)

    whole, parts = data(0, 1, 12), [data(rank, 3, 4) for rank in range(3)]
    together_ = zip(*(part.train_batches(1, 2) for part in parts), strict=True)
    for batch, shares in zip(whole.train_batches(1, 2), together_, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    for of_all, of_ranks in (
        (whole.validation_batches(), [part.validation_batches() for part in parts]),
        (whole.test_batches(), [part.test_batches() for part in parts]),
    ):
        labels = torch.cat([batch.labels for batches in of_ranks for batch in batches])
        assert torch.equal(torch.cat([batch.labels for batch in of_all]), labels)
    with pytest.raises(PynasError, match="got 100 on each of 3 ranks, allowed are at most the 256 training images"):
        data(0, 3, 100)


# Trainings in a directory


def trained(path: Path, recipe: TrainingRecipe, world: World | None = None, data: DataConfig = DATA) -> dict[str, Any]:
    return train_model(SPEC, recipe, data, path, world=world)


LEARNING = SMOOTH.model_copy(update={"lr": 0.1, "lr_decay": 0.5})


def test_a_training_on_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", LEARNING)
    results = together(tmp_path / "ranks", 2, lambda world: trained(tmp_path / "run", LEARNING, world))
    assert max(alone["curve"]) > 0.2
    assert results[0] == results[1]
    assert results[0] == RunDirectory(tmp_path / "run").read_result()
    assert results[0]["curve"] == pytest.approx(alone["curve"], abs=0.012)  # two of 180 images
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    found, expected = states(tmp_path / "run"), states(tmp_path / "alone")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=5e-3, atol=5e-4)
    again = together(tmp_path / "again", 2, lambda world: trained(tmp_path / "run", LEARNING, world))
    assert again == results  # finished: nothing is trained again


LONG = NOISY.model_copy(update={"epochs": 3, "batch_size": 32})
MORE = DATA.model_copy(update={"train": 640})
"""A training of a few seconds, to be disturbed."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    together(folder / "ranks", 2, lambda world: trained(folder / "run", LONG, world, MORE))
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_they_go_on_in_the_same_bits(
    number: int, whole: Path, tmp_path: Path
) -> None:
    def work(world: World) -> Any:
        return train_model(SPEC, LONG, MORE, tmp_path / "run", world=world, stop_on_usr=True)

    directory = RunDirectory(tmp_path / "run")
    processes = start(tmp_path / "first", 2, work)
    wait_for_checkpoint(directory)
    time.sleep(0.05)
    assert processes[1].pid
    os.kill(processes[1].pid, number)
    for kind, (name, text, _) in finish(tmp_path / "first", processes):
        assert (kind, name) == ("error", "Stopped")
        assert signal.Signals(number).name in text
    stopped = next(row for row in read_log(directory.log) if row["event"] == "stopped")
    assert stopped["checkpoint"] == f"step_{stopped['step']:09}.pt"
    together(tmp_path / "second", 2, work)
    assert_same_bits(tmp_path / "run", whole)


def test_a_signal_to_save_lets_all_go_on(whole: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    processes = start(tmp_path / "ranks", 2, lambda world: trained(directory.path, LONG, world, MORE))
    wait_for_checkpoint(directory)
    assert processes[1].pid
    os.kill(processes[1].pid, signal.SIGUSR1)
    outcomes = finish(tmp_path / "ranks", processes)
    assert [kind for kind, _ in outcomes] == ["value", "value"]
    assert [row for row in read_log(directory.log) if row["event"] == "saved"]
    assert_same_bits(directory.path, whole)


def wait_for_checkpoint(directory: RunDirectory) -> None:
    deadline = time.monotonic() + 240
    while not any(directory.checkpoints.glob("step_*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_nodes_are_part_of_a_training_and_ranks_are_not(tmp_path: Path) -> None:
    together(tmp_path / "one", 2, lambda world: trained(tmp_path / "run", SMOOTH, world), nodes=1)
    processes = start(tmp_path / "two", 2, lambda world: trained(tmp_path / "run", SMOOTH, world), nodes=2)
    for kind, (name, text, _) in finish(tmp_path / "two", processes):
        assert (kind, name) == ("error", "PynasError")
        assert "began with other settings: nodes (1 -> 2)" in text
    assert trained(tmp_path / "run", SMOOTH)["curve"]
    odd = SMOOTH.model_copy(update={"batch_size": 15})
    processes = start(tmp_path / "odd", 2, lambda world: trained(tmp_path / "other", odd, world))
    for kind, (name, text, _) in finish(tmp_path / "odd", processes):
        assert (kind, name) == ("error", "PynasError")
        assert "batch_size: got 15, allowed are multiples of the 2 ranks of a node" in text


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_the_same_error(tmp_path: Path) -> None:
    def work(world: World) -> None:
        trainer = trainer_of(SMOOTH, world)
        batch = batches()[0]
        images = batch.images[:8] * (float("nan") if world.rank == 1 else 1.0)
        with preserved_random_state(CPU):
            trainer.update(Batch(images, batch.labels[:8]))
        trainer.look()

    outcomes = finish(tmp_path / "ranks", start(tmp_path / "ranks", 2, work))
    assert {(kind, error[0]) for kind, error in outcomes} == {("error", "FloatingPointError")}
    assert outcomes[0][1][1] == outcomes[1][1][1]
    assert "loss is nan in epoch 1, step 1 of 3" in outcomes[0][1][1]


def test_what_one_rank_cannot_do_is_told_on_all(tmp_path: Path) -> None:
    def fail() -> None:
        raise PynasError("data.path: not on this node")

    def by_all(world: World) -> None:
        world.by_all(fail if world.rank == 1 else lambda: None)

    def by_first(world: World) -> None:
        world.by_first(fail)

    for name, work in (("all", by_all), ("first", by_first)):
        for kind, (kind_of_error, text, _) in finish(tmp_path / name, start(tmp_path / name, 2, work)):
            assert (kind, kind_of_error, text) == ("error", "PynasError", "data.path: not on this node")


def test_bad_images_of_any_rank_are_counted_and_the_rank_stays(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    import sys

    sys.path.append(str(Path(__file__).parent.parent / "data"))
    from trees import damage, tree

    root = tree(tmp_path / "tree", {"train": 12, "val": 3}, classes=3)
    for number in (1, 5):
        damage(root / f"train/class1/{number:03}.jpg", "garbage")
    data = DataConfig(name="folder", path=str(root), max_bad=0.5)
    spec = ModelSpec.of(small(classes=3, input_channels=3), name="net")
    recipe = NOISY.model_copy(update={"batch_size": 2, "workers": 0, "epochs": 1})  # one image a rank

    def work(world: World) -> Any:
        return train_model(spec, recipe, data, tmp_path / "run", world=world)

    results = together(tmp_path / "ranks", 2, work)
    assert results[0] == results[1]
    assert sorted(Path(name).name for name in results[0]["bad_images"]) == ["001.jpg", "005.jpg"]
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["bad_images"] == 2
    strict = data.model_copy(update={"max_bad": 0.03})
    processes = start(
        tmp_path / "strict", 2, lambda world: train_model(spec, recipe, strict, tmp_path / "s", world=world)
    )
    for kind, (name, text, _) in finish(tmp_path / "strict", processes):
        assert (kind, name) == ("error", "PynasError")
        assert "max_bad: 2 of the 36 train images are bad" in text


def test_a_rank_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []

    def work(folder: Path, rank: int) -> list[tuple[int, str]]:
        world = join(folder, rank, 1, advance=lambda position, what: told.append((position, what)))
        train_model(SPEC, SMOOTH.model_copy(update={"epochs": 1}), DATA, tmp_path / "run", world=world)
        return told

    positions, texts = zip(*work(tmp_path, 0), strict=True)
    assert list(positions) == sorted(set(positions))
    assert texts[:7] == (
        "looking into the directory",
        "opening the data and making the network",
        "looking for a checkpoint",
        "step 1 of epoch 1: waiting for data",
        "step 1 of epoch 1: forward and backward",
        "step 1 of epoch 1: update",
        "step 2 of epoch 1: waiting for data",
    )
    assert texts[-1].startswith("step 16 of epoch 1: evaluating, batch ")


def test_models_of_users_may_leave_parameters_unused(tmp_path: Path) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    def work(world: World) -> Tensor:
        torch.manual_seed(world.rank)  # rank 0's weights count
        trainer = Trainer(
            Idle(), SMOOTH, classes=10, steps_per_epoch=3, seed=3, device=CPU, world=world, may_leave_unused=True
        )
        for batch in batches()[:3]:
            trainer.update(Batch(batch.images[:8], batch.labels[:8]))
        return trainer.network.used.weight

    first, second = together(tmp_path / "ranks", 2, work)
    assert torch.equal(first, second)


def test_a_world_is_even() -> None:
    with pytest.raises(PynasError, match="rank 0 of 3 on 2 nodes: allowed: as many ranks on every node"):
        World(0, 3, 0, 2)
