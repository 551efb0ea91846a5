"""Labels as a Gaussian process likes them: standardised, half normal scores, failures near the rest; and back again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HALF = 40  # labels at which normal scores weigh as much as the labels themselves
_LOW = 2.5  # robust standard deviations below the median where labels begin to be compressed
_LARGEST = -1e300  # labels below count as this one
_TO_DEVIATION = 1.4826  # of a normal distribution, by its median absolute deviation


@dataclass(frozen=True)
class LabelWarp:
    """A monotone map fitted to N labels: ``(1 - b) z + b normal_score``, b = N / (N + 40), z standardised.

    Before that, labels below median - 2.5 robust standard deviations are compressed like a logarithm, so that trainings
    that went wrong do not bend what is learnt of the others. `knots` are labels and warped labels, ascending; between
    them the map is linear, and it goes on beyond them with the slope of all of them together.
    """

    knots: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def fit(cls, labels: NDArray[np.float64]) -> LabelWarp:
        """`labels` are finite, float64 ``(n,)``, at least one."""
        from scipy.special import ndtri
        from scipy.stats import rankdata

        values, inverse = np.unique(labels, return_inverse=True)
        compressed = _compress(labels)
        deviation = compressed.std()
        z = (compressed - compressed.mean()) / (deviation if deviation > 0 else 1.0)
        share = len(labels) / (len(labels) + _HALF)
        score = ndtri((rankdata(labels) - 0.5) / len(labels))
        warped = np.empty(len(values))
        warped[inverse] = (1 - share) * z + share * score
        return cls((values, warped))

    def __call__(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        return _interpolate(labels, *self.knots, self.slope)

    def inverse(self, warped: NDArray[np.float64]) -> NDArray[np.float64]:
        return _interpolate(warped, *self.knots[::-1], 1 / self.slope)

    @property
    def slope(self) -> float:
        """Warped units per unit of the label, over all; 1 for a single label."""
        labels, warped = self.knots
        return float((warped[-1] - warped[0]) / (labels[-1] - labels[0])) if len(labels) > 1 else 1.0


def _compress(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    median = np.median(labels)
    deviation = _TO_DEVIATION * np.median(np.abs(labels - median))
    if deviation == 0:
        return labels
    low = median - _LOW * deviation
    # Without a difference of large numbers: labels of diverged trainings may be of any size.
    excess = np.maximum(np.minimum((low - np.maximum(labels, _LARGEST)) / deviation, -_LARGEST), 0)
    return np.where(labels < low, low - deviation * np.log1p(excess), labels)


def _interpolate(
    values: NDArray[np.float64], inputs: NDArray[np.float64], outputs: NDArray[np.float64], slope: float
) -> NDArray[np.float64]:
    inside = np.interp(values, inputs, outputs)
    beyond = np.minimum(values - inputs[0], 0) + np.maximum(values - inputs[-1], 0)
    return inside + slope * beyond
