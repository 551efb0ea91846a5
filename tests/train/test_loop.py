"""The step: every setting of a recipe has an effect, gradients are the batch's however it is cut, state continues."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from train_examples import small

from pynas.data.batches import Batch
from pynas.data.config import DataConfig
from pynas.data.open import open_data
from pynas.nets.build import build
from pynas.train.config import EXECUTION, TrainingRecipe
from pynas.train.distill import Teacher
from pynas.train.loop import Trainer, evaluate, preserved_random_state

CPU = torch.device("cpu")
PLAIN = TrainingRecipe(
    epochs=2,
    batch_size=16,
    augment="none",
    lr=0.05,
    optimizer="SGD",
    ema=False,
    dropout=0,
    stochastic_depth=0,
    mixup=0,
    weight_decay=0,
)
CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 9},  # of the schedule
    "batch_size": {"batch_size": 8},
    "momentum": {"momentum": 0.5},
    "schedule": {"schedule": "cosine"},
    "lr_decay": {"lr_decay": 0.5},
    "warmup_epochs": {"warmup_epochs": 1},
    "label_smoothing": {"label_smoothing": 0.3},
    "batch_norm_momentum": {"batch_norm_momentum": 0.5},
    "batch_norm_weight_decay": {"batch_norm_weight_decay": 0.1},
    "gradient_clip": {"gradient_clip": 0.1},
    "augment": {"augment": "basic"},
    "precision": {"precision": "bf16"},
    "micro_batch": {"micro_batch": 5},  # batch-norm sees fewer images at once
    "lr": {"lr": 0.1},
    "optimizer": {"optimizer": "RMSProp"},
    "ema": {"ema": True, "ema_decay": 0.9},  # by default a training this short averages nothing
    "dropout": {"dropout": 0.5},
    "stochastic_depth": {"stochastic_depth": 0.5},
    "mixup": {"mixup": 0.4},
    "weight_decay": {"weight_decay": 0.1},
}
"""A change of each setting by itself; the others need company and stand in tests of their own."""
ELSEWHERE = {"ema_decay", "scale_lr_by_nodes", "distillation", "temperature", *EXECUTION}


def trained(recipe: TrainingRecipe, teacher: Teacher | None = None, nodes: int = 1) -> dict[str, torch.Tensor]:
    """The evaluated network's state after an epoch of 64 digits."""
    data = open_data(
        DataConfig(name="digits", train=64),
        resolution=8,
        device=CPU,
        batch_size=recipe.batch_size,
        seed=1,
        augment=recipe.augment,
    )
    network = build(small().blocks(), dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=2)
    steps = 64 // recipe.batch_size
    trainer = Trainer(
        network, recipe, classes=10, steps_per_epoch=steps, seed=3, device=CPU, teacher=teacher, nodes=nodes
    )
    trainer.epoch(data)
    return {name: value.clone() for name, value in trainer.evaluated.state_dict().items() if value.is_floating_point()}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, other[name]) for name, value in one.items())


def test_every_setting_is_tested() -> None:
    assert CHANGES.keys() | ELSEWHERE == TrainingRecipe.model_fields.keys()


@pytest.mark.parametrize("key", CHANGES)
def test_every_setting_changes_the_outcome(key: str) -> None:
    changed = PLAIN.model_copy(update=CHANGES[key])
    assert differ(trained(PLAIN), trained(changed))


def test_the_average_the_nodes_and_the_teacher_change_the_outcome() -> None:
    average = PLAIN.model_copy(update={"ema": True, "ema_decay": 0.5})
    assert differ(trained(average), trained(average.model_copy(update={"ema_decay": 0.9})))
    assert differ(trained(PLAIN, nodes=8), trained(PLAIN))
    assert not differ(trained(PLAIN.model_copy(update={"scale_lr_by_nodes": False}), nodes=8), trained(PLAIN))
    teacher = Teacher(build(small().blocks(), seed=9))
    taught = trained(PLAIN, teacher)
    assert differ(taught, trained(PLAIN))
    assert differ(taught, trained(PLAIN.model_copy(update={"distillation": 0.5}), teacher))
    assert differ(taught, trained(PLAIN.model_copy(update={"temperature": 3.0}), teacher))
    assert not differ(trained(PLAIN.model_copy(update={"distillation": 0.0}), teacher), trained(PLAIN))


def test_the_loss_is_0_8_distillation_and_0_2_cross_entropy_of_the_images_both_see() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    network, taught = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    recipe = PLAIN.model_copy(update={"label_smoothing": 0.0, "temperature": 2.0})
    log_q, log_p = (net(batch.images).div(2.0).log_softmax(1).detach() for net in (network, taught))
    divergence = 4.0 * (log_p.exp() * (log_p - log_q)).sum(1).mean().item()
    entropy = nn.functional.cross_entropy(network(batch.images), batch.labels).item()
    trainer = Trainer(network, recipe, classes=10, steps_per_epoch=1, seed=3, device=CPU, teacher=Teacher(taught))
    with preserved_random_state(CPU):
        trainer.update(batch)
    assert trainer.mean_loss() == pytest.approx(0.8 * divergence + 0.2 * entropy, rel=1e-5)


def test_the_learning_rate_is_scaled_by_the_nodes_linearly() -> None:
    trainers = [
        Trainer(nn.Linear(1, 1), PLAIN, classes=1, steps_per_epoch=1, seed=0, device=CPU, nodes=n) for n in (1, 8)
    ]
    assert trainers[1].lr == pytest.approx(8 * trainers[0].lr)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Without batch-norm a batch cut into unequal parts gives the same step, to rounding."""
    torch.manual_seed(0)
    batch = Batch(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    after = []
    for micro_batch in (None, 5):
        generator = torch.Generator().manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        for parameter in network.parameters():
            nn.init.normal_(parameter, generator=generator)
        recipe = PLAIN.model_copy(update={"micro_batch": micro_batch, "mixup": 0.4, "gradient_clip": 0.5})
        trainer = Trainer(network, recipe, classes=10, steps_per_epoch=1, seed=3, device=CPU)
        with preserved_random_state(CPU):
            trainer.update(batch)
        after.append((network[1].weight.detach().clone(), trainer.mean_loss()))
    torch.testing.assert_close(after[0][0], after[1][0], rtol=1e-5, atol=1e-6)
    assert after[0][1] == pytest.approx(after[1][1], rel=1e-5)


def test_clipping_bounds_the_step() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    recipe = PLAIN.model_copy(update={"gradient_clip": 1e-3, "lr": 1.0, "momentum": 0.0, "lr_decay": 1.0})
    trainer = Trainer(network, recipe, classes=10, steps_per_epoch=1, seed=3, device=CPU)
    with preserved_random_state(CPU):
        trainer.update(batch)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, network.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_state_continues_bit_for_bit_in_the_middle_of_an_epoch() -> None:
    recipe = PLAIN.model_copy(
        update={"ema": True, "dropout": 0.3, "stochastic_depth": 0.3, "mixup": 0.3, "optimizer": "RMSProp", "lr": 0.01}
    )

    def fresh(seed: int) -> Trainer:
        network = build(small().blocks(), dropout=0.3, stochastic_depth=0.3, seed=seed)
        return Trainer(network, recipe, classes=10, steps_per_epoch=4, seed=3, device=CPU)

    torch.manual_seed(0)
    batches = [Batch(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(4)]
    with preserved_random_state(CPU):
        whole, first, second = fresh(1), fresh(1), fresh(2)
        for batch in batches:
            whole.update(batch)
        for batch in batches[:2]:
            first.update(batch)
        second.load_state_dict(first.state_dict())
        torch.manual_seed(99)
        for batch in batches[2:]:
            second.update(batch)
    assert not differ(whole.network.state_dict(), second.network.state_dict())
    assert not differ(whole.evaluated.state_dict(), second.evaluated.state_dict())
    assert whole.mean_loss() == second.mean_loss()


def test_every_step_draws_its_own_random_numbers_and_the_same_ones_again() -> None:
    class Drawing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            drawn.append(torch.rand(()).item())
            return super().forward(x.flatten(1))

    draws = []
    for _ in range(2):
        drawn: list[float] = []
        trainer = Trainer(Drawing(4, 10), PLAIN, classes=10, steps_per_epoch=3, seed=3, device=CPU)
        for _ in range(3):
            trainer.update(Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)))
        draws.append(drawn)
    assert len(set(draws[0])) == 3
    assert draws[0] == draws[1]


def test_a_batch_that_lost_its_images_is_a_step_without_an_update() -> None:
    network = build(small().blocks(), seed=1)
    trainer = Trainer(network, PLAIN, classes=10, steps_per_epoch=4, seed=3, device=CPU)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for size in (0, 1):
        trainer.update(Batch(torch.zeros(size, 1, 8, 8), torch.zeros(size, dtype=torch.int64)))
    assert trainer.step == 2
    assert not differ(before, network.state_dict())


def test_evaluation_counts_every_image_once_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(size=(50, 4))), torch.from_numpy(rng.integers(4, size=50))

    class Given(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return logits[x[:, 0, 0, 0].long()]

    def batches(size: int) -> Iterator[Batch]:
        index = torch.arange(50, dtype=torch.float32).view(-1, 1, 1, 1)
        return map(Batch, index.split(size), labels.split(size))

    expected = (logits.argmax(1) == labels).double().mean().item()
    for size in (7, 50):
        found = evaluate(Given(), batches(size))
        assert (found.accuracy, found.images) == (expected, 50)
        assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
