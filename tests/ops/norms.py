"""What the tests of batch-norm's operators share: tensors, norms, errors against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LAST = torch.channels_last
ACTS = ("identity", "relu", "hswish", "swish", "relu6")
SHAPES = [(2, 1, 1, 7), (5, 3, 7, 7), (1, 8, 9, 5), (2, 17, 7, 1), (5, 24, 1, 1), (1, 40, 13, 11)]
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-13}
"""Rounding of a result, where torch happens to have none."""


def images(shape: Sequence[int], dtype: torch.dtype, mean: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64) + mean
    return made.to(dtype).contiguous(memory_format=LAST)


def norm_of(channels: int, dtype: torch.dtype, **options: object) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, dtype=torch.float64 if dtype == torch.float64 else torch.float32, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 0.7, generator=generator)
    if norm.running_mean is not None:
        norm.running_mean.normal_(generator=generator)
    return norm


def results(compute: Callable[..., Tensor], x: Tensor, modules: Sequence[nn.Module], *others: Tensor) -> list[Tensor]:
    """y, then the gradients of x, the others and the modules' parameters, the modules' buffers. modules: copied."""
    modules = copy.deepcopy(list(modules))
    leaves = [value.detach().clone().requires_grad_() for value in (x, *others)]
    y = compute(leaves[0], modules, *leaves[1:])
    (y * images(y.shape, y.dtype, seed=9)).sum().backward()  # backward(gradient) would import sympy
    found = [y.detach(), *(leaf.grad for leaf in leaves)]
    for module in modules:
        found += [parameter.grad for parameter in module.parameters()]
        found += list(module.buffers())
    return found  # type: ignore[return-value]


def check_errors(found: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Errors against float64 are at most twice torch's own."""
    assert len(found) == len(eager) == len(exact)
    for i, (mine, torchs, right) in enumerate(zip(found, eager, exact, strict=True)):
        assert mine.dtype == torchs.dtype
        assert mine.shape == torchs.shape
        if not mine.numel():
            continue
        scale = max(right.abs().max().item(), 1.0)
        allowed = 2.0 * (torchs - right).abs().max().item() + FLOOR[dtype] * scale
        assert (mine - right).abs().max().item() <= allowed, f"result {i}"
