"""Batch-norm's operators of libpynas_ops: where there is a kernel, what they return for torch.compile, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynas.ops import batch_norm_autograd, library

ACTIVATIONS = {"identity": 0, "relu": 1, "hswish": 2, "swish": 3, "relu6": 4}
"""csrc/kernels/types.hpp numbers them so."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def has_kernel(x: Tensor) -> bool:
    """Whether fused operators are wanted and take x: channels_last (N, C, H, W) with values, on a CPU."""
    return (
        library.fused()
        and x.is_cpu
        and x.dim() == 4
        and x.dtype in _DTYPES
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def statistics_dtype(x: Tensor) -> torch.dtype:
    """What statistics, weights and gates of activations x are in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _register_fakes() -> None:
    def fake(name: str) -> Callable[[Callable[..., Any]], Any]:
        return lambda function: torch.library.register_fake(name)(library.of_one_device(function))

    @fake("pynas::channel_statistics")
    def _(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = (x.new_empty(x.shape[1], dtype=statistics_dtype(x)) for _ in range(2))
        return mean, var

    @fake("pynas::running_statistics_")
    def _(*_: Any) -> None:
        return None

    @fake("pynas::batch_norm_act")
    def _(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x)

    @fake("pynas::batch_norm_act_backward_sums")
    def _(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
        return x.new_empty(2, x.shape[1], dtype=statistics_dtype(x))

    @fake("pynas::batch_norm_act_backward")
    def _(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x)

    @fake("pynas::batch_norm_act_pool")
    def _(x: Tensor, *_: Any) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1], dtype=statistics_dtype(x))

    @fake("pynas::batch_norm_act_gate_sums")
    def _(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
        return x.new_empty(5, x.shape[0], x.shape[1], dtype=statistics_dtype(x))


if library.available():
    _register_fakes()
    batch_norm_autograd.register()
