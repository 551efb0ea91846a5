"""Batch-norm, activation and squeeze-and-excite in one operator.

Shapes: N images, C channels, H x W pixels, R hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pynas.ops import reference_batch_norm as reference
from pynas.ops.batch_norm import statistics, takes
from pynas.ops.batch_norm_kernels import ACTIVATIONS, statistics_dtype
from pynas.ops.gate import Gate, gate_backward, gate_forward
from pynas.ops.library import gradient_in_channels_last, has_hooks, without_autograd
from pynas.ops.sync_batch_norm import SyncBatchNorm


def batch_norm_act_se(
    x: Tensor, norm: nn.Module, act: str, reduce: nn.Module, se_act: str, expand: nn.Module, gate: str = "hsigmoid"
) -> Tensor:
    """a gate(expand(se_act(reduce(mean of a over pixels)))) with a = act(norm(x)) (Hu et al. 2018).

    x: float (N, C, H, W). norm, act: as in `batch_norm_act`. reduce, expand: 1x1 `nn.Conv2d` with bias, C to R and R
    to C. gate: "hsigmoid" or "sigmoid". Returns a tensor like x.

    Where `batch_norm_act` has kernels this reads x three times forward (statistics, pool, gate) and x and the
    gradient twice backward: batch-norm's backward sums are linear in the gate and in the pooled gradient, so five sums
    of each image and channel, found before either is known, give them. The gate is computed in float32 (float64 for
    float64), under autocast too, and the result has x's dtype. Everything else is `reference_batch_norm`.

    Raises PynasError for another act, se_act or gate, ValueError for a single value a channel in training, as torch.
    """
    if not (takes(x, norm, act) and se_act in ACTIVATIONS and gate in reference.GATES and _both_fit(reduce, expand, x)):
        return reference.batch_norm_act_se(x, norm, act, reduce, se_act, expand, gate)
    assert isinstance(norm, nn.BatchNorm2d | SyncBatchNorm)
    mean, var, batch = statistics(x, norm)
    of_norm = norm._parameters
    weights = (of_norm["weight"], of_norm["bias"], reduce.weight, reduce.bias, expand.weight, expand.bias)
    arguments = (x, *weights, mean, var, norm.eps, ACTIVATIONS[act], se_act, gate)
    return _without_autocast(_apply, arguments, batch)


def _without_autocast(compute: Callable[..., Any], *arguments: Any) -> Any:
    """compute(*arguments) in the dtypes that the tensors have."""
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return compute(*arguments)
    return compute(*arguments)


def _apply(arguments: tuple[Any, ...], batch: bool) -> Tensor:
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in arguments[:7]):
        return _NormActSE.apply(*arguments, batch)
    with without_autograd():
        return _forward(*arguments)[0]


def _both_fit(reduce: Any, expand: Any, x: Tensor) -> bool:
    if not (_fits(reduce, x) and _fits(expand, x)):
        return False
    (hidden, given), (made, taken) = reduce.weight.shape[:2], expand.weight.shape[:2]
    return given == made == x.shape[1] and taken == hidden  # one gate for all channels is the reference's


def _fits(conv: nn.Module, x: Tensor) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.bias is not None
        and conv.weight.dtype == statistics_dtype(x)
        and not has_hooks(conv)
    )


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduce: Tensor,
    reduce_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    act: int,
    se_act: str,
    function: str,
) -> tuple[Tensor, ...]:
    """The result, then what backward needs of the gate."""
    pooled = torch.ops.pynas.batch_norm_act_pool(x, mean, var, weight, bias, eps, act)
    gate = gate_forward(pooled, (reduce, reduce_bias, expand, expand_bias), se_act, function, 1)
    y = torch.ops.pynas.batch_norm_act(x, mean, var, weight, bias, eps, act, gate.gate, None)
    return y, *gate


class _NormActSE(torch.autograd.Function):
    """Saves x and what has C, N C or N R values."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, weight, bias, reduce, _, expand, _, mean, var, eps, act, se_act, function, batch = arguments
        with without_autograd():
            y, *of_gate = _forward(*arguments[:-1])
        ctx.save_for_backward(x, weight, bias, reduce, expand, mean, var, *of_gate)
        ctx.eps, ctx.act, ctx.of_gate, ctx.batch = eps, act, (se_act, function), batch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _without_autocast(_backward, ctx, dy)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, reduce, expand, mean, var, *of_gate = ctx.saved_tensors
    gate = Gate(*of_gate)
    se_act, function = ctx.of_gate
    needs = ctx.needs_input_grad
    gradient = gradient_in_channels_last(dy)
    norm = (mean, var, weight, bias, ctx.eps, ctx.act)
    of_samples = torch.ops.pynas.batch_norm_act_gate_sums(gradient, x, *norm)
    dpooled, of_layers = gate_backward(of_samples[0], gate, (reduce, expand), se_act, function, 1)
    pixels = x.shape[2] * x.shape[3]
    dpool = dpooled.div_(pixels)
    # With a' = act'(z): dz = (dy gate + dpool) a', whose sums are those of dy a' and a' times gate and dpool.
    sums = (of_samples[1::2] * gate.gate).addcmul_(of_samples[2::2], dpool).sum(1)
    dbias, dweight = sums.unbind()
    dx = None
    if needs[0]:
        count = x.shape[0] * pixels
        dx = torch.ops.pynas.batch_norm_act_backward(
            gradient, x, *norm, gate.gate, dpool, sums if ctx.batch else None, count
        )
    return (
        dx,
        dweight if needs[1] else None,
        dbias if needs[2] else None,
        *(value if needed else None for value, needed in zip(of_layers, needs[3:7], strict=True)),
        *[None] * 7,
    )
