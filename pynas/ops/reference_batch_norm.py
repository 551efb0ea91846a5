"""Batch-norm with what follows it, in plain torch: what `batch_norm_act` and `batch_norm_act_se` have to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pynas.errors import PynasError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "hswish": F.hardswish,
    "swish": F.silu,
    "relu6": F.relu6,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"hsigmoid": F.hardsigmoid, "sigmoid": F.sigmoid}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name; PynasError for one that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise PynasError(f"act: got {name!r}, allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def batch_norm_act(
    x: Tensor, norm: nn.Module, act: str = "identity", residual: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """As `pynas.ops.batch_norm.batch_norm_act`."""
    y = activation(act)(norm(x))
    if keep is not None:
        y = y * keep.to(y.dtype).view(-1, *[1] * (y.dim() - 1))
    return y if residual is None else y + residual


def batch_norm_act_se(
    x: Tensor, norm: nn.Module, act: str, reduce: nn.Module, se_act: str, expand: nn.Module, gate: str = "hsigmoid"
) -> Tensor:
    """As `pynas.ops.squeeze_excite.batch_norm_act_se`."""
    if gate not in GATES:
        raise PynasError(f"gate: got {gate!r}, allowed are {', '.join(GATES)}")
    a = activation(act)(norm(x))
    hidden = activation(se_act)(reduce(F.adaptive_avg_pool2d(a, 1)))
    return a * GATES[gate](expand(hidden))
