"""The updates of pynas/ops/optimizer.py and ema.py in plain torch: what their fused kernels are held to.

The steps are those of RMSPropTF and SGD in pynas/train/optimizer.py, with one difference: the square root is rounded
correctly, which torch's own on a CPU is not everywhere. Where the processor has fused multiply-add, as torch then uses,
a kernel gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]


@torch.no_grad()
def ema_update(averages: Tensors, values: Tensors, decay: float) -> None:
    """averages <- averages + (1 - decay) (values - averages), in the averages' type."""
    torch._foreach_lerp_(averages, [v.to(a.dtype) for a, v in zip(averages, values, strict=True)], 1.0 - decay)


@torch.no_grad()
def rmsprop_step(
    weights: Tensors, gradients: Tensors, squares: Tensors, momenta: Tensors, group: Mapping[str, Any]
) -> None:
    """s <- decay s + (1 - decay) g^2; b <- momentum b + lr g / sqrt(s + eps); w <- w - b, g with the weight decay."""
    gradients = _decayed(weights, gradients, group)
    torch._foreach_mul_(squares, group["decay"])
    torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - group["decay"])
    roots = [square.double().sqrt().float() for square in torch._foreach_add(squares, group["eps"])]
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_addcdiv_(momenta, gradients, roots, value=group["lr"])
    torch._foreach_sub_(weights, momenta)


@torch.no_grad()
def sgd_step(weights: Tensors, gradients: Tensors, momenta: Tensors, group: Mapping[str, Any]) -> None:
    """b <- momentum b + g; w <- w - lr b, g with the weight decay."""
    gradients = _decayed(weights, gradients, group)
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, gradients)
    torch._foreach_add_(weights, momenta, alpha=-group["lr"])


def master_of(master: Tensor, parameter: Tensor) -> Tensor:
    """A bf16 parameter's float32 master, unless the parameter was set to something else since."""
    return torch.where(master.to(parameter.dtype) == parameter, master, parameter.float())


def _decayed(weights: Tensors, gradients: Tensors, group: Mapping[str, Any]) -> Tensors:
    if not group["weight_decay"]:
        return gradients
    return list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
