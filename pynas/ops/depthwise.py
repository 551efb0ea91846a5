"""The depthwise convolution: one kernel a channel, or a few.

Shapes: x (N, C, H, W), weight (C m, 1, kh, kw), output (N, C m, H', W'); m maps a channel, side by side. dtypes of the
kernels: float32, bfloat16 (computed in float32, rounded once), float64. The gradients accept what the output accepts.

Under autocast x and weight are cast to its dtype, as those of torch's convolution are. Padding is zeros, so that where
it meets an infinite weight or gradient the product is NaN, as in torch's float64; torch's float32 leaves padding out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pynas.ops import library, rules
from pynas.ops.reference_depthwise import depthwise_conv2d as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
WIDEST = 7  # columns of a kernel, for grad-weight

_convolution_backward = torch.ops.aten.convolution_backward.default


def depthwise_conv2d(
    x: Tensor, weight: Tensor, stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0
) -> Tensor:
    """`conv2d(x, weight, None, stride, padding, groups=C)`; fused for channels_last x on a CPU, whose output is
    channels_last too.

    Raises RuntimeError for what `torch.nn.functional.conv2d` refuses, and for strides and paddings that are not an int
    or two.
    """
    stride, padding = _pair("stride", stride), _pair("padding", padding)
    if not _has_kernel(x, weight, stride, padding):
        if weight.device.type != x.device.type:  # one on the meta device torch takes, and returns no values
            _refuse("depthwise_conv2d", "weight", f"on {weight.device}", f"the device of x, {x.device}")
        return reference(x, weight, stride, padding)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if dtype not in DTYPES:
            return reference(x, weight, stride, padding)
        if x.dtype != torch.float64:
            x, weight = x.to(dtype), weight.to(dtype)
    if x.dtype != weight.dtype or rules.depthwise(weight.dtype, max(weight.shape[2:])):
        return reference(x, weight, stride, padding)  # which says so where something is wrong with it
    if torch.compiler.is_compiling():
        return torch.ops.pynas.depthwise_conv2d(x, weight, stride, padding)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Convolution.apply(x, weight, stride, padding)
    return forward(x, weight, stride, padding)


def _pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    try:
        first, second = value
        return operator.index(first), operator.index(second)
    except (TypeError, ValueError):
        _refuse("depthwise_conv2d", name, repr(value), "an int, or two")


def _has_kernel(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Whether x is laid out for the kernels and the numbers are such as a convolution has."""
    if not (library.fused() and x.is_cpu and weight.is_cpu) or x.dtype not in DTYPES or weight.dtype not in DTYPES:
        return False
    if (
        x.dim() != 4
        or weight.dim() != 4
        or weight.shape[1] != 1
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return False
    channels, maps, (kh, kw) = x.shape[1], weight.shape[0], weight.shape[2:]
    if channels == 0 or maps == 0 or maps % channels or not 1 <= kw <= WIDEST or kh < 1:
        return False
    return (
        min(stride) >= 1
        and min(padding) >= 0
        and x.shape[2] + 2 * padding[0] >= kh
        and x.shape[3] + 2 * padding[1] >= kw
    )


# The three parts, each by whichever is faster.


def forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    if rules.depthwise_forward(x.dtype):
        return reference(x, weight, stride, padding).contiguous(memory_format=torch.channels_last)
    return torch.ops.pynas.depthwise_forward(x, weight.contiguous(), *stride, *padding)


def grad_input(dy: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """dy: channels_last. Of x only the shape is taken."""
    channels, maps = x.shape[1], weight.shape[0]
    if rules.depthwise_forward(x.dtype) or maps != channels:
        wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        found = _convolution_backward(
            dy.to(wide), _shape_of(x, wide), weight.to(wide), None, stride, padding, (1, 1), False, (0, 0), channels,
            (True, False, False),
        )[0]  # fmt: skip
        return library.in_channels_last(found.to(x.dtype))
    return torch.ops.pynas.depthwise_grad_input(dy, weight.contiguous(), *x.shape[2:], *stride, *padding)


def _shape_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else torch.empty_like(x, dtype=dtype)


def grad_weight(dy: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """dy, x: channels_last. Of weight only the shape is taken."""
    return torch.ops.pynas.depthwise_grad_weight(dy, x, *weight.shape[2:], *stride, *padding)


def _grad_wide_weight(
    dy: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """grad_weight by torch, for kernels wider than ours."""
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    found = _convolution_backward(
        dy.to(wide), x.to(wide), weight.to(wide), None, stride, padding, (1, 1), False, (0, 0), x.shape[1],
        (False, True, False),
    )[1]  # fmt: skip
    return found.to(x.dtype).contiguous()


class _Convolution(torch.autograd.Function):
    """For eager use: a call takes some 60 us less host time than one of an operator with registered autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return forward(x, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        dy = library.gradient_in_channels_last(dy)
        dx = grad_input(dy, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        dweight = grad_weight(dy, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None


# The same as operators, for torch.compile.


def _register() -> torch.library.Library:
    found = torch.library.Library("pynas", "FRAGMENT")
    found.define("depthwise_conv2d(Tensor x, Tensor weight, int[2] stride, int[2] padding) -> Tensor")
    found.define(
        "depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor weight, int[2] stride, int[2] padding, bool[2] wanted)"
        " -> (Tensor, Tensor)"
    )
    found.impl("depthwise_conv2d", _forward, "CPU")
    found.impl("depthwise_conv2d_backward", _backward, "CPU")
    fakes: dict[str, Callable[..., Any]] = {
        "depthwise_conv2d": _fake_conv2d,
        "depthwise_conv2d_backward": _fake_backward,
    }
    if library.available():
        fakes |= {
            "depthwise_forward": _fake_forward,
            "depthwise_grad_input": _fake_grad_input,
            "depthwise_grad_weight": _fake_grad_weight,
        }
    for name, fake in fakes.items():
        torch.library.register_fake(f"pynas::{name}", library.of_one_device(fake), lib=found)
    torch.library.register_autograd(
        "pynas::depthwise_conv2d", _autograd_backward, setup_context=_setup_context, lib=found
    )
    return found


def _check(op: str, x: Tensor, weight: Tensor, stride: Any, padding: Any) -> None:
    """Raises RuntimeError, as the operators in C++ do; of some of it torch's convolution ends the process."""
    for name, tensor, allowed in (
        ("x", x, "(N, C, H, W)"),
        ("weight", weight, "(maps, 1, kernel height, kernel width)"),
    ):
        if tensor.dim() != 4:
            _refuse(op, name, f"of shape {tuple(tensor.shape)}", allowed)
        if tensor.dtype not in DTYPES:
            _refuse(op, name, _name(tensor.dtype), "float32, bfloat16, float64")
    if weight.dtype != x.dtype:
        _refuse(op, "weight", _name(weight.dtype), "the dtype of x")
    if weight.shape[1] != 1 or min(weight.shape[2:]) < 1:
        _refuse(op, "weight", f"of shape {tuple(weight.shape)}", "(maps, 1, kernel height, kernel width), above 0")
    channels, maps = x.shape[1], weight.shape[0]
    if channels < 1 or maps < 1 or maps % channels:
        allowed = "a multiple of the number of channels, both above 0"
        _refuse(op, "the number of maps", f"{maps} of {channels} channels", allowed)
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0)):
        if len(pair) != 2 or not all(least <= value < 2**31 for value in pair):
            _refuse(op, name, str(tuple(pair)), f"two of {least} to {2**31 - 1}")


def _refuse(op: str, argument: str, came: str, allowed: str) -> NoReturn:
    raise RuntimeError(f"pynas::{op}: {argument} is {came}; allowed: {allowed}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    _check("depthwise_conv2d", x, weight, stride, padding)
    return forward(library.in_channels_last(x), weight, stride, padding)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """dx and dweight; of one that is not wanted an empty tensor."""
    op = "depthwise_conv2d_backward"
    _check(op, x, weight, stride, padding)
    size = (x.shape[0], weight.shape[0], *_output_size(x, weight, stride, padding))
    if dy.shape != size or dy.dtype != x.dtype:
        _refuse(op, "dy", f"{_name(dy.dtype)} of shape {tuple(dy.shape)}", f"the dtype of x, of shape {size}")
    dy, x = library.gradient_in_channels_last(dy), library.in_channels_last(x)
    of_weight = grad_weight if weight.shape[3] <= WIDEST else _grad_wide_weight
    return (
        grad_input(dy, x, weight, stride, padding) if wanted[0] else x.new_empty(0),
        of_weight(dy, x, weight, stride, padding) if wanted[1] else weight.new_empty(0),
    )


def _empty(like: Tensor, *size: Any) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _output_size(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> list[int]:
    return [(x.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i]) // stride[i] + 1 for i in range(2)]


def _fake(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
    return _empty(x, x.shape[0], weight.shape[0], *_output_size(x, weight, stride, padding))


def _fake_conv2d(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
    _check("depthwise_conv2d", x, weight, stride, padding)
    return _fake(x, weight, stride, padding)


def _fake_forward(x: Tensor, weight: Tensor, *numbers: int) -> Tensor:
    return _fake(x, weight, numbers[:2], numbers[2:])


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, wanted: Any
) -> tuple[Tensor, Tensor]:
    dx = _empty(x, *x.shape) if wanted[0] else x.new_empty(0)
    return dx, weight.new_empty(weight.shape) if wanted[1] else weight.new_empty(0)


def _fake_grad_input(dy: Tensor, weight: Tensor, h: Any, w: Any, *_: int) -> Tensor:
    return _empty(dy, dy.shape[0], dy.shape[1], h, w)


def _fake_grad_weight(dy: Tensor, x: Tensor, kernel_h: int, kernel_w: int, *_: int) -> Tensor:
    return x.new_empty((dy.shape[1], 1, kernel_h, kernel_w))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.stride, ctx.padding = inputs[2:]


@once_differentiable
def _autograd_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    wanted = list(ctx.needs_input_grad[:2])
    found = torch.ops.pynas.depthwise_conv2d_backward(dy, *ctx.saved_tensors, ctx.stride, ctx.padding, wanted)
    return found[0] if wanted[0] else None, found[1] if wanted[1] else None, None, None


_operators = _register()
