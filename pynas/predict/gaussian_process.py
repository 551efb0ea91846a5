"""A Gaussian process on features of candidates, its hyperparameters tuned by the evidence.

    k(x, x') = 0.3 + v1 O O'/d1 + v2 S S'/d2 + v3 H H'/d3 + v4 P P'/d4 + v5 Matern-5/2(r) + noise [x = x']
    r^2 = sum over kinds of variables, and the statistics, of |R - R'|^2 / (its own length scale)^2

with O one-hot, S statistics, H sums, P fine ranges and R positions (`encoding.py`), each of d columns. Every variance
and length scale has a log-normal prior; the posterior density of their logarithms is climbed with exact gradients
(Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, equation 5.9). Without the Matern part it is
Bayesian linear regression with a weight for each group of features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pynas.cores import one_blas_thread
from pynas.predict.encoding import Features
from pynas.randomness import generator

Matrix = NDArray[np.float64]

CONSTANT = 0.3  # variance of the mean
_SPREAD = 1.5  # standard deviation of the priors, of logarithms
_VARIANCE, _NOISE, _LENGTH = 0.5, 0.1, 1.5  # medians of the priors; lengths times the root of the columns
_LOW, _HIGH = np.log(1e-5), np.log(1e5)

MANY = 400  # labels beyond which hyperparameters are tuned on `TUNED_ON` of them first, then a little on all
TUNED_ON = 300
MOST_TUNED = 1000  # labels beyond which the little is left out: its steps cost the third power of their number
MOST = 3000  # labels beyond which a subset of them stands for all


@dataclass(frozen=True)
class Hyperparameters:
    """Logarithms in one vector: variances of the linear groups, of the Matern part, length scales, noise variance."""

    vector: Matrix
    groups: int
    lengths: int  # 0: no Matern part

    def __post_init__(self) -> None:
        expected = self.groups + (1 + self.lengths if self.lengths else 0) + 1
        assert len(self.vector) == expected

    @property
    def variances(self) -> Matrix:
        return np.exp(self.vector[: self.groups])

    @property
    def matern(self) -> float:
        return float(np.exp(self.vector[self.groups]))

    @property
    def length_scales(self) -> Matrix:
        return np.exp(self.vector[self.groups + 1 : self.groups + 1 + self.lengths])

    @property
    def noise(self) -> float:
        return float(np.exp(self.vector[-1]))

    def replaced(self, vector: Matrix) -> Hyperparameters:
        return Hyperparameters(vector, self.groups, self.lengths)


def prior_medians(features: Features, matern: bool = True) -> Hyperparameters:
    """The medians of the priors: where the climb begins."""
    linear = [group for group in features.linear if group.shape[1]]
    lengths = [_LENGTH * np.sqrt(group.shape[1]) for group in features.lengths] if matern else []
    nonlinear = [_VARIANCE, *lengths] if lengths else []
    vector = np.log(np.array([*[_VARIANCE] * len(linear), *nonlinear, _NOISE]))
    return Hyperparameters(vector, len(linear), len(lengths))


def _linear(features: Features) -> list[Matrix]:
    return [group / np.sqrt(group.shape[1]) for group in features.linear if group.shape[1]]


def _square_distances(left: Matrix, right: Matrix) -> Matrix:
    square = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
    return np.maximum(square, 0, out=square)


def _matern(square: Matrix) -> tuple[Matrix, Matrix]:
    """Matern-5/2 of squared distances, and -6/5 of its derivative by them."""
    root = np.sqrt(5 * square)
    decay = np.exp(-root)
    slope = (1 + root) * decay
    return slope + (5 / 3) * square * decay, slope


class Evidence:
    """The log posterior density of hyperparameters given labels, up to a constant, and its gradient.

    `variance` is what is known of each label's own noise, beside the common one that is tuned. Symmetric matrices are
    kept as the vectors of their lower triangles, one after another, so that sums over groups are products.
    """

    def __init__(self, features: Features, labels: Matrix, variance: Matrix, start: Hyperparameters) -> None:
        self.labels, self.variance, self.start = labels, variance, start
        self.lower = np.tril_indices(len(labels))
        self.diagonal = self.lower[0] == self.lower[1]
        self.twice = np.where(self.diagonal, 1.0, 2.0)  # how often an entry stands in the whole matrix
        lengths = features.lengths if start.lengths else ()
        self.grams = self._packed([group @ group.T for group in _linear(features)])
        self.squares = self._packed([_square_distances(group, group) for group in lengths])

    def _packed(self, matrices: list[Matrix]) -> Matrix:
        return np.array([matrix[self.lower] for matrix in matrices]).reshape(len(matrices), len(self.twice))

    def __call__(self, vector: Matrix) -> tuple[float, Matrix]:
        from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

        at = self.start.replaced(vector)
        packed = at.variances @ self.grams + CONSTANT
        if at.lengths:
            matern, slope = _matern(at.length_scales**-2.0 @ self.squares)
            packed += at.matern * matern
        packed[self.diagonal] += at.noise + self.variance
        covariance = np.zeros((len(self.labels),) * 2, order="F")
        covariance[self.lower] = packed
        factor, failed = dpotrf(covariance, lower=1, overwrite_a=1)
        if failed:  # variances of 1e5 beside a noise of 1e-5 can be too much; the climb turns back
            return -np.inf, np.zeros(len(vector))
        alpha, _ = dpotrs(factor, self.labels, lower=1)
        value = -0.5 * self.labels @ alpha - np.log(np.diag(factor)).sum()
        inverse, _ = dpotri(factor, lower=1, overwrite_c=1)
        pull = (alpha[self.lower[0]] * alpha[self.lower[1]] - inverse[self.lower]) * (0.5 * self.twice)
        gradient = [at.variances * (self.grams @ pull)]
        if at.lengths:
            by_length = (5 / 3 * at.matern) * at.length_scales**-2.0 * (self.squares @ (pull * slope))
            gradient += [[at.matern * (pull @ matern)], by_length]
        gradient.append([at.noise * pull[self.diagonal].sum()])
        away = (vector - self.start.vector) / _SPREAD
        return float(value - 0.5 * away @ away), np.concatenate(gradient) - away / _SPREAD

    def climb(self, begin: Hyperparameters, steps: int) -> Hyperparameters:
        from scipy.optimize import minimize

        def down(vector: Matrix) -> tuple[float, Matrix]:
            value, gradient = self(vector)
            return -value, -gradient

        bounds = [(_LOW, _HIGH)] * len(begin.vector)
        found = minimize(down, begin.vector, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps})
        return begin.replaced(found.x)


class GaussianProcess:
    """A Gaussian process conditioned on labels; `fit` tunes its hyperparameters first.

    Labels and predictions are in standardised (warped) units, see `labels.py`.
    """

    def __init__(self, features: Features, labels: Matrix, variance: Matrix, at: Hyperparameters) -> None:
        from scipy.linalg import cho_solve, cholesky

        self.features, self.labels, self.variance, self.at = features, labels, variance, at
        with one_blas_thread():
            covariance = self._covariance(features)
            covariance[np.diag_indices_from(covariance)] += at.noise + variance
            self._factor = cholesky(covariance, lower=True, check_finite=False)
            self._alpha = cho_solve((self._factor, True), labels, check_finite=False)

    @classmethod
    def fit(
        cls,
        features: Features,
        labels: Matrix,
        *,
        variance: Matrix | None = None,
        matern: bool = True,
        begin: Hyperparameters | None = None,
        tune: bool = True,
        seed: int = 0,
    ) -> GaussianProcess:
        """Tune and condition on ``(n,)`` labels. `begin`: hyperparameters of a fit before, to go on from, or to keep as
        they are unless `tune`.

        Beyond `MANY` labels a random part is tuned on first, beyond `MOST_TUNED` it alone is, and beyond `MOST` the
        process knows a part of the labels only: the best third of `MOST`, and random ones. Random by rank, so that the
        order of rows does not matter.
        """
        extra = np.zeros(len(labels)) if variance is None else variance
        random = generator(seed, "gaussian process")
        if len(labels) > MOST:
            ranked = np.argsort(-labels, kind="stable")
            rest = random.permutation(ranked[MOST // 3 :])[: MOST - MOST // 3]
            rows = np.sort(np.concatenate([ranked[: MOST // 3], rest]))
            features, labels, extra = features[rows], labels[rows], extra[rows]
        start = prior_medians(features, matern)
        at = start if begin is None else begin
        with one_blas_thread():
            if not tune:
                pass
            elif len(labels) > MANY:
                ranked = np.argsort(-labels, kind="stable")
                rows = np.sort(random.permutation(ranked)[:TUNED_ON])
                at = Evidence(features[rows], labels[rows], extra[rows], start).climb(at, 40)
                if len(labels) <= MOST_TUNED:
                    at = Evidence(features, labels, extra, start).climb(at, 6)
            else:
                at = Evidence(features, labels, extra, start).climb(at, 40)
        return cls(features, labels, extra, at)

    def predict(self, features: Features, *, deviation: bool = True) -> tuple[Matrix, Matrix]:
        """Mean and standard deviation of the noiseless function, float64 ``(n,)`` each; zeros unless `deviation`."""
        from scipy.linalg import solve_triangular

        mean, spread = np.empty(len(features)), np.zeros(len(features))
        with one_blas_thread():
            for begin in range(0, len(features), _CHUNK):
                rows = slice(begin, begin + _CHUNK)
                part = features[rows]
                cross = self._covariance(part)
                mean[rows] = cross @ self._alpha
                if deviation:
                    half = solve_triangular(self._factor, cross.T, lower=True, check_finite=False, overwrite_b=True)
                    spread[rows] = np.sqrt(np.maximum(self._own(part) - (half**2).sum(axis=0), 1e-12))
        return mean, spread

    def believing(self, features: Features) -> GaussianProcess:
        """As if the candidates had been measured at what is expected of them (Ginsbourger, Le Riche & Carraro 2010,
        the kriging believer): means stay, deviations shrink around them. What is pending is counted in that way.
        """
        if len(features) == 0:
            return self
        mean, _ = self.predict(features, deviation=False)
        joined = self.features.join(features)
        variance = np.concatenate([self.variance, np.zeros(len(mean))])
        return GaussianProcess(joined, np.concatenate([self.labels, mean]), variance, self.at)

    def believer(self, features: Features) -> Callable[[int], Matrix]:
        """Called with one candidate after another, the deviations of all that remain once those are believed.

        The same as `believing` each and predicting again, by one column of the covariance a candidate (GP-BUCB,
        Desautels, Krause & Burdick 2014). Takes memory for ``len(features) x labels`` numbers.
        """
        from scipy.linalg import solve_triangular

        with one_blas_thread():
            half = solve_triangular(self._factor, self._covariance(features).T, lower=True, check_finite=False)
            variance = self._own(features) - (half**2).sum(axis=0)
        believed: list[Matrix] = []

        def believe(row: int) -> Matrix:
            nonlocal variance
            with one_blas_thread():
                column = self._between(features, features[np.array([row])])[:, 0] - half[:, row] @ half
                column -= sum(one * one[row] for one in believed)
            believed.append(column / np.sqrt(max(variance[row], 0.0) + self.at.noise))
            variance = variance - believed[-1] ** 2
            return np.sqrt(np.maximum(variance, 1e-12))

        return believe

    @cached_property
    def _weighted(self) -> Matrix:
        return self._scaled(self.features)

    def _scaled(self, features: Features) -> Matrix:
        """The linear groups side by side, such that their inner product is the linear part of the covariance."""
        groups = [np.sqrt(v) * group for v, group in zip(self.at.variances, _linear(features), strict=True)]
        return np.concatenate([np.full((len(features), 1), np.sqrt(CONSTANT)), *groups], axis=1)

    def _lengths(self, features: Features) -> Matrix:
        groups = [group / length for group, length in zip(features.lengths, self.at.length_scales, strict=True)]
        return np.concatenate(groups, axis=1)

    def _covariance(self, features: Features) -> Matrix:
        """With the labelled candidates: float64 ``(len(features), labels)``."""
        return self._between(features, self.features, self._weighted)

    def _between(self, one: Features, other: Features, weighted: Matrix | None = None) -> Matrix:
        """float64 ``(len(one), len(other))``, without noise; `weighted`: `_scaled(other)`, where it is at hand."""
        covariance = self._scaled(one) @ (self._scaled(other) if weighted is None else weighted).T
        if self.at.lengths:
            square = _square_distances(self._lengths(one), self._lengths(other))
            covariance += self.at.matern * _matern(square)[0]
        return covariance

    def _own(self, features: Features) -> Matrix:
        """The variance of each candidate before any label."""
        linear = (self._scaled(features) ** 2).sum(axis=1)
        return linear + (self.at.matern if self.at.lengths else 0.0)


_CHUNK = 4096  # candidates predicted at once: their covariance with thousands of labels should fit into memory
