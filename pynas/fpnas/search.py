"""The search in a supernet: PARSEC's procedure with FP-NAS's adaptive sampling and coarse-to-fine distribution.

A step draws K architectures from P(A | alpha). Each computes the likelihood of a batch of the second half of the
images; that gives the importance weights, with which alpha takes a step of Adam (equation 7), and the weights a step of
SGD on a batch of the first half: the gradient of log P(y | X, w, alpha) is the importance-weighted sum of the
architectures' gradients. During the warm-up alpha stays as it is, and every architecture counts the same.

A step's random draws are keyed by (seed, purpose, step): a search that was cut after an epoch goes on bit for bit.
Architectures are computed one after another, so a step holds one at a time. Ranks share them out: all see the same
batches and draw the same architectures, each computes every size-th of them, and what they find is summed.

K architectures a step, V variables.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pynas.data.batches import Batch, Data
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.distribution import Distribution
from pynas.fpnas.estimator import alpha_loss, cost_aware_weights, hinge, importance_weights, sample_count
from pynas.fpnas.supernet import Supernet
from pynas.randomness import derive_seed, generator
from pynas.space.architecture import Architecture
from pynas.space.latency import LatencyModel
from pynas.space.space import Space
from pynas.train.schedule import Schedule
from pynas.train.world import World

logger = logging.getLogger(__name__)

NEGLIGIBLE = 1e-6
"""An architecture of a smaller importance weight is not trained: its gradient would not be seen in float32's sum."""


PLACES = 1 << 16
"""More than a step has architectures and an evaluation batches."""


@dataclass(frozen=True)
class Epoch:
    """What is told of an epoch of the search (Figures 3 and 4)."""

    epoch: int  # from 1
    entropy: float  # of the distribution after it, nats
    samples: int  # architectures drawn in it
    dropped: int  # of them, for a likelihood or a gradient that was not finite
    loss: float | None  # mean cross-entropy of the architectures that trained, nats an image; None where none did
    costs: dict[str, float]  # mean over the architectures drawn
    genome: list[int]  # of the mode
    accuracy: float  # of the mode, with the supernet's weights, on the half that trains alpha


class Search:
    """A search with all that it carries from step to step.

    targets: upper bounds on costs by name, in the costs' units; ``latency`` among them where its model is given.
    `steps_per_epoch` is that of the first half.
    """

    def __init__(
        self,
        space: Space,
        config: SupernetConfig,
        targets: Mapping[str, float],
        *,
        steps_per_epoch: int,
        seed: int,
        device: torch.device,
        world: World | None = None,
        latency: LatencyModel | None = None,
    ) -> None:
        self.latency = latency
        self.space, self.config, self.targets = space, config, dict(targets)
        self.steps_per_epoch, self.seed, self.device = steps_per_epoch, seed, device
        self._schedule = Schedule(steps_per_epoch, 1.0, 0.0, cosine_epochs=config.epochs)
        self.world = world or World()
        self.supernet = Supernet(space, seed=derive_seed(seed, "supernet")).to(device)
        self.optimizer = torch.optim.SGD(_groups(self.supernet, config), config.lr, config.momentum)
        start = Distribution.joint if config.distribution == "joint" else Distribution.factorised
        self._learn(start(space))
        self.step = 0
        self._architectures: dict[bytes, Architecture] = {}

    def _learn(self, distribution: Distribution) -> None:
        """Go on with another distribution. Adam's moments belong to the old one's alpha and are left behind."""
        self.distribution = distribution
        self.alpha_optimizer = torch.optim.Adam([distribution.alpha], self.config.alpha_lr)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def warming_up(self) -> bool:
        return self.epoch < self.config.warmup_epochs

    @property
    def lr(self) -> float:
        """SGD's rate in the next step."""
        return self.config.lr * self._schedule.factor(self.step)

    def run_epoch(self, first_half: Data, second_half: Data, before_step: Callable[[], None] = lambda: None) -> Epoch:
        """One epoch, of the batches of `train_batches` of both; returns what is told of it.

        What `before_step` raises leaves the search within the epoch: its state is no longer one to go on from.
        """
        config, epoch = self.config, self.epoch
        if config.distribution == "mixed" and epoch == config.theta:
            self._learn(self.distribution.to_joint())
        losses: list[float] = []
        costs: dict[str, list[float]] = {}
        samples = dropped = 0
        for batch, held_out in zip(first_half.train_batches(epoch), _endless(second_half, epoch), strict=False):
            self._advance(0, 0, "before architecture")
            before_step()
            drawn = self.update(batch, held_out)
            samples, dropped = samples + drawn.count, dropped + drawn.dropped
            losses += drawn.losses
            for name, values in drawn.costs.items():
                costs.setdefault(name, []).extend(values.tolist())
        mode = self.distribution.mode()
        return Epoch(
            epoch=epoch + 1,
            entropy=self.distribution.entropy(),
            samples=samples,
            dropped=dropped,
            loss=float(np.mean(losses)) if losses else None,
            costs={name: float(np.mean(values)) for name, values in costs.items()},
            genome=mode.tolist(),
            accuracy=self.accuracy(mode, first_half.validation_batches()),
        )

    # one step -------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, held_out: Batch) -> Drawn:
        """One step on a batch of each half."""
        count = sample_count(self.config, self.distribution.entropy())
        genomes = self.distribution.sample(count, generator(self.seed, "architectures", self.step))
        costs = self.costs(genomes)
        likelihood = None
        if self.warming_up:
            importance = torch.full((count,), 1 / count, dtype=torch.float64)
        else:
            likelihood = self.log_likelihoods(genomes, held_out)
            importance = importance_weights(likelihood, self.config.temperature)
            good = torch.isfinite(likelihood)
            self._update_alpha(genomes[good.numpy()], importance[good], hinge(costs, self.targets)[good.numpy()])
            self._tell_dropped(~good, "likelihood")
        losses = self._update_weights(genomes, importance, batch)
        self.step += 1
        dropped = losses.count(math.inf) + (0 if likelihood is None else int((~torch.isfinite(likelihood)).sum()))
        return Drawn(count, dropped, [loss for loss in losses if math.isfinite(loss)], costs)

    @torch.no_grad()
    def log_likelihoods(self, genomes: NDArray[np.uint8], batch: Batch) -> Tensor:
        """log P(y | X, w, A_k) of a batch, float64 (K,): over its images the sum or the mean, as configured."""
        found = [0.0] * len(genomes)
        for k in self._mine(len(genomes)):
            self._advance(1, k, "likelihood")
            logits = self.supernet(batch.images, self.architecture(genomes[k])).double()
            found[k] = -float(functional.cross_entropy(logits, batch.labels, reduction=self.config.likelihood))
        return torch.tensor(self.world.sum(found), dtype=torch.float64)

    def _update_alpha(self, genomes: NDArray[np.uint8], importance: Tensor, costs: NDArray[np.float64]) -> None:
        if not len(genomes):
            return
        self.alpha_optimizer.zero_grad()
        beta, baseline = self.config.beta, self.config.baseline
        weights = cost_aware_weights(importance, costs, beta, baseline=baseline)
        alpha_loss(self.distribution, genomes, weights).backward()
        self.alpha_optimizer.step()

    def _update_weights(self, genomes: NDArray[np.uint8], importance: Tensor, batch: Batch) -> list[float]:
        """A step of SGD; the losses of the architectures that took part, infinite for those that were dropped."""
        chosen = [k for k in range(len(genomes)) if importance[k] > NEGLIGIBLE]
        gradients: dict[str, Tensor] = {}
        losses = [0.0] * len(chosen)
        for i in self._mine(len(chosen)):
            self._advance(2, i, "gradients")
            losses[i] = self._add_gradients(genomes[chosen[i]], float(importance[chosen[i]]), batch, gradients)
        losses = self.world.sum(losses)
        self._tell_dropped(~torch.isfinite(torch.tensor(losses)), "gradient")
        # Only what took part: the zero gradient of others would still be a step of momentum and weight decay.
        if kept := [genomes[k] for k, loss in zip(chosen, losses, strict=True) if math.isfinite(loss)]:
            self._descend(gradients, kept)
        return losses

    def _add_gradients(
        self, genome: NDArray[np.uint8], weight: float, batch: Batch, gradients: dict[str, Tensor]
    ) -> float:
        """Add an architecture's gradients, times its weight, to `gradients`; returns its loss. Where anything is not
        finite nothing is added, and the loss is infinite.
        """
        network, names = self.supernet.path(self.architecture(genome))
        leaves = [self.supernet.weights[name] for name in names]
        logits = network(self.supernet.scaled(batch.images, self.architecture(genome))).float()
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        found = torch.autograd.grad(loss, leaves)
        if not math.isfinite(float(loss.detach())) or not torch.stack(torch._foreach_norm(found)).isfinite().all():
            return math.inf
        for name, gradient in zip(names, found, strict=True):
            if name in gradients:
                gradients[name].add_(gradient, alpha=weight)
            else:
                gradients[name] = gradient.mul_(weight)
        return float(loss.detach())

    def _descend(self, gradients: dict[str, Tensor], genomes: Sequence[NDArray[np.uint8]]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.world.size > 1:
            names = sorted({name for genome in genomes for name in self.supernet.path(self.architecture(genome))[1]})
            weights = [self.supernet.weights[name] for name in names]
            parts = [gradients.get(name, torch.zeros_like(w)) for name, w in zip(names, weights, strict=True)]
            flat = torch.cat([part.flatten() for part in parts])
            self.world.sum_tensor(flat)
            sums = [part.view_as(w) for part, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
            gradients = dict(zip(names, sums, strict=True))
        for name, gradient in gradients.items():
            self.supernet.weights[name].grad = gradient
        if self.config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # which the next step would hold beside its own

    def _advance(self, phase: int, number: int, what: str) -> None:
        """Tell whoever watches this rank where it is: phase 0 is before a step, 3 after an epoch's last."""
        step = self.step - (phase > 2)
        epoch, within = divmod(step, self.steps_per_epoch)
        place = f"step {within + 1} of epoch {epoch + 1}: {what} {number + 1}"
        self.world.advance((step * 4 + phase) * PLACES + number, place)

    def _mine(self, count: int) -> range:
        """Which of `count` architectures this rank computes."""
        return range(self.world.rank, count, self.world.size)

    def _tell_dropped(self, which: Tensor, what: str) -> None:
        if which.any() and self.world.first:
            logger.warning(
                "step %d: %d of %d architectures dropped: their %s is not finite",
                *(self.step, int(which.sum()), len(which), what),
            )

    # what is found --------------------------------------------------------------------------------------------------

    def architecture(self, genome: NDArray[np.uint8]) -> Architecture:
        key = genome.tobytes()
        if key not in self._architectures:
            if len(self._architectures) >= 1024:
                self._architectures.clear()
            self._architectures[key], _ = self.space.decode(genome)
        return self._architectures[key]

    def costs(self, genomes: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The space's costs of genomes, (K,) each, and what the latency model predicts: ``latency``, milliseconds."""
        predicted = {} if self.latency is None else {"latency": self.latency.predict(genomes)}
        return {**self.space.costs(genomes), **predicted}

    @torch.no_grad()
    def accuracy(self, genome: NDArray[np.uint8], batches: Iterable[Batch]) -> float:
        """Of one architecture with the supernet's weights, in [0, 1]; batch-norm by each batch's own statistics.

        Ranks share the batches out, and all get the same answer.
        """
        right = images = 0
        for number, batch in enumerate(_without_rest(batches)):
            if number % self.world.size != self.world.rank:
                continue
            self._advance(3, number, "evaluating, batch")
            logits = self.supernet(batch.images, self.architecture(genome))
            right += int((logits.argmax(1) == batch.labels).sum())
            images += len(batch.labels)
        right, images = map(int, self.world.sum([right, images]))
        return right / images

    # state ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, with which a `Search` made in the same way goes on bit for bit."""
        return {
            "step": self.step,
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "distribution": self.distribution.to_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._learn(Distribution.from_dict(self.space, state["distribution"]))
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.step = state["step"]


@dataclass(frozen=True)
class Drawn:
    """What a step drew: how many architectures, how many of them were dropped, the losses of those that trained, and
    the costs of all.
    """

    count: int
    dropped: int
    losses: list[float]
    costs: dict[str, NDArray[Any]]


def _endless(data: Data, epoch: int) -> Iterator[Batch]:
    """Batches of an epoch, and should it be shorter than the other half's, of as many more as are asked for."""
    for again in range(1 << 30):
        yield from data.train_batches(epoch + again * (1 << 32))


def _without_rest(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same images, where a last batch of less than half the others' size goes with the one before: batch-norm takes
    the statistics of what it is given, and a single image has none.
    """
    held: Batch | None = None
    for batch in batches:
        if held is not None and 2 * len(batch.labels) < len(held.labels):
            batch = Batch(torch.cat([held.images, batch.images]), torch.cat([held.labels, batch.labels]))
        elif held is not None:
            yield held
        held = batch
    if held is not None:
        yield held


def _groups(supernet: Supernet, config: SupernetConfig) -> list[dict[str, Any]]:
    """Convolutions and linear layers with weight decay, biases and batch-norms without."""
    decayed = [p for p in supernet.parameters() if p.dim() > 1]
    others = [p for p in supernet.parameters() if p.dim() == 1]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
