"""The training loop: every variable of a recipe, on a data set that lies in memory as a whole.

Shapes: N images of the part, B batch, C channels, H = W = resolution, K classes.

The networks are tiny and train on one CPU thread each, so the loop avoids what costs per step: no DataLoader, batches
are index selections, optimizer and EMA act on all tensors at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pynas.data.augment import mixup, resize, shift_and_flip
from pynas.data.memory import Dataset
from pynas.errors import PynasError
from pynas.space.architecture import Recipe
from pynas.train.config import TrainingConfig
from pynas.train.ema import WeightAverage, ema_decay
from pynas.train.optimizer import make_optimizer
from pynas.train.schedule import Schedule

EVALUATION_BATCH = 500
MEMORY_FORMAT = torch.channels_last
"""Measured on one AVX2 core (torch 2.13, forward + backward + step, median) for 2.4 MFLOPs at 28 x 28 x 1:
channels_last 720 to 970 images/s, contiguous 550 to 690 (batches of 64 to 256). On CUDA it is the faster one as well.
"""


@dataclass(frozen=True)
class Part:
    """Images ready for the network: float32 (N, C, H, W) normalised, on the device; labels int64 (N,)."""

    images: Tensor
    labels: Tensor


class Preparation:
    """Normalises by the training images' mean and deviation per channel, and resizes to the network's resolution.

    The whole part is prepared once, up front: resizing in every epoch would cost as much as a small network's step.
    """

    def __init__(self, dataset: Dataset, resolution: int, device: torch.device) -> None:
        values = dataset.train_images.to(torch.float32)
        self._mean = values.mean(dim=(0, 2, 3), keepdim=True)
        self._deviation = values.std(dim=(0, 2, 3), keepdim=True).clamp_min(1.0)
        self._resolution = resolution
        self._device = device

    def __call__(self, images: Tensor, labels: Tensor) -> Part:
        """images: uint8 (N, C, size, size); labels: int64 (N,)."""
        values = (images.to(torch.float32) - self._mean) / self._deviation
        values = resize(values, self._resolution)
        return Part(values.to(self._device, memory_format=MEMORY_FORMAT), labels.to(self._device))


class Trainer:
    """A network with everything its training carries from step to step.

    `evaluated` is the network whose accuracy counts: the average of the weights where `recipe.ema`, else the network.
    The order of the images depends on `seed` only, so that two recipes see the same batches. Dropout and stochastic
    depth draw from torch's global generators: `train` seeds them.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        training: TrainingConfig,
        part: Part,
        *,
        seed: np.random.SeedSequence,
        shift: int = 0,
        flip: bool = False,
    ) -> None:
        self.steps_per_epoch = len(part.labels) // training.batch_size
        if self.steps_per_epoch == 0:
            raise PynasError(
                f"training.batch_size: got {training.batch_size}, allowed are at most the {len(part.labels)}"
                " training images (data.train)"
            )
        network.to(part.images.device)
        self.network = network.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # not in torch's stub
        self.optimizer = make_optimizer(network, recipe, training.momentum)
        self.schedule = Schedule.of(training, self.steps_per_epoch)
        self.average = WeightAverage(network, ema_decay(training, self.steps_per_epoch)) if recipe.ema else None
        self.evaluated = network if self.average is None else self.average.network
        self._recipe, self._training, self._part = recipe, training, part
        self._targets = functional.one_hot(part.labels).to(torch.float32)
        self._shift, self._flip = shift, flip
        self._order, self._mixing = (np.random.default_rng(child) for child in seed.spawn(2))
        self._step = 0  # over the whole training

    def epoch(self) -> None:
        """One pass over the training part; FloatingPointError with epoch, step and lr where a loss is not finite."""
        self.network.train()
        size, count = self._training.batch_size, self.steps_per_epoch
        order = torch.from_numpy(self._order.permutation(len(self._part.labels))).to(self._part.labels.device)
        losses = torch.stack([self._update(batch) for batch in order[: count * size].split(size)])
        # Looked at once an epoch: a look at every step would make a GPU wait for the CPU at every step.
        finite = torch.isfinite(losses).tolist()
        if not all(finite):
            step = finite.index(False)
            raise FloatingPointError(f"loss is {losses[step].item()} in {self._place(self._step - count + step)}")

    def accuracy(self, part: Part) -> float:
        """The evaluated network's accuracy; FloatingPointError with epoch, step and lr where it is not finite."""
        try:
            return evaluate(self.evaluated, part)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} after {self._place(self._step - 1)}") from None

    def _update(self, batch: Tensor) -> Tensor:
        """One step on the images of these indices, int64 (B,); returns the loss, float32 ()."""
        images, targets = self._part.images[batch], self._targets[batch]
        if self._training.augment:
            images = shift_and_flip(images, self._shift, self._flip, self._mixing)
        images, targets = mixup(images, targets, self._recipe.mixup, self._mixing)
        logits = self.network(images.contiguous(memory_format=MEMORY_FORMAT))
        loss = functional.cross_entropy(logits, targets, label_smoothing=self._training.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self._step)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self._step += 1
        return loss.detach()

    def _lr(self, step: int) -> float:
        return self._recipe.lr * self.schedule.factor(step)

    def _place(self, step: int) -> str:
        epoch, within = divmod(step, self.steps_per_epoch)
        return f"epoch {epoch + 1}, step {within + 1} of {self.steps_per_epoch}, lr {self._lr(step):.6g}"


def train(
    trainer: Trainer,
    validation: Part,
    epochs: int,
    *,
    seed: int,
    report: Callable[[int, float], None] = lambda epoch, accuracy: None,
) -> list[float]:
    """The validation accuracy in [0, 1] after each of `epochs` epochs; `report(epoch, accuracy)` after each, from 1 on.

    The outcome is a function of the trainer and the arguments and, on a CPU, of torch's number of threads; on CUDA it
    may vary in the last bits. `seed` is for dropout and stochastic depth; torch's global random state is put back.
    """
    device = validation.images.device
    curve: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            trainer.epoch()
            curve.append(trainer.accuracy(validation))
            report(epoch, curve[-1])
    return curve


@torch.inference_mode()
def evaluate(network: nn.Module, part: Part) -> float:
    """The share of `part` that `network` puts first, in [0, 1]; FloatingPointError where a logit is not finite."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=part.labels.device)
    finite = torch.ones((), dtype=torch.bool, device=part.labels.device)
    for images, labels in zip(part.images.split(EVALUATION_BATCH), part.labels.split(EVALUATION_BATCH), strict=True):
        logits = network(images)
        correct += (logits.argmax(1) == labels).sum()
        finite &= torch.isfinite(logits).all()
    if not finite:
        raise FloatingPointError("the network's outputs are not finite")
    return correct.item() / len(part.labels)
