"""The steps of an inverted residual block between its batch-norms, in plain torch: what the kernels have to compute.

Shapes: N images, C channels, H x W pixels; activations (N, C, H, W), statistics (C,), all of one dtype, or statistics
in float32 for activations of 16 bits, which are computed in float32 and rounded once. With Split-Attention the
depthwise convolution makes `splits` maps of each channel, side by side, and a gate of (N, C splits) has their weights.
docs/kernels.md has the steps as F1 to B5, arguments.hpp as structures; pynas.ops.mbconv makes a block of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pynas.ops.reference_batch_norm import activation


class Norm(NamedTuple):
    """act((x - mean) / sqrt(var + eps) weight + bias)."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    act: str = "identity"


class NormBackward(NamedTuple):
    """What a norm's input has for gradient, given that of its result times `gate`, (N, 1) or (N, C).

    dpool: (N, C), a gradient that each pixel of the result has beside. sums: (2, C), of dz and dz xhat over all
    `values` of a channel, with dz the gradient of act's argument; None where the statistics are constants.
    """

    norm: Norm
    gate: Tensor | None
    dpool: Tensor | None
    sums: Tensor | None
    values: float


Statistics = tuple[Tensor, Tensor] | None


def expand(x: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Statistics]:
    """F1: the 1x1 convolution of x, and the mean and biased variance of what it gives if `statistics`.

    weight: (C', C, 1, 1); the kernels' products take it in x's dtype.
    """
    y = F.conv2d(_wide(x), _wide(weight.to(x.dtype)))
    return y.to(x.dtype), _moments(y, statistics)


def depthwise(
    x: Tensor,
    norm: Norm | None,
    weight: Tensor,
    stride: int,
    padding: int,
    statistics: bool,
    expand: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """F2: the depthwise convolution of act(norm(x)), or of x; statistics.

    weight: (C splits, 1, k, k). expand: (C, C_in, 1, 1), a 1x1 convolution before the norm whose result
    is not kept: x is (N, C_in, H, W).
    """
    given = _expanded(x, expand)
    a = _wide(given) if norm is None else _activated(given, norm)
    y = F.conv2d(a, weight.to(a.dtype), None, stride, padding, groups=a.shape[1])
    return y.to(x.dtype), _moments(y, statistics)


def depthwise_applied(
    x: Tensor,
    norm: Norm | None,
    weight: Tensor,
    stride: int,
    padding: int,
    after: Norm,
    pool: bool,
    expand: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Inference: act(after(...)) of what `depthwise` gives, not rounded in between; its mean over the pixels of each
    image, (N, C splits), if `pool`.
    """
    given = _expanded(x, expand)
    a = _wide(given) if norm is None else _activated(given, norm)
    y = F.conv2d(a, weight.to(a.dtype), None, stride, padding, groups=a.shape[1])
    y = _activated(y, after)
    return y.to(x.dtype), y.mean((2, 3)) if pool else None


def project_applied(x: Tensor, gate: Tensor | None, weight: Tensor, after: Norm, residual: Tensor | None) -> Tensor:
    """Inference: after(...) of what `project` gives of x gate, not rounded in between, with the residual added."""
    y = F.conv2d(_wide(_gated(_wide(x), gate).to(x.dtype)), _wide(weight.to(x.dtype)))
    y = _activated(y, after)
    return (y if residual is None else y + residual).to(x.dtype)


def pooled(x: Tensor, norm: Norm) -> Tensor:
    """F3: the mean of act(norm(x)) over the pixels of each image, (N, C)."""
    return _activated(x, norm).mean((2, 3))


def project(x: Tensor, norm: Norm, gate: Tensor | None, weight: Tensor, statistics: bool) -> tuple[Tensor, Statistics]:
    """F4: the 1x1 convolution of act(norm(x)) gate, gate (N, C) or None for ones; statistics."""
    a = _gated(_activated(x, norm), gate).to(x.dtype)
    return expand(a, weight, statistics)


def project_backward(
    d: Tensor, y: Tensor, after: NormBackward, weight: Tensor, x: Tensor, norm: Norm, splits: int
) -> tuple[Tensor, Tensor]:
    """B2: the gradient da of what `project` multiplies, of that of what follows y's norm; sums (5, N, C splits) of it.

    They are over pixels, of da a, da a', a', da a' xhat, a' xhat, with a = act(norm(x)) and a' = act'(norm(x)): the
    gradients of the gate and of the norm before it are linear in them. weight: (C', C splits, 1, 1), the same for a
    channel's splits, and so is da, which is returned once for them, (N, C, H, W).
    """
    dy = _gradient(d, y, after).to(x.dtype)
    da = F.conv_transpose2d(_wide(dy), _wide(weight.to(x.dtype)))
    slope, xhat = _slope(x, norm), _standardised(x, norm)
    along = da * slope
    terms = (da * _activated(x, norm), along, slope, along * xhat, slope * xhat)
    return da[:, ::splits].to(x.dtype), torch.stack([term.sum((2, 3)) for term in terms])


def project_weight_backward(
    d: Tensor, y: Tensor, after: NormBackward, x: Tensor, norm: Norm, gate: Tensor | None
) -> Tensor:
    """B2: the gradient of `project`'s weight, (C', C, 1, 1)."""
    return _outer(_gradient(d, y, after).to(x.dtype), _gated(_activated(x, norm), gate).to(x.dtype))


def depthwise_backward(
    d: Tensor,
    y: Tensor,
    after: NormBackward,
    weight: Tensor,
    x: Tensor,
    norm: Norm | None,
    stride: int,
    padding: int,
    expand: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """B4: of the gradient of what follows y's norm: dz, that of norm(x), or of x without a norm; that of the weight;
    and the sums (2, C) of dz and dz xhat (dz x). d: (N, C, H', W'), of the weighted sum of a channel's maps. expand: as
    in `depthwise`.
    """
    given = _expanded(x, expand)
    channels = given.shape[1]
    splits = y.shape[1] // channels
    dy = _gradient(d if splits == 1 else d.repeat_interleave(splits, 1), y, after)
    a = _wide(given) if norm is None else _activated(given, norm)
    da, dweight, _ = torch.ops.aten.convolution_backward(
        dy,
        a,
        weight.to(a.dtype),
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        False,
        [0, 0],
        channels,
        [True, True, False],
    )
    dz = da if norm is None else da * _slope(given, norm)
    xhat = _wide(given) if norm is None else _standardised(given, norm)
    return dz.to(x.dtype), dweight, torch.stack([dz.sum((0, 2, 3)), (dz * xhat).sum((0, 2, 3))])


def expand_backward(d: Tensor, y: Tensor, after: NormBackward, weight: Tensor, residual: Tensor | None) -> Tensor:
    """B5: the gradient of `expand`'s x, of that of what follows y's norm; residual is added."""
    dx = F.conv_transpose2d(_wide(_gradient(d, y, after).to(y.dtype)), _wide(weight.to(y.dtype)))
    return (dx if residual is None else dx + residual).to(y.dtype)


def expand_weight_backward(d: Tensor, y: Tensor, after: NormBackward, x: Tensor) -> Tensor:
    """B5: the gradient of `expand`'s weight, (C', C, 1, 1)."""
    return _outer(_gradient(d, y, after).to(x.dtype), x)


def gram(left: Tensor, left_centre: Tensor | None, right: Tensor, right_centre: Tensor | None) -> Tensor:
    """Sums over pixels of (left - left_centre) (right - right_centre)^T, (C, C'), each difference in left's dtype."""

    def centred(x: Tensor, centre: Tensor | None) -> Tensor:
        return x if centre is None else (_wide(x) - _by_channel(centre)).to(x.dtype)

    return _outer(centred(left, left_centre), centred(right, right_centre))[:, :, 0, 0]


def expanded_backward(
    dz: Tensor, x: Tensor, centre: Tensor, weight: Tensor, level: Tensor, residual: Tensor | None
) -> Tensor:
    """B5 where the expansion is not kept: weight (dz, x - centre) + level + residual, a tensor like x.

    weight: (C_in, C + C_in), its columns in that order.
    """
    both = torch.cat([_wide(dz), (_wide(x) - _by_channel(centre)).to(x.dtype).to(centre.dtype)], 1)
    dx = F.conv2d(both, _wide(weight.to(x.dtype))[:, :, None, None]) + _by_channel(level)
    return (dx if residual is None else dx + residual).to(x.dtype)


def norm_act(x: Tensor, norm: Norm, gate: Tensor | None, residual: Tensor | None) -> Tensor:
    """F5: act(norm(x)) gate + residual, gate (N, 1) or (N, C)."""
    y = _gated(_activated(x, norm), gate)
    return (y if residual is None else y + residual).to(x.dtype)


def norm_act_backward_sums(d: Tensor, x: Tensor, norm: Norm, gate: Tensor | None) -> Tensor:
    """B1: sums (2, C) of dz and dz xhat, of the gradient d of `norm_act`'s result."""
    dz = _gated(_wide(d), gate) * _slope(x, norm)
    return torch.stack([dz.sum((0, 2, 3)), (dz * _standardised(x, norm)).sum((0, 2, 3))])


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _expanded(x: Tensor, expand: Tensor | None) -> Tensor:
    return x if expand is None else F.conv2d(_wide(x), _wide(expand.to(x.dtype)))


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None] if values.dim() == 1 else values[:, :, None, None]


def _gated(a: Tensor, gate: Tensor | None) -> Tensor:
    return a if gate is None else a * _by_channel(gate)


def _moments(y: Tensor, wanted: bool) -> Statistics:
    if not wanted:
        return None
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    return mean, var


def _standardised(x: Tensor, norm: Norm) -> Tensor:
    return (_wide(x) - _by_channel(norm.mean)) * _by_channel(torch.rsqrt(norm.var + norm.eps))


def _argument(x: Tensor, norm: Norm) -> Tensor:
    z = _standardised(x, norm)
    z = z if norm.weight is None else z * _by_channel(norm.weight)
    return z if norm.bias is None else z + _by_channel(norm.bias)


def _activated(x: Tensor, norm: Norm) -> Tensor:
    return activation(norm.act)(_argument(x, norm))


def _slope(x: Tensor, norm: Norm) -> Tensor:
    """act'(norm(x))."""
    z = _argument(x, norm)
    if norm.act == "relu":
        return (z > 0).to(z.dtype)
    if norm.act == "relu6":
        return ((z > 0) & (z < 6)).to(z.dtype)
    if norm.act == "hswish":
        return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5))
    if norm.act == "swish":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    return torch.ones_like(z)


def _gradient(d: Tensor, y: Tensor, after: NormBackward) -> Tensor:
    """That of y."""
    norm = after.norm
    dz = _gated(_wide(d), after.gate)
    if after.dpool is not None:
        dz = dz + _by_channel(after.dpool)
    dz = dz * _slope(y, norm)
    if after.sums is not None:
        total, along = (_by_channel(row / after.values) for row in after.sums)
        dz = dz - total - _standardised(y, norm) * along
    scale = torch.rsqrt(norm.var + norm.eps)
    return dz * _by_channel(scale if norm.weight is None else scale * norm.weight)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("nahw,nbhw->ab", _wide(left), _wide(right))[:, :, None, None]
