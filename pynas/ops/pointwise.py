"""The 1x1 convolution: what a pixel's channels are mapped to, for each pixel by itself.

Shapes: x (N, C, H, W), weight (K, C, 1, 1), bias (K), output (N, K, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pynas.ops import library, rules


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv2d(x, weight, bias)` for a weight of one pixel; a matrix product where that is faster.

    It is for float32 and float64 images with few pixels, in channels_last on a CPU: no copy is made, and the output is
    in channels_last too. Raises RuntimeError for what `torch.nn.functional.conv2d` refuses.
    """
    if not _as_product(x, weight):
        return functional.conv2d(x, weight, bias)
    return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _as_product(x: Tensor, weight: Tensor) -> bool:
    return (
        library.fused()
        and x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and weight.dtype == x.dtype
        and x.dim() == 4
        and weight.dim() == 4
        and weight.shape[1:] == (x.shape[1], 1, 1)
        and x.numel() > 0
        and not rules.pointwise(x.numel() // x.shape[1], x.numel() * weight.shape[0])
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
