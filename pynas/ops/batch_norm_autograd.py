"""Gradients of batch-norm's operators themselves, made of the operators and of what has C or N C values.

M = N H W values a channel; xhat = (x - mean) / sqrt(var + eps); z = xhat weight + bias; a = act(z), a' = act'(z). Each
operator is a function of its arguments alone, statistics included: batch_norm_act of this batch's channel_statistics
has batch-norm's gradient because both are differentiated. `batch_norm_act` and `batch_norm_act_se`, the functions, know
that the statistics are the batch's: two passes backward instead of four, and less host time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pynas.ops.library import check_gradient, gradient_in_channels_last


def register() -> None:
    for name, backward, setup_context in (
        ("channel_statistics", _statistics_backward, _save_statistics),
        ("batch_norm_act", _norm_act_backward, _save_norm),
        ("batch_norm_act_pool", _pool_backward, _save_norm),
    ):
        torch.library.register_autograd(f"pynas::{name}", backward, setup_context=setup_context)


def _save_statistics(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _statistics_backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> Tensor:
    """dx = (x - mean) 2 dvar / M + dmean / M: a normalisation, in one pass and rounded once."""
    x, mean = ctx.saved_tensors
    count = x.numel() // x.shape[1]
    scale, shift = dvar * 2.0 / count, dmean / count  # not 2 / count, for there may be no values
    return torch.ops.pynas.batch_norm_act(x, mean, torch.ones_like(mean), scale, shift, 0.0, 0, None, None)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """inputs: x, mean, var, weight, bias, eps, act, and for batch_norm_act gate and residual."""
    ctx.save_for_backward(*inputs[:5], *inputs[7:8])
    ctx.eps, ctx.act = inputs[5:7]


@once_differentiable
def _norm_act_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *norm, gate = ctx.saved_tensors
    x = norm[0]
    needs = ctx.needs_input_grad
    gradient = gradient_in_channels_last(dy)
    arguments = (gradient, *norm, ctx.eps, ctx.act)
    dx = dgate = sums = None
    if needs[7]:  # the pass that gives the gate's gradient gives each image's sums too
        found = torch.ops.pynas.batch_norm_act_gate_sums(*arguments)
        dgate = found[0] if gate.shape[1] == x.shape[1] else found[0].sum(1, keepdim=True)
        sums = (found[1::2] * gate).sum(1)
    elif any(needs[1:5]):
        sums = torch.ops.pynas.batch_norm_act_backward_sums(*arguments, gate)
    if needs[0]:
        dx = torch.ops.pynas.batch_norm_act_backward(*arguments, gate, None, None, 1.0)
    return dx, *_of_channels(ctx, sums), None, None, dgate, dy if needs[8] else None


@once_differentiable
def _pool_backward(ctx: Any, dpooled: Tensor) -> tuple[Tensor | None, ...]:
    """Each pixel's activation has the gradient dpooled / (H W), and no other."""
    check_gradient(dpooled)
    norm = ctx.saved_tensors
    x = norm[0]
    needs = ctx.needs_input_grad
    dpool = dpooled.contiguous() / (x.shape[2] * x.shape[3])
    dx = sums = None
    if any(needs[1:5]):  # x stands for dy, whose sums are not looked at
        found = torch.ops.pynas.batch_norm_act_gate_sums(x, *norm, ctx.eps, ctx.act)
        sums = (found[2::2] * dpool).sum(1)
    if needs[0]:
        nothing = torch.zeros_like(x)
        dx = torch.ops.pynas.batch_norm_act_backward(nothing, *norm, ctx.eps, ctx.act, None, dpool, None, 1.0)
    return dx, *_of_channels(ctx, sums), None, None


def _of_channels(ctx: Any, sums: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of mean, var, weight and bias, (C,) each, of the sums of dz and dz xhat:

    dbias = sum(dz),  dweight = sum(dz xhat),
    dmean = -sum(dz) weight / sqrt(var + eps),  dvar = -sum(dz xhat) weight / (2 (var + eps))
    """
    if sums is None:
        return None, None, None, None
    _, _, var, weight, *_ = ctx.saved_tensors
    needs_mean, needs_var, needs_weight, needs_bias = ctx.needs_input_grad[1:5]
    dbias, dweight = sums.unbind()
    dmean = dvar = None
    if needs_mean or needs_var:
        scale = torch.rsqrt(var + ctx.eps)
        slope = scale if weight is None else scale * weight
        dmean = -dbias * slope if needs_mean else None
        dvar = dweight * slope * scale * -0.5 if needs_var else None
    return dmean, dvar, dweight if needs_weight else None, dbias if needs_bias else None
