"""The paper's predictor (Fig. 3) in torch: its modules, and how it is fitted to arrays of features and labels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pynas.predict.settings import PredictorSettings
from pynas.randomness import derive_seed, generator


class TwoHeadedMLP(nn.Module):
    """Fig. 3 of the paper."""

    def __init__(
        self, architecture_features: int, recipe_features: int, settings: PredictorSettings, proxies: int = 2
    ) -> None:
        super().__init__()
        self.architecture_features = architecture_features
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # where only the recipe varies
            self.embedding = nn.Linear(architecture_features, settings.embedding)
        self.proxy = nn.Linear(settings.embedding, proxies)
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
def reproducible(seed: int) -> Iterator[None]:
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


def standardise(labels: NDArray[np.float64]) -> tuple[Tensor, NDArray[np.float64]]:
    mean, deviation = labels.mean(axis=0), labels.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return torch.from_numpy(((labels - mean) / deviation).astype(np.float32)), np.stack([mean, deviation])


def minimise(
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


def fit_statistics(
    features: NDArray[np.float32],
    architecture_features: int,
    labels: NDArray[np.float64],
    settings: PredictorSettings,
    *,
    seed: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float64]]:
    """Stage 1: embedding and proxy head fitted to statistics, float64 ``(n, statistics)``; arrays and labels' scale."""
    with reproducible(derive_seed(seed, "predictor")):
        recipe_features = features.shape[1] - architecture_features
        model = TwoHeadedMLP(architecture_features, recipe_features, settings, labels.shape[1])
        targets, scale = standardise(labels)
        inputs = torch.from_numpy(features)
        minimise(
            lambda i: nn.functional.mse_loss(model.statistics(inputs[i]), targets[i]),
            [*model.embedding.parameters(), *model.proxy.parameters()],
            samples=len(features),
            batch=settings.pretrain_batch,
            epochs=settings.pretrain_epochs,
            lr=settings.pretrain_lr,
            weight_decay=0.0,
            rng=rng,
            progress=progress,
        )
        return model.arrays(), scale


def fit_accuracies(
    features: NDArray[np.float32],
    architecture_features: int,
    accuracies: NDArray[np.float64],
    settings: PredictorSettings,
    *,
    seed: int,
    pretrained: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float64]]:
    """Stage 2: Huber loss on standardised accuracy, with the embedding frozen, then everything; arrays and scale.

    Without a `pretrained` embedding everything is fitted from the first step, for as many epochs.
    """
    inputs = torch.from_numpy(features)
    with reproducible(derive_seed(seed, "predictor", "accuracy")):
        proxies = 2 if pretrained is None else len(pretrained["proxy.bias"])
        model = TwoHeadedMLP(architecture_features, features.shape[1] - architecture_features, settings, proxies)
        kept = {key: torch.from_numpy(value) for key, value in (pretrained or {}).items()}
        model.load_state_dict({k: v for k, v in kept.items() if k.startswith(("embedding", "proxy"))}, strict=False)
        targets, scale = standardise(accuracies)
        head = [*model.hidden.parameters(), *model.output.parameters()]
        everything = [*head, *model.embedding.parameters()]
        rng = generator(seed, "fit_accuracy")
        stages = (
            (everything if pretrained is None else head, settings.frozen_epochs, settings.lr),
            (everything, settings.epochs, settings.lower_lr),
        )
        for parameters, epochs, lr in stages:
            minimise(
                lambda i: nn.functional.huber_loss(model.accuracy(inputs[i]), targets[i]),
                parameters,
                samples=len(features),
                batch=settings.batch,
                epochs=epochs,
                lr=lr,
                weight_decay=settings.weight_decay,
                rng=rng,
            )
        return model.arrays(), scale


def accuracy_head(
    weights: Mapping[str, NDArray[np.float32]], features: NDArray[Any], architecture_features: int
) -> NDArray[np.float64]:
    """What the accuracy head of such arrays says of features ``(n, features)``: standardised, float64 ``(n,)``."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    architecture, recipe = np.split(features.astype(np.float64), [architecture_features], axis=1)
    embedding = np.maximum(architecture @ w["embedding.weight"].T + w["embedding.bias"], 0)
    joined = np.concatenate([embedding, recipe], axis=1)
    hidden = np.maximum(joined @ w["hidden.weight"].T + w["hidden.bias"], 0)
    return (hidden @ w["output.weight"].T + w["output.bias"])[:, 0]
