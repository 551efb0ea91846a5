"""The expansion and its batch-norm without the expanded tensor y1 = W x, of which everything is linear in x.

Shapes: C_in channels of x, C of y1, n pixels of this rank, M of all ranks. With mu and Cov the mean and the covariance
of x over this rank's pixels (Gram matrix of x - mu, over n):

    mean(y1) = W mu,  var(y1) = diag(W Cov W^T)

Centred, for what a Gram matrix of x itself loses where means are large. W is rounded to x's dtype, as products take it.
All that is of W's size or less is computed in float64.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pynas.ops.reference_mbconv import NormBackward


class Moments(NamedTuple):
    """Mean (C_in,) and covariance (C_in, C_in) of x on this rank."""

    mean: Tensor
    covariance: Tensor


def rounded(weight: Tensor, x: Tensor, wide: torch.dtype) -> Tensor:
    """W, (C, C_in)."""
    return weight.to(x.dtype).flatten(1).to(wide)


def moments(steps: ModuleType, x: Tensor, wide: torch.dtype) -> Moments:
    """Of x (N, C_in, H, W); zeros where it is empty."""
    n = x.numel() // x.shape[1]
    if n == 0:
        return Moments(x.new_zeros(x.shape[1], dtype=wide), x.new_zeros(x.shape[1], x.shape[1], dtype=wide))
    mean = x.mean((0, 2, 3), dtype=wide)
    return Moments(mean, steps.gram(x, mean, x, mean) / n)


def statistics(of: Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of y1, (C,) each. weight: W."""
    wide = weight.double()  # its sums cancel; and a GPU's float32 products may be of TF32
    var = ((wide @ of.covariance.double()) * wide).sum(1).clamp_(min=0.0)
    return (wide @ of.mean.double()).to(weight.dtype), var.to(weight.dtype)


def backward(
    steps: ModuleType,
    dz: Tensor,
    total: Tensor,
    after: NormBackward,
    x: Tensor,
    given: Tensor,
    of: Moments | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight `given`, of that of norm(y1), dz (N, C, H, W); residual is added to dx's.

    total: the sum of dz over this rank's pixels. after: y1's norm, with the sums over all ranks. of: None where the
    norm's statistics are constants.

    With s = gamma / deviation, xhat = (y1 - mean) / deviation, m1 and m2 the means of dz and of dz xhat over all ranks:

        dy1 = s (dz - m1 - xhat m2),  dx = W^T dy1,  dW = sum of dy1 x^T

    and as xhat = (W (x - mu) + delta) / deviation, delta = W mu - mean (zero for one rank), with t = s m2 / deviation:

        dx = W^T diag(s) dz - W^T diag(t) W (x - mu) - W^T (s m1 + t delta)
        dW = diag(s) sum of dz (x - mu)^T - n diag(t) W Cov + (sum of dy1) mu^T
        sum of dy1 = s (sum of dz - n m1) - n t delta
    """
    norm, dtype = after.norm, after.norm.mean.dtype
    weight, mean, var, total = (value.double() for value in (rounded(given, x, dtype), norm.mean, norm.var, total))
    inverse = torch.rsqrt(var + norm.eps)
    scale = inverse if norm.weight is None else inverse * norm.weight
    transposed = (weight * scale[:, None]).t()
    if of is None or after.sums is None:
        nothing = torch.zeros_like(weight[0], dtype=dtype)
        both = torch.cat([transposed, weight.new_zeros(weight.shape[1], weight.shape[1])], 1)
        dx = steps.expanded_backward(dz, x, nothing, both.to(dtype), nothing, residual)
        dweight = scale[:, None] * steps.gram(dz, None, x, None)
        return dx, dweight.to(dtype).view(given.shape)
    n = x.numel() // x.shape[1]
    first, second = after.sums.double() / after.values
    slope = scale * second * inverse
    centre, covariance = of.mean.double(), of.covariance.double()
    delta = weight @ centre - mean
    both = torch.cat([transposed, -(weight * slope[:, None]).t() @ weight], 1)
    level = -(scale * first + slope * delta) @ weight
    dx = steps.expanded_backward(dz, x, of.mean, both.to(dtype), level.to(dtype), residual)
    of_dy = scale * (total - n * first) - n * slope * delta
    dweight = scale[:, None] * steps.gram(dz, None, x, of.mean)
    dweight -= (n * slope)[:, None] * (weight @ covariance)
    return dx, (dweight + torch.outer(of_dy, centre)).to(dtype).view(given.shape)
