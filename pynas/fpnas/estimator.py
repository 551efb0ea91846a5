"""What a step's architectures count for: equations 3, 4, 6 and 7 of FP-NAS.

K architectures A_k are drawn from P(A | alpha). Everything here is float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.distribution import Distribution


def sample_count(config: SupernetConfig, entropy: float) -> int:
    """K of the next step: lambda H, rounded down, and never none (equation 4), or the fixed number of PARSEC."""
    return max(1, math.floor(config.lambda_ * entropy)) if config.sampling == "adaptive" else config.samples


def hinge(costs: Mapping[str, NDArray[Any]], targets: Mapping[str, float]) -> NDArray[np.float64]:
    """C(A_k) = max(0, cost / target - 1) of each architecture (section 3.4), summed over the costs that have a target.

    costs: (K,) for each name; targets in the same units.
    """
    excess = [np.maximum(0.0, costs[name] / target - 1.0) for name, target in targets.items()]
    return np.sum(excess, axis=0) if excess else np.zeros(len(next(iter(costs.values()))))


def importance_weights(log_likelihood: Tensor, temperature: float = 1.0) -> Tensor:
    """P(y | X, A_k) / sum over k, (K,): a softmax of log-likelihoods (K,) / temperature.

    An architecture whose likelihood is not finite gets no weight; where none is, all are zero.
    """
    good = torch.isfinite(log_likelihood)
    if not good.any():
        return torch.zeros_like(log_likelihood)
    return torch.softmax(torch.where(good, log_likelihood / temperature, -math.inf), 0)


def cost_aware_weights(
    importance: Tensor, costs: NDArray[np.float64], beta: float, *, baseline: bool = False
) -> Tensor:
    """m_k of equation 7, (K,): importance less beta C(A_k) / sum over k of C(A_k).

    Where no architecture is over its target the cost's term is zero. baseline: 1 / K is subtracted from the importance
    and from the cost's share, which both add up to one. The mean over k of grad log P(A_k) is zero on average, so the
    gradient is the same on average; its noise is less. One architecture alone keeps its weight: it is reinforced.
    """
    count = len(importance)
    mean = 1 / count if baseline and count > 1 else 0.0
    weights = importance - mean * float(importance.sum())
    total = float(costs.sum())
    return weights - beta * (torch.from_numpy(costs) / total - mean) if total > 0 else weights


def alpha_loss(distribution: Distribution, genomes: NDArray[np.uint8], weights: Tensor) -> Tensor:
    """What has the gradient of equation 7 with respect to alpha: the sum over k of m_k times -log P(A_k | alpha)."""
    return -(weights * distribution.log_probability(genomes)).sum()
