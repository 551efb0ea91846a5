"""The steps of `reference_mbconv` by the GPU's kernels: libpynas_ops's operators, and their fakes for torch.compile.

Activations: CUDA, channels_last, float32, bfloat16 or float16; all else float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynas.ops import library
from pynas.ops.batch_norm_kernels import ACTIVATIONS
from pynas.ops.mbconv_plan import positions
from pynas.ops.reference_mbconv import Norm, NormBackward, Statistics


def expand(x: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Statistics]:
    return _made(torch.ops.pynas.mbconv_expand(x, weight, statistics), statistics)


def depthwise(
    x: Tensor,
    norm: Norm | None,
    weight: Tensor,
    stride: int,
    padding: int,
    statistics: bool,
    expand: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    given = (x, *_of(norm), weight, stride, padding, statistics, expand)
    return _made(torch.ops.pynas.mbconv_depthwise(*given), statistics)


def depthwise_applied(
    x: Tensor,
    norm: Norm | None,
    weight: Tensor,
    stride: int,
    padding: int,
    after: Norm,
    pool: bool,
    expand: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    given = (x, *_of(norm), weight, stride, padding, *_of(after), pool, expand)
    y, pooled = torch.ops.pynas.mbconv_depthwise_applied(*given)
    return y, pooled if pool else None


def project_applied(x: Tensor, gate: Tensor | None, weight: Tensor, after: Norm, residual: Tensor | None) -> Tensor:
    return torch.ops.pynas.mbconv_project_applied(x, gate, weight, *_of(after), residual)


def pooled(x: Tensor, norm: Norm) -> Tensor:
    with library.without_autograd():
        return torch.ops.pynas.batch_norm_act_pool(x, *_of(norm))


def project(x: Tensor, norm: Norm, gate: Tensor | None, weight: Tensor, statistics: bool) -> tuple[Tensor, Statistics]:
    return _made(torch.ops.pynas.mbconv_project(x, *_of(norm), gate, weight, statistics), statistics)


def project_backward(
    d: Tensor, y: Tensor, after: NormBackward, weight: Tensor, x: Tensor, norm: Norm, splits: int
) -> tuple[Tensor, Tensor]:
    return torch.ops.pynas.mbconv_project_backward(d, y, *_backward(after), weight, x, *_of(norm), splits)


def project_weight_backward(
    d: Tensor, y: Tensor, after: NormBackward, x: Tensor, norm: Norm, gate: Tensor | None
) -> Tensor:
    return torch.ops.pynas.mbconv_project_weight_backward(d, y, *_backward(after), x, *_of(norm), gate)


def depthwise_backward(
    d: Tensor,
    y: Tensor,
    after: NormBackward,
    weight: Tensor,
    x: Tensor,
    norm: Norm | None,
    stride: int,
    padding: int,
    expand: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    given = (weight, x, *_of(norm), stride, padding, expand)
    return torch.ops.pynas.mbconv_depthwise_backward(d, y, *_backward(after), *given)


def gram(left: Tensor, left_centre: Tensor | None, right: Tensor, right_centre: Tensor | None) -> Tensor:
    return torch.ops.pynas.mbconv_gram(left, left_centre, right, right_centre)


def expanded_backward(
    dz: Tensor, x: Tensor, centre: Tensor, weight: Tensor, level: Tensor, residual: Tensor | None
) -> Tensor:
    return torch.ops.pynas.mbconv_expanded_backward(dz, x, centre, weight, level, residual)


def expand_backward(d: Tensor, y: Tensor, after: NormBackward, weight: Tensor, residual: Tensor | None) -> Tensor:
    given = (*_of(after.norm), after.sums, after.values)
    return torch.ops.pynas.mbconv_expand_backward(d, y, *given, weight, residual)


def expand_weight_backward(d: Tensor, y: Tensor, after: NormBackward, x: Tensor) -> Tensor:
    given = (*_of(after.norm), after.sums, after.values)
    return torch.ops.pynas.mbconv_expand_weight_backward(d, y, *given, x)


def norm_act(x: Tensor, norm: Norm, gate: Tensor | None, residual: Tensor | None) -> Tensor:
    with library.without_autograd():
        return torch.ops.pynas.batch_norm_act(x, *_of(norm), gate, residual)


def norm_act_backward_sums(d: Tensor, x: Tensor, norm: Norm, gate: Tensor | None) -> Tensor:
    with library.without_autograd():
        return torch.ops.pynas.batch_norm_act_backward_sums(d, x, *_of(norm), gate)


def _of(norm: Norm | None) -> tuple[Any, ...]:
    return (None, None, None, None, 0.0, 0) if norm is None else (*norm[:5], ACTIVATIONS[norm.act])


def _backward(after: NormBackward) -> tuple[Any, ...]:
    return *_of(after.norm), after.gate, after.dpool, after.sums, after.values


def _made(found: tuple[Tensor, Tensor, Tensor], statistics: bool) -> tuple[Tensor, Statistics]:
    y, mean, var = found
    return y, (mean, var) if statistics else None


def _register_fakes() -> None:
    """What the operators return, by their arguments' names in csrc/torch/mbconv.cpp."""

    def beside(x: Tensor, channels: Any, h: Any, w: Any) -> Tensor:
        return torch.empty_strided((x.shape[0], channels, h, w), (channels * h * w, 1, channels * w, channels),
                                   dtype=x.dtype, device=x.device)  # fmt: skip

    def convolved(x: Tensor, kernels: Tensor, stride: int, padding: int) -> Tensor:
        sizes = (positions(size, kernels.shape[2], stride, padding) for size in x.shape[2:])
        return beside(x, kernels.shape[0], *sizes)

    def numbers(x: Tensor, *sizes: Any) -> Tensor:
        return x.new_empty(sizes, dtype=torch.float32)

    def made(y: Tensor, statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
        channels = y.shape[1] if statistics else 0
        return y, numbers(y, channels), numbers(y, channels)

    def fake_expand(x: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, ...]:
        return made(beside(x, weight.shape[0], *x.shape[2:]), statistics)

    def fake_depthwise(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        kernels, stride, padding, statistics, _ = given[-5:]
        return made(convolved(x, kernels, stride, padding), statistics)

    def fake_depthwise_applied(x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        kernels, stride, padding, pool = *given[6:9], given[-2]
        return convolved(x, kernels, stride, padding), numbers(x, x.shape[0] if pool else 0, kernels.shape[0])

    def fake_project_applied(x: Tensor, gate: Tensor | None, weight: Tensor, *_: Any) -> Tensor:
        return beside(x, weight.shape[0], *x.shape[2:])

    def fake_project(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        weight, statistics = given[-2:]
        return made(beside(x, weight.shape[0], *x.shape[2:]), statistics)

    def fake_project_backward(d: Tensor, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        x, splits = given[11], given[-1]
        return beside(x, x.shape[1] // splits, *x.shape[2:]), numbers(x, 5, *x.shape[:2])

    def fake_project_weight_backward(d: Tensor, y: Tensor, *given: Any) -> Tensor:
        return numbers(y, y.shape[1], given[10].shape[1], 1, 1)

    def fake_depthwise_backward(d: Tensor, y: Tensor, *given: Any) -> tuple[Tensor, ...]:
        kernels, x, expand = given[10], given[11], given[-1]
        channels = x.shape[1] if expand is None else expand.shape[0]
        return beside(x, channels, *x.shape[2:]), numbers(x, *kernels.shape), numbers(x, 2, channels)

    def fake_gram(left: Tensor, left_centre: Tensor | None, right: Tensor, right_centre: Tensor | None) -> Tensor:
        return numbers(left, left.shape[1], right.shape[1])

    def fake_expanded_backward(dz: Tensor, x: Tensor, *_: Any) -> Tensor:
        return beside(x, *x.shape[1:])

    def fake_expand_backward(d: Tensor, y: Tensor, *given: Any) -> Tensor:
        return beside(y, given[8].shape[1], *y.shape[2:])

    def fake_expand_weight_backward(d: Tensor, y: Tensor, *given: Any) -> Tensor:
        return numbers(y, y.shape[1], given[8].shape[1], 1, 1)

    for fake in (
        fake_expand,
        fake_depthwise,
        fake_project,
        fake_project_backward,
        fake_project_weight_backward,
        fake_depthwise_backward,
        fake_depthwise_applied,
        fake_project_applied,
        fake_gram,
        fake_expanded_backward,
        fake_expand_backward,
        fake_expand_weight_backward,
    ):
        name = fake.__name__.replace("fake_", "pynas::mbconv_")
        torch.library.register_fake(name)(library.of_one_device(fake))


if library.available():
    _register_fakes()
