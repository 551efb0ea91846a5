"""Channels weighted by what all of them are on average: squeeze-and-excite and Split-Attention.

Shapes: N batch, C channels, H = W size.
"""

from __future__ import annotations

from torch import Tensor, nn

from pynas.nets.activations import activation


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in [0, 1] computed from all channels' means (Hu et al. 2018), gated by hsigmoid."""

    def __init__(self, channels: int, hidden: int, act: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = activation(act)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class SplitAttention(nn.Module):
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
        maps = x.unflatten(1, (self.channels, self.splits))  # (N, C, splits, H, W)
        logits = self.expand(self.act(self.reduce(self.pool(maps.sum(2)))))
        weights = self.gate(logits.unflatten(1, (self.splits, self.channels))).transpose(1, 2)  # (N, C, splits, 1, 1)
        return (maps * weights).sum(2)

    def extra_repr(self) -> str:
        return f"splits={self.splits}"
