"""Batch-norm, activation, stochastic depth and residual in one operator: two passes forward, two backward.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pynas.ops import reference_batch_norm as reference
from pynas.ops import rules
from pynas.ops.batch_norm_kernels import ACTIVATIONS, has_kernel, statistics_dtype
from pynas.ops.library import gradient_in_channels_last, has_hooks, without_autograd
from pynas.ops.sync_batch_norm import SyncBatchNorm, over_several_ranks


def batch_norm_act(
    x: Tensor, norm: nn.Module, act: str = "identity", residual: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """act(norm(x)) keep[n] + residual.

    x: float (N, C, H, W). norm: an `nn.BatchNorm2d`, whose weights, statistics, momentum and mode count as when it is
    called. act: "identity", "relu", "hswish", "swish" or "relu6". residual: like x. keep: (N,), what each sample is
    multiplied by (stochastic depth: 0 or 1 / (1 - rate)). Returns a tensor like x.

    On CPUs, float32, bfloat16 and float64 tensors in channels_last with weights of float32 (float64) take kernels of
    one pass for the statistics and one for the rest. Everything else is `reference_batch_norm`: what `rules.batch_norm`
    says, other layouts, devices and dtypes, a norm with hooks or of another class, statistics over several ranks.
    bfloat16 is computed in float32 and rounded once. Autocast changes nothing: the result has x's dtype, as
    batch-norm's has.

    Raises PynasError for another act, ValueError for a single value a channel in training, as torch does.
    """
    alone = act == "identity" and residual is None and keep is None
    fits = takes(x, norm, act) and _fits(residual, x) and (keep is None or (keep.is_cpu and not keep.requires_grad))
    if not fits or rules.batch_norm(x.numel(), alone):
        return reference.batch_norm_act(x, norm, act, residual, keep)
    assert isinstance(norm, nn.BatchNorm2d | SyncBatchNorm)
    mean, var, batch = statistics(x, norm)
    gate = None if keep is None else keep.to(statistics_dtype(x)).view(-1, 1)
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        if residual is x:  # torch.compile takes no tensor twice
            residual = x.view_as(x)
        return _NormAct.apply(x, weight, bias, residual, gate, mean, var, norm.eps, ACTIVATIONS[act], batch)
    number = ACTIVATIONS[act]
    with without_autograd():
        return torch.ops.pynas.batch_norm_act.default(x, mean, var, weight, bias, norm.eps, number, gate, residual)


def takes(x: Tensor, norm: nn.Module, act: str) -> bool:
    """Whether kernels compute act(norm(x)) just as the modules would."""
    if not has_kernel(x) or act not in ACTIVATIONS:
        return False
    kind = type(norm)
    if kind is not nn.BatchNorm2d and (kind is not SyncBatchNorm or over_several_ranks(norm) is not None):
        return False
    features: Any = norm.num_features
    return bool(features == x.shape[1]) and _kept_plainly(norm, statistics_dtype(x)) and not has_hooks(norm)


def _kept_plainly(norm: nn.Module, dtype: torch.dtype) -> bool:
    """Whether weights and statistics are what the operators take: parameters and buffers, on the CPU, dense and of that
    dtype."""
    try:  # without nn.Module.__getattr__, which takes longer than all else here
        parameters, buffers = norm._parameters, norm._buffers
        mean, var, batches = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        for value in (parameters["weight"], parameters["bias"], mean, var):
            if value is not None and not (value.dtype is dtype and value.is_cpu and value.is_contiguous()):
                return False
    except KeyError:  # an attribute of another kind
        return False
    if mean is None or var is None:
        return mean is var
    if not norm.training:
        return True
    return batches is not None and batches.dtype is torch.int64 and batches.is_cpu and batches.numel() == 1


def statistics(x: Tensor, norm: nn.BatchNorm2d | SyncBatchNorm) -> tuple[Tensor, Tensor, bool]:
    """Mean and variance that x is normalised by, and whether they are this batch's; then the running ones follow."""
    buffers = norm._buffers
    running_mean, running_var = buffers["running_mean"], buffers["running_var"]
    if not norm.training and running_mean is not None and running_var is not None:
        return running_mean, running_var, False
    count = x.numel() // x.shape[1]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    with without_autograd():
        mean, var = torch.ops.pynas.channel_statistics.default(x)
    if norm.training and norm.track_running_stats and running_mean is not None:
        batches = buffers["num_batches_tracked"]
        torch.ops.pynas.running_statistics_(running_mean, running_var, batches, mean, var, norm.momentum, count)
    return mean, var, True


def _fits(residual: Tensor | None, x: Tensor) -> bool:
    return residual is None or (
        residual.dtype == x.dtype
        and residual.shape == x.shape
        and residual.device == x.device
        and residual.is_contiguous(memory_format=torch.channels_last)
    )


class _NormAct(torch.autograd.Function):
    """Saves x and what has C or N values; backward computes the activation's argument again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        gate: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        act: int,
        batch: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, weight, bias, gate)
        ctx.eps, ctx.act, ctx.batch = eps, act, batch
        with without_autograd():
            return torch.ops.pynas.batch_norm_act.default(x, mean, var, weight, bias, eps, act, gate, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias, gate = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        gradient = gradient_in_channels_last(dy)
        arguments = (gradient, x, mean, var, weight, bias, ctx.eps, ctx.act, gate)
        dx = dweight = dbias = sums = None
        if needs_weight or needs_bias or (needs_x and ctx.batch):
            sums = torch.ops.pynas.batch_norm_act_backward_sums(*arguments)
            dbias, dweight = sums.unbind()
        if needs_x:
            count = x.numel() // x.shape[1]
            dx = torch.ops.pynas.batch_norm_act_backward(*arguments, None, sums if ctx.batch else None, count)
        return (
            dx,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            dy if needs_residual else None,
            *[None] * 6,
        )
