"""One step of a training, and all the state it carries from step to step.

Shapes: B batch, C channels, H = W = resolution, K classes.

A step's random numbers are keyed by (seed, purpose, step): mixup draws from a generator of its own, and torch's global
generator, from which dropout and stochastic depth draw, is seeded anew for every step. So the random state of a
training is its seed and its step, and a training that is cut and resumed continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pynas.data.augment import mixup
from pynas.data.batches import MEMORY_FORMAT, Batch, Data, arranged
from pynas.errors import PynasError
from pynas.randomness import derive_seed, generator
from pynas.train.config import TrainingRecipe
from pynas.train.distill import Teacher, distillation_loss
from pynas.train.ema import WeightAverage, ema_decay
from pynas.train.optimizer import make_optimizer
from pynas.train.schedule import Schedule

LOOK_EVERY = 25
"""Steps between two looks at the losses: a look at every step would make a GPU wait for the CPU at every step."""


class Trainer:
    """A network with everything its training carries from step to step.

    `evaluated` is the network whose accuracy counts: the average of the weights where `recipe.ema`, else the network.
    `step` counts from 0 over the whole training. `nodes` is the number of batches of `recipe.batch_size` that a step
    sees in all, by which the learning rate is scaled.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: TrainingRecipe,
        *,
        classes: int,
        steps_per_epoch: int,
        seed: int,
        device: torch.device,
        teacher: Teacher | None = None,
        nodes: int = 1,
        memory_format: torch.memory_format = MEMORY_FORMAT,
    ) -> None:
        network.to(device)
        self.memory_format = memory_format
        self.network = network.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in torch's stub
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 1.0 - recipe.batch_norm_momentum
        self.recipe, self.device, self.steps_per_epoch = recipe, device, steps_per_epoch
        self.optimizer = make_optimizer(network, recipe)
        self.schedule = Schedule.of(recipe, steps_per_epoch)
        self.average = WeightAverage(network, ema_decay(recipe, steps_per_epoch)) if recipe.ema else None
        self.evaluated = network if self.average is None else self.average.network
        self.step = 0
        self._classes, self._seed, self._teacher = classes, seed, teacher
        self._scale = nodes if recipe.scale_lr_by_nodes else 1
        self._losses: list[Tensor] = []  # of the steps since the last look
        self._loss_sum, self._loss_count = 0.0, 0  # of the epoch's steps before

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.lr_of(self.step)

    def lr_of(self, step: int) -> float:
        return self.recipe.lr * self._scale * self.schedule.factor(step)

    def epoch(self, data: Data) -> float:
        """The steps of the present epoch that are left; returns the epoch's mean loss."""
        epoch, start = divmod(self.step, self.steps_per_epoch)
        with preserved_random_state(self.device):
            for batch in data.train_batches(epoch, start):
                self.update(batch)
        return self.mean_loss()

    def update(self, batch: Batch) -> None:
        """One step. Sets torch's global random state: call it within `preserved_random_state`.

        Raises FloatingPointError, some steps later, with epoch, step and lr where a loss was not finite.
        """
        self.network.train()
        torch.manual_seed(derive_seed(self._seed, "dropout", self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        if len(batch.labels) > 1:  # unreadable images make a batch smaller, and batch-norm needs two
            self.optimizer.zero_grad()
            self._losses.append(self._backward(batch))
            if self.recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip, foreach=True)
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
        self.step += 1
        if self.step % LOOK_EVERY == 0:
            self.look()

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch, micro-batch by micro-batch; returns the loss, float32 ()."""
        recipe = self.recipe
        targets = functional.one_hot(batch.labels, self._classes).to(torch.float32)
        images, targets = mixup(batch.images, targets, recipe.mixup, generator(self._seed, "mixup", self.step))
        images = arranged(images, self.memory_format)
        sizes = micro_batches(len(images), recipe.micro_batch)
        total = torch.zeros((), device=images.device)
        for part, target in zip(images.split(sizes), targets.split(sizes), strict=True):
            with autocast(self.device, recipe.precision):
                logits = self.network(part)
                taught = None if self._teacher is None else self._teacher.logits(part)
            loss = functional.cross_entropy(logits.float(), target, label_smoothing=recipe.label_smoothing)
            if taught is not None:
                distilled = distillation_loss(logits.float(), taught.float(), recipe.temperature)
                loss = recipe.distillation * distilled + (1.0 - recipe.distillation) * loss
            loss = loss * (len(part) / len(images))
            loss.backward()
            total += loss.detach()
        return total

    def look(self) -> None:
        """Add up the losses since the last look; FloatingPointError with epoch, step and lr where one is not finite."""
        if not self._losses:
            return
        losses = torch.stack(self._losses).tolist()
        first = self.step - len(losses)
        self._losses.clear()
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss is {loss} in {self.place(first + offset)}")
            self._loss_sum += loss  # one by one: the sum must not depend on where the looks were
            self._loss_count += 1

    def mean_loss(self) -> float:
        """The mean loss of the epoch's steps so far; begins anew."""
        self.look()
        mean = self._loss_sum / max(self._loss_count, 1)
        self._loss_sum, self._loss_count = 0.0, 0
        return mean

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """The evaluated network's accuracy; FloatingPointError with epoch, step and lr where it is not finite."""
        return self.evaluate(self.evaluated, batches).accuracy

    def evaluate(self, network: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        try:
            return evaluate(network, batches, self.recipe.precision, self.memory_format)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} after {self.place(self.step - 1)}") from None

    def place(self, step: int) -> str:
        epoch, within = divmod(step, self.steps_per_epoch)
        return f"epoch {epoch + 1}, step {within + 1} of {self.steps_per_epoch}, lr {self.lr_of(step):.6g}"

    def state_dict(self) -> dict[str, Any]:
        """Everything the next steps depend on besides recipe, seed and data; tensors are the trainer's own."""
        self.look()
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": (self._loss_sum, self._loss_count),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Raises RuntimeError, KeyError or ValueError for the state of something else."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._loss_sum, self._loss_count = state["loss"]
        self.step = state["step"]


def micro_batches(images: int, size: int | None) -> list[int]:
    """How many images are computed at once, one number after another; a single one left over goes with those before.

    Batch-norm over one value a channel is not defined.
    """
    size = min(size or images, images)
    whole, left = divmod(images, size)
    if left == 1 and size > 1:
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + ([left] if left else [])


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """torch's global random state is put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Evaluation:
    """Of a network on a part of the data: accuracy in [0, 1], mean cross-entropy in nats, how many images."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    precision: str = "fp32",
    memory_format: torch.memory_format = MEMORY_FORMAT,
) -> Evaluation:
    """How well `network`, in evaluation mode, does; FloatingPointError where a logit is not finite."""
    training = network.training
    network.eval()
    images = 0
    sums: Tensor | None = None  # correct, loss, logits that are not finite: one look at the end
    for batch in batches:
        with autocast(batch.images.device, precision):
            logits = network(arranged(batch.images, memory_format)).float()
        correct = (logits.argmax(1) == batch.labels).sum()
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
        row = torch.stack([correct.double(), loss.double(), (~torch.isfinite(logits)).sum().double()])
        sums = row if sums is None else sums + row
        images += len(batch.labels)
    network.train(training)
    if sums is None or images == 0:
        raise PynasError("data: there is no image to evaluate on")
    correct, loss, broken = sums.tolist()
    if broken:
        raise FloatingPointError("the network's outputs are not finite")
    return Evaluation(correct / images, loss / images, images)


def train(
    trainer: Trainer, data: Data, epochs: int, report: Callable[[int, float], None] = lambda epoch, accuracy: None
) -> list[float]:
    """The validation accuracy in [0, 1] after each of `epochs` epochs; `report(epoch, accuracy)` after each, from 1 on.

    The outcome is a function of the trainer and the arguments and, on a CPU, of torch's number of threads; on CUDA it
    may vary in the last bits.
    """
    curve: list[float] = []
    for epoch in range(1, epochs + 1):
        trainer.epoch(data)
        curve.append(trainer.accuracy(data.validation_batches()))
        report(epoch, curve[-1])
    return curve
