"""Gates: what squeeze-and-excite and Split-Attention multiply activations by, computed of their means over pixels.

Shapes: N images, C channels, each of `splits` maps side by side. A gate has a number for each map, (N, C splits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops.reference_batch_norm import GATES, activation


class GateLayers(NamedTuple):
    """A gate's 1x1 convolutions, C to R and R to C splits; `act` is between them, `function` makes gates of logits.

    "softmax" is Split-Attention's (ResNeSt, Zhang et al. 2020): over a channel's splits; logits lie split by split.
    """

    reduce: nn.Conv2d
    act: str
    expand: nn.Conv2d
    function: str = "hsigmoid"


class Gated(nn.Module):
    """A module that multiplies activations by a gate of them, and may be computed with what stands before it."""

    def gate_layers(self) -> GateLayers | None:
        """What the gate is made of, None for what no operator computes."""
        raise NotImplementedError


class Gate(NamedTuple):
    """What is computed of the pooled activations, as backward needs it: float32 (float64), (N, ...)."""

    pooled: Tensor
    hidden: Tensor
    active: Tensor
    logits: Tensor
    gate: Tensor


def check_gate(gate: GateLayers, channels: int, splits: int) -> None:
    """Raises PynasError for layers that are no gate of C channels."""
    allowed = tuple(GATES) if splits == 1 else ("softmax",)
    if gate.function not in allowed:
        raise PynasError(f"mbconv: gate of {splits} splits: got {gate.function!r}, allowed: {', '.join(allowed)}")
    hidden = gate.reduce.out_channels
    for conv, shape in ((gate.reduce, (hidden, channels)), (gate.expand, (channels * splits, hidden))):
        if (
            type(conv) is not nn.Conv2d
            or conv.bias is None
            or conv.weight.shape != (*shape, 1, 1)
            or conv.stride != (1, 1)
            or conv.padding != (0, 0)
        ):
            raise PynasError(f"mbconv: gate {conv}; allowed: 1x1 from {shape[1]} to {shape[0]} channels, with bias")


def gate_forward(pooled: Tensor, weights: Sequence[Tensor], act: str, function: str, splits: int) -> Gate:
    """pooled: (N, C splits), the mean of each map. weights: reduce's weight and bias, expand's."""
    reduce, reduce_bias, expand, expand_bias = weights
    if splits > 1:
        pooled = pooled.unflatten(1, (-1, splits)).sum(2)
    hidden = F.linear(pooled, reduce.flatten(1), reduce_bias)
    active = activation(act)(hidden)
    logits = F.linear(active, expand.flatten(1), expand_bias)
    if function == "softmax":
        gate = logits.unflatten(1, (splits, -1)).softmax(1).transpose(1, 2).flatten(1)
    else:
        gate = GATES[function](logits)
    return Gate(pooled, hidden, active, logits, gate)


def gate_backward(
    dgate: Tensor, gate: Gate, weights: Sequence[Tensor], act: str, function: str, splits: int
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the pooled maps (N, C splits), and of the layers' weights and biases, of that of the gate.

    weights: those of reduce and expand.
    """
    reduce, expand = weights
    if function == "softmax":
        of_splits, chosen = (value.unflatten(1, (-1, splits)) for value in (dgate, gate.gate))
        of_splits = chosen * (of_splits - (chosen * of_splits).sum(2, keepdim=True))
        dlogits = of_splits.transpose(1, 2).flatten(1)
    elif function == "sigmoid":
        dlogits = torch.ops.aten.sigmoid_backward(dgate, gate.gate)
    else:
        dlogits = torch.ops.aten.hardsigmoid_backward(dgate, gate.logits)
    dhidden = activation_backward(act, dlogits @ expand.flatten(1), gate.hidden)
    dpooled = dhidden @ reduce.flatten(1)
    dreduce, dexpand = dhidden.t() @ gate.pooled, dlogits.t() @ gate.active
    return dpooled if splits == 1 else dpooled.repeat_interleave(splits, 1), [
        dreduce.view(reduce.shape),
        dhidden.sum(0),
        dexpand.view(expand.shape),
        dlogits.sum(0),
    ]


def activation_backward(name: str, gradient: Tensor, hidden: Tensor) -> Tensor:
    """The gradient of the argument `hidden` of an activation."""
    if name == "hswish":
        return torch.ops.aten.hardswish_backward(gradient, hidden)
    if name == "swish":
        return torch.ops.aten.silu_backward(gradient, hidden)
    if name == "relu":
        return torch.ops.aten.threshold_backward(gradient, hidden, 0.0)
    if name == "relu6":
        return torch.ops.aten.hardtanh_backward(gradient, hidden, 0.0, 6.0)
    return gradient
