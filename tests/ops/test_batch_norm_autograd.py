"""Gradients of batch-norm's operators called by themselves: finite differences, torch's rules, batch-norm's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from norms import ACTS, images, norm_of
from torch import Tensor, nn

from pynas.ops import available
from pynas.ops import reference_batch_norm as reference
from pynas.ops.batch_norm import batch_norm_act
from pynas.ops.batch_norm_kernels import ACTIVATIONS

pytestmark = pytest.mark.skipif(not available(), reason="libpynas_ops is not built")
OPS = torch.ops.pynas
EPS = 1e-3
SHAPE = (2, 3, 2, 3)
GATES = [None, (2, 1), (2, 3)]


def positive(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=dtype) + 0.5).requires_grad_()


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    """x; mean, var, weight, bias. All require gradients."""
    values = [positive(3, seed=seed, dtype=dtype) for seed in range(4)]
    return images(SHAPE, dtype).requires_grad_(), values


def test_statistics_have_the_gradients_of_finite_differences_twice() -> None:
    x, _ = tensors()
    assert torch.autograd.gradcheck(OPS.channel_statistics, (x,))
    assert torch.autograd.gradgradcheck(OPS.channel_statistics, (x,))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act", ACTS)
def test_every_argument_has_the_gradient_of_finite_differences(
    act: str, gate: tuple[int, int] | None, affine: bool
) -> None:
    x, (mean, var, weight, bias) = tensors()
    norm = (mean, var, weight, bias) if affine else (mean, var, None, None)
    gates = None if gate is None else positive(*gate, seed=5)
    residual = images(SHAPE, torch.float64, seed=6).requires_grad_() if affine else None
    given = (x, *norm, EPS, ACTIVATIONS[act])
    assert torch.autograd.gradcheck(OPS.batch_norm_act, (*given, gates, residual))
    if gate is None:
        assert torch.autograd.gradcheck(OPS.batch_norm_act_pool, given)


def test_one_gradient_alone_is_that_of_all() -> None:
    x, norm = tensors()
    others = [positive(2, 3, seed=5), images(SHAPE, torch.float64, seed=6).requires_grad_()]
    for operator, given in (
        (OPS.batch_norm_act, [x, *norm, EPS, 2, *others]),
        (OPS.batch_norm_act_pool, [x, *norm, EPS, 2]),
    ):
        y = operator(*given)
        dy = torch.rand(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))  # not in channels_last
        inputs = [value for value in given if isinstance(value, Tensor)]
        of_all = torch.autograd.grad(y, inputs, dy)
        for wanted, expected in zip(inputs, of_all, strict=True):
            alone = [v.detach() if isinstance(v, Tensor) and v is not wanted else v for v in given]
            torch.testing.assert_close(torch.autograd.grad(operator(*alone), wanted, dy), (expected,))


def test_what_needs_no_gradient_has_none_and_a_second_one_is_refused() -> None:
    x, norm = tensors()
    with torch.no_grad():
        assert not OPS.channel_statistics(x)[0].requires_grad
    assert not OPS.batch_norm_act(x.detach(), *[value.detach() for value in norm], EPS, 2, None, None).requires_grad
    y = OPS.batch_norm_act(x, *norm, EPS, 2, None, None)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_operators_with_gradients_keep_torchs_rules() -> None:
    x, norm = tensors(torch.float32)
    gate = positive(2, 1, dtype=torch.float32)
    residual = images(SHAPE, torch.float32, seed=3).requires_grad_()
    torch.library.opcheck(OPS.channel_statistics.default, (x,))
    torch.library.opcheck(OPS.batch_norm_act.default, (x, *norm, EPS, 2, gate, residual))
    torch.library.opcheck(OPS.batch_norm_act_pool.default, (x, *norm, EPS, 2))


def composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = OPS.channel_statistics(x)
    return OPS.batch_norm_act(x, mean, var, weight, bias, 1e-5, ACTIVATIONS["hswish"], None, None)


def gradients(compute: Callable[..., Tensor], x: Tensor, norm: nn.BatchNorm2d) -> list[Tensor]:
    """y, then the gradients of x, weight and bias."""
    x = x.detach().clone().requires_grad_()
    y = compute(x, norm.weight, norm.bias)
    return [y.detach(), *torch.autograd.grad(y, (x, norm.weight, norm.bias), images(y.shape, y.dtype, seed=9))]


@pytest.mark.filterwarnings("ignore")
def test_operators_composed_are_batch_norm_compiled_in_one_graph_too() -> None:
    x, norm = images((3, 5, 4, 3), torch.float64), norm_of(5, torch.float64)
    compiled = torch.compile(composed, fullgraph=True, backend="aot_eager")
    expected = gradients(lambda x, *_: reference.batch_norm_act(x, norm, "hswish"), x, norm)
    for compute in (composed, compiled):
        torch.testing.assert_close(gradients(compute, x, norm), expected, rtol=1e-10, atol=1e-12)


def test_bfloat16_gives_the_functions_gradients() -> None:
    x, norm = images((3, 5, 4, 3), torch.bfloat16), norm_of(5, torch.float32)
    found = gradients(composed, x, norm)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = gradients(composed, x, norm)
    expected = gradients(lambda x, *_: batch_norm_act(x, norm, "hswish"), x, norm)
    for mine, cast, right in zip(found, under_autocast, expected, strict=True):
        assert mine.dtype == right.dtype
        assert torch.equal(mine, cast)
        torch.testing.assert_close(mine, right, rtol=2e-2, atol=2e-2)


def test_no_images() -> None:
    x = torch.empty(0, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = [positive(3, seed=seed, dtype=torch.float32) for seed in range(4)]
    mean, var = OPS.channel_statistics(x)
    y = OPS.batch_norm_act(x, mean, var, *norm[2:], EPS, 2, positive(0, 3, dtype=torch.float32), None)
    pooled = OPS.batch_norm_act_pool(x, *norm, EPS, 2)
    dx, *others = torch.autograd.grad(y.sum() + pooled.sum(), [x, *norm])
    assert dx.shape == x.shape
    assert all(torch.equal(value, torch.zeros(3)) for value in others)
