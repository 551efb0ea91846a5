"""Fitting the predictor with torch: pretraining on free statistics (stage 1), then on measured accuracy (stage 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pynas.predict.baselines import fit_ridge, ridge_features
from pynas.predict.predictor import PROXIES, Predictor
from pynas.predict.ranking import kendall_tau
from pynas.predict.settings import PredictorSettings
from pynas.randomness import derive_seed, generator
from pynas.space.space import Space


@dataclass(frozen=True)
class PretrainFit:
    """How well the proxy head predicts the statistics of the held-out 20% of the pool, by statistic."""

    samples: int
    held_out: int
    r2: dict[str, float]
    kendall_tau: dict[str, float]
    measured: dict[str, list[float]]  # of the first few hundred held-out genomes, for plots
    predicted: dict[str, list[float]]


@dataclass(frozen=True)
class CrossValidation:
    """Out-of-fold Kendall tau with the measured accuracies, of the MLP and of ridge regression."""

    labels: int
    mlp: float
    ridge: float
    measured: list[float]
    mlp_predicted: list[float]
    ridge_predicted: list[float]


class _TwoHeadedMLP(nn.Module):
    """Fig. 3 of the paper."""

    def __init__(self, architecture_features: int, recipe_features: int, settings: PredictorSettings) -> None:
        super().__init__()
        self.architecture_features = architecture_features
        self.embedding = nn.Linear(architecture_features, settings.embedding)
        self.proxy = nn.Linear(settings.embedding, len(PROXIES))
        self.hidden = nn.Linear(settings.embedding + recipe_features, settings.hidden)
        self.output = nn.Linear(settings.hidden, 1)

    def embed(self, features: Tensor) -> Tensor:
        return torch.relu(self.embedding(features[:, : self.architecture_features]))

    def statistics(self, features: Tensor) -> Tensor:
        return self.proxy(self.embed(features))

    def accuracy(self, features: Tensor) -> Tensor:
        recipe = features[:, self.architecture_features :]
        return self.output(torch.relu(self.hidden(torch.cat([self.embed(features), recipe], dim=1)))).squeeze(1)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {name: value.detach().numpy().copy() for name, value in self.state_dict().items()}


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded generator inside, the caller's state untouched: same seed, same bits, on any machine
    with the same torch."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _standardise(labels: NDArray[np.float64]) -> tuple[Tensor, NDArray[np.float64]]:
    mean, deviation = labels.mean(axis=0), labels.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return torch.from_numpy(((labels - mean) / deviation).astype(np.float32)), np.stack([mean, deviation])


def _minimise(
    loss: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    *,
    samples: int,
    batch: int,
    epochs: int,
    lr: float,
    weight_decay: float,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Adam with a cosine to zero over shuffled mini-batches; `loss` maps a batch of sample indices to a scalar."""
    steps = epochs * -(-samples // batch)
    if steps == 0:
        return
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for indices in torch.from_numpy(rng.permutation(samples)).split(batch):
            optimizer.zero_grad()
            loss(indices).backward()
            optimizer.step()
            schedule.step()
        if progress:
            progress(epoch + 1, epochs)


def pretrain(
    space: Space,
    genomes: NDArray[np.uint8],
    settings: PredictorSettings,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Predictor, PretrainFit]:
    """Stage 1 (section 3.2): fit embedding and proxy head to FLOPs and parameters on 80% of the pool, test on 20%.

    `genomes` is uint8 ``(n, variables)``. Returns the predictor, whose accuracy head is still random, and its fit.
    """
    costs = space.costs(genomes)
    labels = np.stack([costs[name] for name in PROXIES], axis=1).astype(np.float64)
    features = torch.from_numpy(space.features(genomes))
    rng = generator(seed, "pretrain")
    order = rng.permutation(len(genomes))
    train, test = np.split(order, [int(0.8 * len(genomes))])
    with _reproducible(derive_seed(seed, "predictor")):
        model = _TwoHeadedMLP(space.architecture_features, space.recipe_features, settings)
        targets, scale = _standardise(labels[train])
        inputs = features[train]
        _minimise(
            lambda i: nn.functional.mse_loss(model.statistics(inputs[i]), targets[i]),
            [*model.embedding.parameters(), *model.proxy.parameters()],
            samples=len(train),
            batch=settings.pretrain_batch,
            epochs=settings.pretrain_epochs,
            lr=settings.pretrain_lr,
            weight_decay=0.0,
            rng=rng,
            progress=progress,
        )
        predictor = Predictor(space.fingerprint, model.arrays(), np.array([0.0, 1.0]), scale)
    return predictor, _pretrain_fit(predictor, space, genomes[test], labels[test], len(train))


def _pretrain_fit(
    predictor: Predictor, space: Space, genomes: NDArray[np.uint8], labels: NDArray[np.float64], samples: int
) -> PretrainFit:
    predicted = predictor.statistics(space, genomes)
    r2, tau = {}, {}
    for i, name in enumerate(PROXIES):
        variance = labels[:, i].var()
        residual = np.mean((labels[:, i] - predicted[name]) ** 2)
        r2[name] = float(1 - residual / variance) if variance > 0 else float("nan")
        tau[name] = kendall_tau(predicted[name], labels[:, i])
    shown = slice(0, 400)
    return PretrainFit(
        samples,
        len(genomes),
        r2,
        tau,
        {name: labels[shown, i].tolist() for i, name in enumerate(PROXIES)},
        {name: predicted[name][shown].tolist() for name in PROXIES},
    )


def fit_accuracy(
    pretrained: Predictor,
    space: Space,
    genomes: NDArray[np.uint8],
    accuracies: NDArray[np.float64],
    settings: PredictorSettings,
    *,
    seed: int,
) -> Predictor:
    """Stage 2 (section 3.3): Huber loss on standardised accuracy, first with the embedding frozen, then everything.

    Starts from the pretrained embedding every time; a new iteration adds labels and fits anew. `genomes` is uint8
    ``(n, variables)``, `accuracies` float64 ``(n,)``.
    """
    features = torch.from_numpy(space.features(genomes))
    with _reproducible(derive_seed(seed, "predictor", "accuracy")):
        model = _TwoHeadedMLP(space.architecture_features, space.recipe_features, settings)
        kept = {key: torch.from_numpy(value) for key, value in pretrained.weights.items()}
        model.load_state_dict({k: v for k, v in kept.items() if k.startswith(("embedding", "proxy"))}, strict=False)
        targets, scale = _standardise(accuracies)
        head = [*model.hidden.parameters(), *model.output.parameters()]
        rng = generator(seed, "fit_accuracy")
        stages = (
            (head, settings.frozen_epochs, settings.lr),
            ([*head, *model.embedding.parameters()], settings.epochs, settings.lower_lr),
        )
        for parameters, epochs, lr in stages:
            _minimise(
                lambda i: nn.functional.huber_loss(model.accuracy(features[i]), targets[i]),
                parameters,
                samples=len(genomes),
                batch=settings.batch,
                epochs=epochs,
                lr=lr,
                weight_decay=settings.weight_decay,
                rng=rng,
            )
        return Predictor(space.fingerprint, model.arrays(), scale, pretrained.proxy_scale)


def cross_validate(
    pretrained: Predictor,
    space: Space,
    genomes: NDArray[np.uint8],
    accuracies: NDArray[np.float64],
    settings: PredictorSettings,
    *,
    seed: int,
) -> CrossValidation:
    """Out-of-fold predictions of the MLP and of ridge regression, and their rank correlation with what was measured."""
    folds = min(settings.folds, len(genomes))
    order = generator(seed, "cross_validate").permutation(len(genomes))
    mlp, ridge = np.full(len(genomes), np.nan), np.full(len(genomes), np.nan)
    for held_out in np.array_split(order, folds):
        kept = np.setdiff1d(order, held_out)
        fitted = fit_accuracy(pretrained, space, genomes[kept], accuracies[kept], settings, seed=seed)
        mlp[held_out] = fitted.score(space, genomes[held_out])
        baseline = fit_ridge(space, genomes[kept], accuracies[kept])
        ridge[held_out] = baseline.predict(ridge_features(space, genomes[held_out]))
    return CrossValidation(
        len(genomes),
        kendall_tau(mlp, accuracies),
        kendall_tau(ridge, accuracies),
        accuracies.tolist(),
        mlp.tolist(),
        ridge.tolist(),
    )
