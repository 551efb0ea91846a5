"""Exponential moving averages of weights for any training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import library, reference_arena
from pynas.ops.arena import Arena, floats


def ema_update(averages: Tensor | Sequence[Tensor], values: Tensor | Sequence[Tensor], decay: float) -> None:
    """averages <- averages + (1 - decay) (values - averages), in place, as torch.lerp computes it.

    averages, values: a tensor each, or as many tensors of the same shapes; of any floating type, computed in that of
    the average. A contiguous float32 average of contiguous float32 or bfloat16 values on one device takes the fused
    kernel; so does a flat tensor of an `Arena`, which is the fastest.

    Raises PynasError for another number of tensors and for other shapes or devices.
    """
    if isinstance(averages, Tensor) != isinstance(values, Tensor):
        raise PynasError("ema_update: got a tensor and a sequence; allowed: two tensors, or two sequences of them")
    if isinstance(averages, Tensor):
        averages, values = [averages], [values]  # type: ignore[list-item]
    if len(averages) != len(values):
        raise PynasError(f"ema_update: got {len(averages)} averages and {len(values)} values; allowed: as many")
    for average, value in zip(averages, values):
        if average.shape != value.shape or average.device != value.device:
            raise PynasError(
                f"ema_update: got an average {tuple(average.shape)} on {average.device} and values "
                f"{tuple(value.shape)} on {value.device}; allowed: the same shape and device"
            )
    if len(averages) == 1 and _has_kernel(averages[0], values[0]):
        torch.ops.pynas.ema_update(averages[0].detach(), values[0].detach(), decay)
    elif len(averages):
        reference_arena.ema_update(averages, values, decay)


def ema_multi_avg_fn(decay: float = 0.999) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """For `torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema_multi_avg_fn(decay), use_buffers=True)`.

    Raises PynasError for a decay outside [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise PynasError(f"ema_multi_avg_fn: decay is {decay}; allowed: from 0 to 1")

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], averaged: Tensor | int) -> None:
        ema_update(averages, values, decay)

    return update


def _has_kernel(average: Tensor, value: Tensor) -> bool:
    return (
        library.fused()
        and average.dtype == torch.float32
        and value.dtype in (torch.float32, torch.bfloat16)
        and average.is_contiguous()
        and value.is_contiguous()
        and (average.device.type == "cpu" or (average.device.type == "cuda" and torch.ops.pynas.has_cuda()))
    )
