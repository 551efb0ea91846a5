"""One step of a training, and all the state it carries from step to step.

Shapes: B batch, C channels, H = W = resolution, K classes.

A step's random numbers are keyed by (seed, purpose, step), and by the rank where there are several: mixup draws from a
generator of its own, and torch's global generator, from which dropout and stochastic depth draw, is seeded anew for
every step. So the random state of a training is its seed and its step, and a training that is cut and resumed continues
bit for bit.

Ranks compute a step together, each on a batch of its own: all call `Trainer.update`, `look`, `evaluate` and what calls
them in the same order, even with a batch that lost all its images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pynas.data.augment import mixup
from pynas.data.batches import MEMORY_FORMAT, Batch, Data, arranged
from pynas.errors import PynasError
from pynas.randomness import derive_seed, generator
from pynas.train.config import TrainingRecipe
from pynas.train.distill import Teacher, distillation_loss
from pynas.train.ema import WeightAverage, ema_decay
from pynas.train.memory import keep_freed_memory
from pynas.train.optimizer import averages, make_optimizer
from pynas.train.schedule import Schedule
from pynas.train.world import World

LOOK_EVERY = 25
"""Steps between two looks at the losses: a look at every step would make a GPU wait for the CPU at every step."""

PLACES = 1 << 20
"""Positions that `World.advance` is told of a step and of the evaluation after it: more than either has places."""


class Trainer:
    """A network with everything its training carries from step to step.

    `evaluated` is the network whose accuracy counts: the average of the weights where `recipe.ema`, else the network.
    `step` counts from 0 over the whole training. `nodes`, by default the world's, is the number of batches of
    `recipe.batch_size` that a step sees in all, by which the learning rate is scaled. `network` stays the module that
    was given, apart from its batch-norms, which normalise by the images of all ranks; `may_leave_unused` says that a
    step may give some of its parameters no gradient.
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
        nodes: int | None = None,
        memory_format: torch.memory_format = MEMORY_FORMAT,
        world: World | None = None,
        may_leave_unused: bool = False,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.world = world or World()
        network = self.world.synchronised(network.to(device))
        self.memory_format = memory_format
        self.network = network.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in torch's stub
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 1.0 - recipe.batch_norm_momentum
        self.recipe, self.device, self.steps_per_epoch = recipe, device, steps_per_epoch
        self.average = WeightAverage(network, ema_decay(recipe, steps_per_epoch)) if recipe.ema else None
        self.optimizer = make_optimizer(network, recipe, self.average)
        self.schedule = Schedule.of(recipe, steps_per_epoch)
        self.evaluated = network if self.average is None else self.average.network
        self.step = 0
        self._classes, self._seed, self._teacher = classes, seed, teacher
        self._scale = (nodes or self.world.nodes) if recipe.scale_lr_by_nodes else 1
        self._parts = len(micro_batches(self.world.batch_of_rank(recipe.batch_size), recipe.micro_batch))
        self._forward = self.world.wrapped(network, may_leave_unused=may_leave_unused)
        self._evaluated = 0  # batches since the last step
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

    def update(self, batch: Batch, images: int | None = None) -> None:
        """One step. Sets torch's global random state: call it within `preserved_random_state`.

        images: how many all ranks have for this step (`World.agree`); None asks them. Raises FloatingPointError, some
        steps later and on all ranks, with epoch, step and lr where a loss was not finite.
        """
        if images is None:
            images, _ = self.world.agree(len(batch.labels))
        if not self.network.training:  # asking first: a network's modules are hundreds
            self.network.train()
        torch.manual_seed(derive_seed(self._seed, *self._purpose("dropout")))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        if images > 1:  # unreadable images make a batch smaller, and batch-norm needs two
            self.advance(1, "forward and backward")
            self.optimizer.zero_grad()
            self._losses.append(self._backward(batch, images))
            self.advance(2, "update")
            if self.recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip, foreach=True)
            self.optimizer.step()
            if self.average is not None and not averages(self.optimizer):
                self.average.update()
        self.step += 1
        self._evaluated = 0
        if self.step % LOOK_EVERY == 0:
            self.look()

    def advance(self, phase: int, what: str) -> None:
        """Tell whoever watches this rank where it is: in a step, or, with a phase of 3 and more, after the last one."""
        step = self.step - (phase > 2)
        epoch, within = divmod(step, self.steps_per_epoch)
        self.world.advance(step * PLACES + phase, f"step {within + 1} of epoch {epoch + 1}: {what}")

    def _purpose(self, name: str) -> tuple[str | int, ...]:
        """The key of this step's random draws. One rank keeps the key it has always had."""
        return (name, self.step) if self.world.size == 1 else (name, self.step, self.world.rank)

    def _backward(self, batch: Batch, all_images: int) -> Tensor:
        """Gradients of the batch, micro-batch by micro-batch; returns this rank's part of the loss, float32 ().

        Every one of the `all_images` counts the same, on whatever rank. DistributedDataParallel divides the sum of the
        ranks' gradients by their number, hence the factor `ranks`.
        """
        recipe, ranks = self.recipe, self.world.size
        targets = functional.one_hot(batch.labels, self._classes).to(torch.float32)
        images, targets = mixup(batch.images, targets, recipe.mixup, generator(self._seed, *self._purpose("mixup")))
        images = arranged(images, self.memory_format)
        sizes = self._sizes(len(images))
        total = torch.zeros((), device=images.device)
        for i, (part, target) in enumerate(zip(images.split(sizes), targets.split(sizes), strict=True)):
            with self._exchanging(i == len(sizes) - 1):
                with autocast(self.device, recipe.precision):
                    logits = self._forward(part)
                    taught = None if self._teacher is None else self._teacher.logits(part)
                loss = self._loss(logits.float(), target, taught) * (len(part) / all_images * ranks)
                loss.backward()
            total += loss.detach() / ranks
        return total

    def _loss(self, logits: Tensor, target: Tensor, taught: Tensor | None) -> Tensor:
        """The mean loss of a micro-batch, float32 ()."""
        recipe = self.recipe
        if not len(target):
            return logits.sum()  # zero: this rank has no image here, and takes part in what the others exchange
        loss = functional.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
        if taught is not None:
            distilled = distillation_loss(logits, taught.float(), recipe.temperature)
            loss = recipe.distillation * distilled + (1.0 - recipe.distillation) * loss
        return loss

    def _sizes(self, images: int) -> list[int]:
        """Images of each micro-batch. Ranks have as many micro-batches as one another, whatever images they lost."""
        if self.world.size == 1 or images == self.world.batch_of_rank(self.recipe.batch_size):
            return micro_batches(images, self.recipe.micro_batch)
        ends = [images * (i + 1) // self._parts for i in range(self._parts)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the backward of the last micro-batch alone."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def look(self) -> None:
        """Add up the losses since the last look; FloatingPointError with epoch, step and lr where one is not finite."""
        if not self._losses:
            return
        losses = self.world.sum(torch.stack(self._losses).tolist())
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
        """How `network` does on the batches of all ranks together, of which `batches` are this rank's."""
        try:
            return evaluate(network, self._followed(batches), self.recipe.precision, self.memory_format, self.world.sum)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} after {self.place(self.step - 1)}") from None

    def _followed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._evaluated += 1
            self.advance(2 + self._evaluated, f"evaluating, batch {self._evaluated}")
            yield batch

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
    total: Callable[[list[float]], list[float]] = list,
) -> Evaluation:
    """How well `network`, in evaluation mode, does; FloatingPointError where a logit is not finite.

    total: adds up the numbers of all ranks, each of which has other batches, and perhaps none.
    """
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
    right, lost, broken, count = total([*([0.0] * 3 if sums is None else sums.tolist()), images])
    if count == 0:
        raise PynasError("data: there is no image to evaluate on")
    if broken:
        raise FloatingPointError("the network's outputs are not finite")
    return Evaluation(right / count, lost / count, int(count))


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
