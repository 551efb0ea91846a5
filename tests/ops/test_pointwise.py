"""The 1x1 convolution as a matrix product: torch's convolution, whatever it is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pynas.ops import available, using
from pynas.ops.pointwise import pointwise_conv2d
from pynas.ops.rules import MOST_PIXELS

pytestmark = pytest.mark.skipif(not available(), reason="libpynas_ops.so is not built here")

LAST = torch.channels_last
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 1, 7), (3, 16, 8, 7, 1), (5, 1, 4, 6, 6), (4, 24, 13, 5, 3), (1, 40, 1, 9, 9)]


def tensors(n: int, channels: int, maps: int, h: int, w: int) -> list[Tensor]:
    """x, weight, bias and the output's gradient."""
    generator = torch.Generator().manual_seed(n + channels)
    sizes = ((n, channels, h, w), (maps, channels, 1, 1), (maps,), (n, maps, h, w))
    x, weight, bias, dy = (torch.randn(size, generator=generator) for size in sizes)
    return [x.contiguous(memory_format=LAST), weight, bias, dy.contiguous(memory_format=LAST)]


def answers(kind: str, given: list[Tensor], dtype: torch.dtype, bias: bool) -> list[Tensor]:
    x, weight, shift, dy = (tensor.to(dtype) for tensor in given)
    leaves = [tensor.requires_grad_() for tensor in ((x, weight, shift) if bias else (x, weight))]
    with using(kind):  # type: ignore[arg-type]
        y = pointwise_conv2d(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_the_convolution(shape: tuple[int, ...], bias: bool) -> None:
    given = tensors(*shape)
    exact = answers("reference", given, torch.float64, bias)
    ours, stock = (answers(kind, given, torch.float32, bias) for kind in ("fused", "reference"))
    for mine, its, right in zip(ours, stock, exact, strict=True):
        error, allowed = ((found - right).norm() for found in (mine, its))
        assert error <= max(2 * allowed, 1e-6 * right.norm())
        assert mine.shape == right.shape
    for tensor in (ours[0], ours[1]):  # output and x's gradient
        assert tensor.is_contiguous(memory_format=LAST)
    for mine, right in zip(answers("fused", given, torch.float64, bias), exact, strict=True):
        torch.testing.assert_close(mine, right)


def is_product(x: Tensor, weight: Tensor) -> bool:
    with using("fused"):
        y = pointwise_conv2d(x, weight.requires_grad_())
    return "Permute" in type(y.grad_fn).__name__


def test_where_a_product_is_taken() -> None:
    x, weight, *_ = tensors(2, 3, 4, 5, 5)
    assert is_product(x, weight)
    assert is_product(x.double(), weight.detach().double())
    assert not is_product(x.contiguous(), weight)
    assert not is_product(x.bfloat16(), weight.detach().bfloat16())
    side = int((MOST_PIXELS / 2) ** 0.5)
    assert is_product(x.new_zeros(2, 3, side, side).contiguous(memory_format=LAST), weight)
    assert not is_product(x.new_zeros(2, 3, side + 1, side + 1).contiguous(memory_format=LAST), weight)
    assert not is_product(x[:0], weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_product(x, weight)
    with using("reference"):
        assert "Convolution" in type(pointwise_conv2d(x, weight).grad_fn).__name__


def test_what_a_convolution_refuses_is_refused_with_its_words() -> None:
    x, weight, *_ = tensors(2, 3, 4, 5, 5)
    for wrong in (weight[:, :2], weight.double(), weight[..., 0]):
        with pytest.raises(RuntimeError) as torchs:
            functional.conv2d(x, wrong)
        with pytest.raises(RuntimeError) as ours:
            pointwise_conv2d(x, wrong)
        assert str(ours.value) == str(torchs.value)
