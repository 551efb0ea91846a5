"""Split-Attention's passes over activations in plain torch: the definition of right."""

from __future__ import annotations

from torch import Tensor


def split_attention_pool(x: Tensor, splits: int) -> Tensor:
    """x: (N, C splits, H, W). Returns (N, C)."""
    return x.unflatten(1, (x.shape[1] // splits, splits)).sum(2).mean((2, 3))


def split_attention_combine(x: Tensor, weights: Tensor) -> Tensor:
    """x: (N, C splits, H, W); weights: (N, C, splits). Returns (N, C, H, W)."""
    maps = x.unflatten(1, (x.shape[1] // weights.shape[2], weights.shape[2]))
    return (maps * weights.to(x.dtype)[..., None, None]).sum(2)
