"""The blocks of Table 2 of the FBNetV3 paper as torch modules.

Shapes: N batch, C channels, H = W size. Every block takes and returns float tensors (N, C, H, W); the head returns
(N, classes). A block is made from a `pynas.space.architecture.Block`, which already knows every width and padding, so
nothing is derived here. Modules are made without initial values that matter: `build.initialise` sets them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.space.architecture import Block

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"hswish": nn.Hardswish, "relu": nn.ReLU, "swish": nn.SiLU}


def activation(name: str) -> nn.Module:
    """The activation a table calls `name`; PynasError for one that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise PynasError(f"act: got {name!r}, allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class StochasticDepth(nn.Module):
    """Drops the branch of a residual block for whole samples (Huang et al. 2016), d in Table 2.

    In training each sample's branch is zero with probability `rate`; the kept ones are divided by 1 - rate, so that
    evaluation needs no scaling. Draws from torch's global generator of the tensor's device.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        if keep <= 0.0:
            return torch.zeros_like(x)
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype) < keep
        return x * (kept.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class ConvBlock(nn.Module):
    """The stem: k x k convolution with bias, batch-norm, activation.

    The bias is redundant before a batch-norm, but the released models carry it and their parameter counts include it;
    a row's `bias` may leave it out.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            block.in_channels, block.channels, block.kernel, block.stride, block.padding, bias=block.bias
        )
        self.norm = nn.BatchNorm2d(block.channels)
        self.act = activation(block.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


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


class MBConv(nn.Module):
    """Inverted residual block (Sandler et al. 2018): expand 1x1, depthwise k x k, squeeze-and-excite, project 1x1.

    With Split-Attention in the place of squeeze-and-excite the depthwise convolution has as many kernels a channel as
    there are splits (FP-NAS, Figure 2). The expansion is left out where it would not widen; the projection has no
    activation. `drop` is the rate of stochastic depth, used only where the block has a residual connection: without one
    a dropped branch leaves nothing.
    """

    def __init__(self, block: Block, drop: float = 0.0) -> None:
        super().__init__()
        mid = block.mid_channels
        maps = mid * max(block.splits, 1)
        layers: list[nn.Module] = []
        if mid != block.in_channels:
            layers += [nn.Conv2d(block.in_channels, mid, 1, bias=False), nn.BatchNorm2d(mid), activation(block.act)]
        layers += [
            nn.Conv2d(mid, maps, block.kernel, block.stride, block.padding, groups=mid, bias=False),
            nn.BatchNorm2d(maps),
            activation(block.act),
        ]
        if block.splits > 1:
            layers.append(SplitAttention(mid, block.se_channels, block.splits, block.act))
        elif block.se_channels:
            layers.append(SqueezeExcite(mid, block.se_channels, block.act))
        layers.append(nn.Conv2d(mid, block.channels, 1, bias=False))
        self.branch = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(block.channels)
        self.residual = block.residual
        self.drop = StochasticDepth(drop if block.residual else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.branch(x))
        return x + self.drop(y) if self.residual else y


class SkipBlock(nn.Module):
    """A block left out: the identity where shapes allow, else 1x1 convolution without bias, batch-norm, activation.

    Stochastic depth does not apply: there is no branch to drop.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.identity = block.identity
        if not self.identity:
            self.conv = nn.Conv2d(block.in_channels, block.channels, 1, block.stride, bias=False)
            self.norm = nn.BatchNorm2d(block.channels)
            self.act = activation(block.act)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.identity else self.act(self.norm(self.conv(x)))


class MBPool(nn.Module):
    """Efficient last stage (Howard et al. 2019): expand 1x1, global pool, then the wide 1x1 on a single pixel."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.expand = nn.Conv2d(block.in_channels, block.mid_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(block.mid_channels)
        self.act = activation(block.act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Conv2d(block.mid_channels, block.channels, 1, bias=False)
        self.last_act = activation(block.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_act(self.project(self.pool(self.act(self.norm(self.expand(x))))))


class Head(nn.Module):
    """Global pool, dropout with probability p, classifier with bias: (N, C, H, W) to logits (N, classes).

    After an MBPool the pool sees a single pixel; it stays because the published counts include it.
    """

    def __init__(self, block: Block, dropout: float = 0.0) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(block.in_channels, block.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.pool(x).flatten(1)))
