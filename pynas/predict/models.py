"""Models of accuracy behind one interface: the paper's MLP, ridge, an evidence-tuned linear model, a Gaussian process.

`fit_model` fits one to labelled candidates of a domain; all predict batches of the same domain, and any can be
distilled into the arrays that the compiled core scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pynas.errors import PynasError
from pynas.predict.domain import Batch, Domain
from pynas.predict.encoding import Encoding
from pynas.predict.gaussian_process import GaussianProcess, Hyperparameters
from pynas.predict.labels import LabelWarp
from pynas.predict.settings import PredictorSettings
from pynas.randomness import derive_seed
from pynas.space.space import Space, check_seed, load_space

if TYPE_CHECKING:
    from pynas.predict.distill import Distilled

Vector = NDArray[np.float64]


class AccuracyModel(ABC):
    """A fitted model of accuracy on a domain."""

    space: Space | None = None  # whose genomes it takes: that of `fit_predictor`

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def predict(self, candidates: Batch | NDArray[np.uint8]) -> tuple[Vector, Vector]:
        """Mean and standard deviation of the accuracy of candidates, a batch or genomes: float64 ``(n,)`` each.

        The deviation is that of the noiseless accuracy; NaN from models that know none. It says nothing where all
        labels were the same. Raises PynasError for genomes without a space.
        """
        return self._predict(self._batch(candidates))

    def mean(self, candidates: Batch | NDArray[np.uint8]) -> Vector:
        """The first part of `predict`, quicker where the second costs time."""
        return self._predict_mean(self._batch(candidates))

    @abstractmethod
    def _predict(self, batch: Batch) -> tuple[Vector, Vector]: ...

    def _predict_mean(self, batch: Batch) -> Vector:
        return self._predict(batch)[0]

    def _batch(self, candidates: Batch | NDArray[np.uint8]) -> Batch:
        if isinstance(candidates, Batch):
            return candidates
        if self.space is None:
            came = type(candidates).__name__
            raise PynasError(f"predict: {came}; allowed: a Batch, as model.domain.genomes(space, genomes) gives")
        return self.domain.genomes(self.space, candidates)

    def distill(
        self, space: Space | str | Path, *, genomes: NDArray[np.uint8] | None = None, seed: int = 0
    ) -> Distilled:
        """The arrays that the compiled core scores, fitted to what this model says; see `distill.distill`."""
        from pynas.predict.distill import distill

        return distill(self, space, genomes=genomes, seed=seed)


class ProcessModel(AccuracyModel):
    """A Gaussian process on warped labels, or its linear part alone."""

    def __init__(self, encoding: Encoding, warp: LabelWarp, process: GaussianProcess) -> None:
        super().__init__(encoding.domain)
        self.encoding, self.warp, self.process = encoding, warp, process

    def _predict(self, batch: Batch) -> tuple[Vector, Vector]:
        mean, deviation = self.posterior(batch)
        inverse = self.warp.inverse
        return inverse(mean), (inverse(mean + deviation) - inverse(mean - deviation)) / 2

    def _predict_mean(self, batch: Batch) -> Vector:
        return self.warp.inverse(self.process.predict(self.encoding(batch), deviation=False)[0])

    def posterior(self, batch: Batch) -> tuple[Vector, Vector]:
        """Mean and standard deviation of the warped accuracy, in which the posterior is normal: ``(n,)`` each."""
        return self.process.predict(self.encoding(batch))

    def believing(self, pending: Batch) -> ProcessModel:
        """As if pending candidates had come out as expected; see `GaussianProcess.believing`."""
        return ProcessModel(self.encoding, self.warp, self.process.believing(self.encoding(pending)))


class RidgeModel(AccuracyModel):
    """Ridge regression on the paper's encoding and the statistics, its penalty by leave-one-out (scikit-learn).

    The baseline shown beside every predictor. Ranges are straight lines to it, lists a column for each value.
    """

    def __init__(self, domain: Domain, unlabelled: Batch, batch: Batch, labels: Vector) -> None:
        from sklearn.linear_model import RidgeCV

        super().__init__(domain)
        inputs = self._inputs(unlabelled)
        deviation = inputs.std(axis=0)
        self._scale = inputs.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
        self._ridge = RidgeCV(_ALPHAS).fit(self._scaled(batch), labels) if len(labels) > 1 else None
        self._only = float(labels[0])

    def _inputs(self, batch: Batch) -> NDArray[np.float64]:
        return np.concatenate([mlp_features(self.domain, batch), batch.statistics], axis=1, dtype=np.float64)

    def _scaled(self, batch: Batch) -> NDArray[np.float64]:
        mean, deviation = self._scale
        return (self._inputs(batch) - mean) / deviation

    def _predict(self, batch: Batch) -> tuple[Vector, Vector]:
        unknown = np.full(len(batch), np.nan)
        if self._ridge is None:
            return np.full(len(batch), self._only), unknown
        return self._ridge.predict(self._scaled(batch)), unknown


class MLPModel(AccuracyModel):
    """The paper's predictor, its embedding pretrained on the statistics of unlabelled candidates or not."""

    def __init__(
        self,
        domain: Domain,
        unlabelled: Batch | None,
        batch: Batch,
        labels: Vector,
        settings: PredictorSettings,
        seed: int,
    ) -> None:
        from pynas.predict.mlp import fit_accuracies, fit_statistics
        from pynas.randomness import generator

        super().__init__(domain)
        self._width = sum(_feature_count(domain, index) for index in _order(domain, recipe=False))
        shared: dict[str, Any] = {"architecture_features": self._width, "settings": settings, "seed": seed}
        pretrained = None
        if unlabelled is not None and domain.statistics and self._width:
            inputs = mlp_features(domain, unlabelled)
            rng = generator(seed, "pretrain")
            pretrained, _ = fit_statistics(inputs, labels=np.exp(unlabelled.statistics), rng=rng, **shared)
        self._weights, scale = fit_accuracies(
            mlp_features(domain, batch), accuracies=labels, pretrained=pretrained, **shared
        )
        self._mean, self._scale = map(float, scale)

    def _predict(self, batch: Batch) -> tuple[Vector, Vector]:
        from pynas.predict.mlp import accuracy_head

        standardised = accuracy_head(self._weights, mlp_features(self.domain, batch), self._width)
        return standardised * self._scale + self._mean, np.full(len(batch), np.nan)


_ALPHAS = np.logspace(-3, 4, 15)


def _order(domain: Domain, *, recipe: bool) -> list[int]:
    return [i for i, dimension in enumerate(domain.dimensions) if dimension.recipe == recipe]


def _feature_count(domain: Domain, index: int) -> int:
    dimension = domain.dimensions[index]
    return 1 if dimension.values is None or dimension.ordered else len(dimension.values)


def mlp_features(domain: Domain, batch: Batch) -> NDArray[np.float32]:
    """The paper's encoding (section 3.1): one-hot for lists, min-max for ranges, architecture before recipe.

    float32 ``(n, features)``; of a `Space` the same as `Space.features`.
    """
    columns = [np.empty((len(batch), 0))]
    for index in (*_order(domain, recipe=False), *_order(domain, recipe=True)):
        dimension, column = domain.dimensions[index], batch.points[:, index]
        if dimension.values is None:
            columns.append(column[:, None])
        elif (positions := dimension.positions) is not None:
            columns.append(positions[column.astype(np.intp)][:, None])
        else:
            columns.append(np.eye(len(dimension.values))[column.astype(np.intp)])
    return np.concatenate(columns, axis=1).astype(np.float32)


def _fit_process(matern: bool) -> Callable[..., AccuracyModel]:
    def fit(
        domain: Domain,
        unlabelled: Batch,
        batch: Batch,
        labels: Vector,
        *,
        variance: Vector | None = None,
        begin: Hyperparameters | None = None,
        tune: bool = True,
        encoding: Encoding | None = None,
        seed: int = 0,
        **_: Any,
    ) -> AccuracyModel:
        encoding = encoding or Encoding(domain, unlabelled)
        warp = LabelWarp.fit(labels)
        own = None if variance is None else variance * warp.slope**2
        shared: dict[str, Any] = {"variance": own, "matern": matern, "begin": begin, "tune": tune}
        return ProcessModel(encoding, warp, GaussianProcess.fit(encoding(batch), warp(labels), seed=seed, **shared))

    return fit


def _fit_ridge(domain: Domain, unlabelled: Batch, batch: Batch, labels: Vector, **_: Any) -> AccuracyModel:
    return RidgeModel(domain, unlabelled, batch, labels)


def _fit_mlp(pretrained: bool) -> Callable[..., AccuracyModel]:
    def fit(
        domain: Domain,
        unlabelled: Batch,
        batch: Batch,
        labels: Vector,
        *,
        settings: PredictorSettings | None = None,
        seed: int = 0,
        **_: Any,
    ) -> AccuracyModel:
        pool = unlabelled if pretrained else None
        return MLPModel(domain, pool, batch, labels, settings or PredictorSettings(), seed)

    return fit


UNLABELLED = 4000  # genomes over which features are standardised, where nobody says which

MODELS: dict[str, Callable[..., AccuracyModel]] = {
    "gaussian_process": _fit_process(matern=True),
    "linear": _fit_process(matern=False),
    "ridge": _fit_ridge,
    "mlp": _fit_mlp(pretrained=False),
    "pretrained_mlp": _fit_mlp(pretrained=True),
}
"""Kinds of models by name."""

_SETTINGS = ("seed", "variance", "begin", "tune", "encoding", "settings")


def fit_model(
    kind: str, domain: Domain, unlabelled: Batch, batch: Batch, accuracies: NDArray[Any], **settings: Any
) -> AccuracyModel:
    """A model of `kind` (one of `MODELS`) fitted to the accuracies of a batch.

    `unlabelled` are some hundreds or thousands of candidates as they are to be predicted: features are standardised
    over them, and a pretrained MLP learns their statistics. `accuracies` is ``(n,)``; one that is masked or no finite
    number is that of a failed training, which counts as the lowest accuracy measured. `settings`: `seed`; `variance`,
    what is known of each label's own noise, ``(n,)``, `begin`, hyperparameters to go on from, `tune`, False to keep
    those, and `encoding`, that of `unlabelled` where it is at hand (processes); `settings`, PredictorSettings (MLPs).

    Raises PynasError for an unknown kind or setting, for accuracies of another shape and where none is measured.
    """
    if not isinstance(kind, str) or kind not in MODELS:
        raise PynasError(f"model {kind!r}; allowed: {', '.join(MODELS)}")
    if unknown := [name for name in settings if name not in _SETTINGS]:
        raise PynasError(f"{kind}: unknown setting {unknown[0]!r}; allowed: {', '.join(_SETTINGS)}")
    if not isinstance(settings.get("settings") or PredictorSettings(), PredictorSettings):
        raise PynasError(f"{kind}: settings {settings['settings']!r}; allowed: PredictorSettings")
    check_seed(settings.get("seed", 0))
    labels = _vector("accuracies", accuracies, len(batch))
    if settings.get("variance") is not None:
        settings["variance"] = _vector("variance", settings["variance"], len(batch))
        if not (settings["variance"] >= 0).all():
            raise PynasError("variance: some below 0, or not a number; allowed: 0 and above")
    measured = np.isfinite(labels)
    if not measured.any():
        raise PynasError(f"{len(labels)} accuracies, none of them a finite number; a model needs at least one")
    labels[~measured] = labels[measured].min()
    return MODELS[kind](domain, unlabelled, batch, labels, **settings)


def _vector(name: str, values: Any, n: int) -> Vector:
    try:
        vector = np.ma.filled(np.ma.array(values, np.float64), np.nan)
    except (TypeError, ValueError):
        raise PynasError(f"{name}: {values!r}; allowed: numbers") from None
    if vector.shape != (n,):
        raise PynasError(f"{name} of shape {vector.shape}; allowed: ({n},), one a candidate")
    return vector


def fit_predictor(
    space: Space | str | Path,
    genomes: NDArray[np.uint8],
    accuracies: NDArray[Any],
    *,
    kind: str = "gaussian_process",
    seed: int = 0,
    **settings: Any,
) -> AccuracyModel:
    """A model fitted to the accuracies of genomes ``(n, variables)`` of a table's space; see `fit_model`.

    ``model.predict(genomes)`` gives means and deviations of others, and ``model.distill(space).predictor`` is what
    `pynas.evolve` takes.
    """
    space = space if isinstance(space, Space) else load_space(space)
    domain = Domain.of(space)
    unlabelled = domain.genomes(space, space.sample(UNLABELLED, seed=derive_seed(check_seed(seed), "unlabelled")))
    model = fit_model(kind, domain, unlabelled, domain.genomes(space, genomes), accuracies, seed=seed, **settings)
    model.space = space
    return model
