"""The depthwise convolution in plain torch: the definition of right."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """x: (N, C, H, W); weight: (C m, 1, kh, kw), m kernels a channel. Returns (N, C m, H', W')."""
    return functional.conv2d(x, weight, None, stride, padding, groups=x.shape[-3])
