"""Split-Attention's two passes over activations (ResNeSt, Zhang et al. 2020), each read and written once.

Shapes: x (N, C splits, H, W), a channel's splits side by side; pooled (N, C); weights (N, C, splits). Kernels are for
channels_last x on a CPU in float32, bfloat16 (computed in float32, rounded once) and float64, and for 1, 2 or 4 splits.
Results have x's dtype, under autocast too: `weights` are taken in x's dtype, and what small layers make of the pooled
values is autocast's business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pynas.ops import library
from pynas.ops import reference_split_attention as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SPLITS = (1, 2, 4)


def split_attention_pool(x: Tensor, splits: int) -> Tensor:
    """The mean over H and W of the sum over a channel's splits: (N, C).

    Raises RuntimeError where the number of x's channels is not a multiple of splits.
    """
    if not _has_kernel(x, splits):
        return reference.split_attention_pool(x, splits)
    if torch.compiler.is_compiling():
        return torch.ops.pynas.split_attention_pool(x, splits)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _pool(x, splits)
    return _Pool.apply(x, splits)


def split_attention_combine(x: Tensor, weights: Tensor) -> Tensor:
    """The sum over a channel's splits of x times the split's weight: (N, C, H, W), channels_last where x is.

    Raises RuntimeError for weights of another shape.
    """
    fits = weights.dim() == 3 and weights.device == x.device and x.dim() == 4
    if not (fits and _has_kernel(x, weights.shape[2])):
        return reference.split_attention_combine(x, weights)
    if weights.shape[:2] != (x.shape[0], x.shape[1] // weights.shape[2]):
        return reference.split_attention_combine(x, weights)  # weights for all images, or what is wrong with them
    weights = weights.to(x.dtype).contiguous()
    if torch.compiler.is_compiling():
        return torch.ops.pynas.split_attention_combine(x, weights)
    if not (torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad)):
        return _combine(x, weights)
    return _Combine.apply(x, weights)


def _has_kernel(x: Tensor, splits: int) -> bool:
    return (
        library.fused()
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and splits in SPLITS
        and x.dim() == 4
        and x.shape[1] > 0
        and x.shape[1] % splits == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


# Eager use, by autograd functions: less host time than registered autograd takes.


def _pool(x: Tensor, splits: int) -> Tensor:
    with library.without_autograd():
        return torch.ops.pynas.split_attention_pool.default(x, splits)


def _combine(x: Tensor, weights: Tensor) -> Tensor:
    with library.without_autograd():
        return torch.ops.pynas.split_attention_combine.default(x, weights)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, splits: int) -> Tensor:
        ctx.splits, ctx.size = splits, x.shape[2:]
        return _pool(x, splits)

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor) -> tuple[Tensor, None]:
        return _pool_backward(ctx, dpooled)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return _combine(x, weights)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _combine_backward(ctx, dy)


@once_differentiable
def _pool_backward(ctx: Any, dpooled: Tensor) -> tuple[Tensor, None]:
    library.check_gradient(dpooled)
    return torch.ops.pynas.split_attention_pool_backward(dpooled.contiguous(), ctx.splits, *ctx.size), None


@once_differentiable
def _combine_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients come from one pass; one that is not needed costs little beside the other."""
    dy = library.gradient_in_channels_last(dy)
    dx, dweights = torch.ops.pynas.split_attention_combine_backward(dy, *ctx.saved_tensors)
    return dx if ctx.needs_input_grad[0] else None, dweights if ctx.needs_input_grad[1] else None


# The operators' fakes and autograd, for torch.compile.


def _register() -> torch.library.Library:
    found = torch.library.Library("pynas", "FRAGMENT")
    for name, fake in (
        ("split_attention_pool", _fake_pool),
        ("split_attention_pool_backward", _fake_pool_backward),
        ("split_attention_combine", _fake_combine),
        ("split_attention_combine_backward", _fake_combine_backward),
    ):
        torch.library.register_fake(f"pynas::{name}", library.of_one_device(fake), lib=found)
    torch.library.register_autograd("pynas::split_attention_pool", _pool_backward, setup_context=_setup_pool, lib=found)
    torch.library.register_autograd(
        "pynas::split_attention_combine", _combine_backward, setup_context=_setup_combine, lib=found
    )
    return found


def _empty(like: Tensor, *size: Any) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _fake_pool(x: Tensor, splits: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // splits))


def _fake_pool_backward(dpooled: Tensor, splits: int, h: Any, w: Any) -> Tensor:
    return _empty(dpooled, dpooled.shape[0], dpooled.shape[1] * splits, h, w)


def _fake_combine(x: Tensor, weights: Tensor) -> Tensor:
    return _empty(x, x.shape[0], weights.shape[1], *x.shape[2:])


def _fake_combine_backward(dy: Tensor, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(x, *x.shape), torch.empty_like(weights)


def _setup_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.splits, ctx.size = inputs[1], inputs[0].shape[2:]


def _setup_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_operators = _register() if library.available() else None
