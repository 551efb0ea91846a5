"""The blocks of Table 2 of the FBNetV3 paper as torch modules.

Shapes: N batch, C channels, H = W size. Every block takes and returns float tensors (N, C, H, W); the head returns
(N, classes). A block is made from a `pynas.space.architecture.Block`, which already knows every width and padding, so
nothing is derived here. Modules are made without initial values that matter: `build.initialise` sets them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynas.nets.activations import activation
from pynas.nets.attention import SplitAttention, SqueezeExcite
from pynas.ops.inverted_residual import InvertedResidual
from pynas.ops.sequence import in_sequence
from pynas.space.architecture import Block


class StochasticDepth(nn.Module):
    """Drops the branch of a residual block for whole samples (Huang et al. 2016), d in Table 2.

    In training each sample's branch is zero with probability `rate`; the kept ones are divided by 1 - rate, so that
    evaluation needs no scaling. Draws from torch's global generator of the tensor's device.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept(x)
        return x if kept is None else x * kept[:, None, None, None]

    def kept(self, x: Tensor) -> Tensor | None:
        """What each sample's branch is multiplied by, (N,) as x; None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        if keep <= 0.0:
            return torch.zeros(x.shape[0], device=x.device, dtype=x.dtype)
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).flatten() < keep
        return kept.to(x.dtype) / keep

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
        return in_sequence((self.conv, self.norm, self.act), x)


class MBConv(InvertedResidual):
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

    def parts(self) -> tuple[list[nn.Module], nn.Module, bool]:
        return list(self.branch), self.norm, self.residual

    def kept(self, x: Tensor) -> Tensor | None:
        return self.drop.kept(x)


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
        return x if self.identity else in_sequence((self.conv, self.norm, self.act), x)


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
        return in_sequence((self.expand, self.norm, self.act, self.pool, self.project, self.last_act), x)


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
