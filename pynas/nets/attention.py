"""Channels weighted by what all of them are on average: squeeze-and-excite and Split-Attention.

Shapes: N batch, C channels, H = W size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pynas.nets.activations import activation
from pynas.ops.gate import Gated, GateLayers
from pynas.ops.library import fused, has_hooks
from pynas.ops.sequence import ACTIVATION_NAMES
from pynas.ops.split_attention import split_attention_combine, split_attention_pool


class SqueezeExcite(Gated):
    """Scales each channel by a gate in [0, 1] computed from all channels' means (Hu et al. 2018), gated by hsigmoid."""

    def __init__(self, channels: int, hidden: int, act: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = activation(act)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        if not fused() or has_hooks(*self.children()):
            return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        hidden = self.act(_linear(self.reduce, split_attention_pool(x, 1)))
        return split_attention_combine(x, self.gate(_linear(self.expand, hidden))[..., None])

    def gate_layers(self) -> GateLayers | None:
        act = ACTIVATION_NAMES.get(type(self.act))
        return None if act is None else GateLayers(self.reduce, act, self.expand)


class SplitAttention(Gated):
    """Sums `splits` maps of each channel with weights computed from all channels' means (ResNeSt, Zhang et al. 2020).

    Takes (N, channels * splits, H, W) as a grouped convolution with one group a channel makes it: the splits of a
    channel stand side by side. Returns (N, channels, H, W). `expand` computes the weights' logits split by split, as
    ResNeSt does (radix-major), and softmax makes the weights of a channel's splits add up to one. With one split there
    is nothing to choose between: the gate is hsigmoid's, and the module is squeeze-and-excite.
    """

    def __init__(self, channels: int, hidden: int, splits: int, act: str) -> None:
        super().__init__()
        self.channels = channels
        self.splits = splits
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = activation(act)
        self.expand = nn.Conv2d(hidden, splits * channels, 1)
        self.gate = nn.Softmax(dim=1) if splits > 1 else nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        if fused() and not has_hooks(*self.children()):
            hidden = self.act(_linear(self.reduce, split_attention_pool(x, self.splits)))
            logits = _linear(self.expand, hidden).unflatten(1, (self.splits, self.channels))
            return split_attention_combine(x, self.gate(logits).transpose(1, 2))
        maps = x.unflatten(1, (self.channels, self.splits))  # (N, C, splits, H, W)
        logits = self.expand(self.act(self.reduce(self.pool(maps.sum(2)))))
        weights = self.gate(logits.unflatten(1, (self.splits, self.channels))).transpose(1, 2)  # (N, C, splits, 1, 1)
        return (maps * weights).sum(2)

    def gate_layers(self) -> GateLayers | None:
        act = ACTIVATION_NAMES.get(type(self.act))
        if act is None:
            return None
        return GateLayers(self.reduce, act, self.expand, "softmax" if self.splits > 1 else "hsigmoid")

    def extra_repr(self) -> str:
        return f"splits={self.splits}"


def _linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of what has no pixels: (N, C) to (N, C')."""
    return functional.linear(x, conv.weight.flatten(1), conv.bias)
