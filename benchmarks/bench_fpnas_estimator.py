"""FP-NAS: how much of alpha's gradient is signal, by how likelihoods are scaled, with and without a baseline.

A supernet of fbnetv2_f_28 is warmed up on 4000 images of Fashion-MNIST, 10 epochs, and 150 architectures are drawn from
the uniform distribution. The likelihood of each on every image of the other half gives the direction in which alpha
should go: the gradient of the mean log-likelihood. Then 3000 steps are drawn: K of the architectures, a batch of 256
images, and the estimate of equation 7 (no cost). Told is the projection of their mean on that direction over their root
mean square: how far a step gets for its length. A step of twice the figure is worth four of the others.

A round is a supernet of its own seed. The rows are temperatures in nats an image; 1/256 is PARSEC's sum over the batch.
"""

from __future__ import annotations

from typing import Any

import harness
import numpy as np
import torch
from torch.nn import functional

from pynas.cores import available_cores
from pynas.data.config import DataConfig
from pynas.data.open import open_data
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.distribution import Distribution
from pynas.fpnas.estimator import cost_aware_weights, importance_weights
from pynas.fpnas.search import Search
from pynas.randomness import generator
from pynas.space.space import load_space

IMAGES, EPOCHS, POOL, STEPS, BATCH = 4000, 10, 150, 3000, 256
TEMPERATURES = (1 / 256, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COUNTS = (6, 14)


def likelihoods(seed: int) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """Architectures drawn, uint8 (POOL, V), and their log-likelihood of every image of the other half, (POOL, N)."""
    space = load_space("fbnetv2_f_28")
    config = SupernetConfig(
        epochs=4 * EPOCHS,
        warmup_epochs=EPOCHS,
        batch_size=128,
        augment="none",
        sampling="fixed",
        samples=2,
        distribution="factorised",
    )
    shared: dict[str, Any] = {"resolution": 28, "device": torch.device("cpu"), "augment": "none"}
    data = DataConfig(name="fashion-mnist", withhold="half", train=IMAGES, validation=IMAGES)
    first = open_data(data, batch_size=128, seed=seed, **shared)
    second = open_data(data, batch_size=BATCH, seed=seed, exchanged=True, **shared)
    search = Search(space, config, {}, steps_per_epoch=IMAGES // 128, seed=seed, device=shared["device"])
    for _ in range(EPOCHS):
        search.run_epoch(first, second)
    genomes = search.distribution.sample(POOL, generator(seed, "pool"))
    found = []
    batches = [*second.train_batches(0)]
    with torch.no_grad():
        for genome in genomes:
            logits = (search.supernet(batch.images, search.architecture(genome)).double() for batch in batches)
            losses = [functional.cross_entropy(x, b.labels, reduction="none") for x, b in zip(logits, batches)]
            found.append(-torch.cat(losses))
    return genomes, torch.stack(found)


def scores(genomes: np.ndarray[Any, Any]) -> torch.Tensor:
    """grad log P(A_k | alpha) of the uniform factorised distribution, (POOL, sum of choices)."""
    distribution = Distribution.factorised(load_space("fbnetv2_f_28"))
    rows = []
    for genome in genomes:
        distribution.alpha.grad = None
        distribution.log_probability(genome[None]).sum().backward()
        assert distribution.alpha.grad is not None
        rows.append(distribution.alpha.grad.nan_to_num(0).flatten())
    return torch.stack(rows)


def signal(seed: int) -> dict[tuple[float, int, bool], float]:
    genomes, logs = likelihoods(seed)
    gradients = scores(genomes)
    quality = logs.mean(1)
    direction = (quality - quality.mean()) @ gradients
    direction /= direction.norm()
    by_batch = logs.unflatten(1, (-1, BATCH)).mean(2)
    found = {}
    for temperature in TEMPERATURES:
        for count in COUNTS:
            for baseline in (False, True):
                random = generator(seed, "steps")
                steps = []
                for _ in range(STEPS):
                    chosen = random.choice(POOL, count, replace=False)
                    importance = importance_weights(by_batch[chosen, random.integers(by_batch.shape[1])], temperature)
                    weights = cost_aware_weights(importance, np.zeros(count), 0.0, baseline=baseline)
                    steps.append(weights @ gradients[chosen])
                drawn = torch.stack(steps)
                rms = drawn.square().sum(1).mean().sqrt()
                found[temperature, count, baseline] = float(drawn.mean(0) @ direction / rms)
    return found


def main() -> None:
    options = harness.arguments(__doc__, rounds=3)
    torch.set_num_threads(available_cores())
    around = harness.machine()
    found = [signal(seed) for seed in range(options.rounds)]

    def cell(*case: Any) -> str:
        values = [one[case] for one in found]
        return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    columns = ("temperature", *(f"K = {k}{', baseline' if b else ''}" for k in COUNTS for b in (False, True)))
    rows = [
        (f"{t:.4f}", *(cell(t, count, baseline) for count in COUNTS for baseline in (False, True)))
        for t in TEMPERATURES
    ]
    harness.report("fpnas_estimator", options, around, columns, rows, (), {"seeds": options.rounds})


if __name__ == "__main__":
    main()
