"""Layers one after another, with a fused operator of `pynas.ops` wherever some of them have one.

The modules stay what they are, for names, states, counts and hooks; only who computes changes. With
``pynas.ops.use("reference")`` every layer is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard, cast

from torch import Tensor, nn

from pynas.ops.batch_norm import batch_norm_act
from pynas.ops.depthwise import depthwise_conv2d
from pynas.ops.gate import Gated
from pynas.ops.library import fused, has_hooks
from pynas.ops.pointwise import pointwise_conv2d
from pynas.ops.squeeze_excite import batch_norm_act_se

Pair = tuple[int, int]
ACTIVATION_NAMES: dict[type[nn.Module], str] = {
    nn.Hardswish: "hswish",
    nn.ReLU: "relu",
    nn.SiLU: "swish",
    nn.ReLU6: "relu6",
}


def in_sequence(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """``nn.Sequential(*layers)(x)``; batch-norms take the activation and squeeze-and-excite after them along."""
    if not fused():
        for layer in layers:
            x = layer(x)
        return x
    waiting = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    while waiting:
        layer = waiting.pop(0)
        if _is_norm(layer):
            act = "identity"
            if waiting and type(waiting[0]) in ACTIVATION_NAMES and not has_hooks(waiting[0]):
                act = ACTIVATION_NAMES[type(waiting.pop(0))]
            following = waiting[0] if waiting else None
            gate = following.gate_layers() if isinstance(following, Gated) else None
            if gate is None or gate.function == "softmax" or has_hooks(*waiting[0].modules()):
                x = batch_norm_act(x, layer, act)
            else:
                waiting.pop(0)
                x = batch_norm_act_se(x, layer, act, gate.reduce, gate.act, gate.expand, gate.function)
        elif _is_depthwise(layer) and x.dim() == 4 and x.shape[1] == layer.in_channels:
            stride, padding = cast(Pair, layer.stride), cast(Pair, layer.padding)
            x = depthwise_conv2d(x, layer.weight, stride, padding)
        elif _is_pointwise(layer):
            x = pointwise_conv2d(x, layer.weight, layer.bias)
        else:
            x = layer(x)
    return x


def norm_and_add(norm: nn.Module, x: Tensor, residual: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """``norm(x) * keep + residual``; keep: (N,) as x, or None for ones."""
    if fused() and _is_norm(norm):
        return batch_norm_act(x, norm, "identity", residual, keep)
    y = norm(x)
    if keep is not None:
        y = y * keep[:, None, None, None]
    return y if residual is None else y + residual


def _is_norm(layer: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(layer) is nn.BatchNorm2d and not has_hooks(layer)


def _is_pointwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding == (0, 0)
        and not has_hooks(layer)
    )


def _is_depthwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels > 1
        and layer.bias is None
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and not has_hooks(layer)
    )
