"""Split-Attention's pooling and combining against plain torch in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pynas.ops import library, using
from pynas.ops import reference_split_attention as reference
from pynas.ops.split_attention import split_attention_combine, split_attention_pool

pytestmark = pytest.mark.skipif(not library.available(), reason=library.why_missing())

LAST = torch.channels_last
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float64: 1e-14}  # of the largest value: a rounding or two
SHAPES = [(0, 3, 2, 2), (1, 1, 1, 1), (2, 3, 7, 1), (1, 8, 1, 5), (3, 17, 13, 7), (2, 24, 20, 20), (2, 40, 2, 7)]


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    with using("fused"):
        yield


def made(shape: tuple[int, ...], splits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x, weights."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(sum(shape) + splits)
    x = torch.randn(n, c * splits, h, w, generator=generator).to(dtype).contiguous(memory_format=LAST)
    return x, torch.rand(n, c, splits, generator=generator).to(dtype)


def pooled(function: Any, x: Tensor, splits: int) -> list[Tensor]:
    """Output and gradient."""
    x = x.detach().clone().requires_grad_()
    y = function(x, splits)
    (dx,) = torch.autograd.grad(y, x, gradient_for(y))
    return [y.detach(), dx]


def combined(function: Any, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Output and gradients."""
    x, weights = x.detach().clone().requires_grad_(), weights.detach().clone().requires_grad_()
    y = function(x, weights)
    return [y.detach(), *torch.autograd.grad(y, (x, weights), gradient_for(y))]


def gradient_for(y: Tensor) -> Tensor:
    """The same for every dtype."""
    values = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype)
    return values.contiguous(memory_format=LAST) if y.dim() == 4 else values


def check(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert a.shape == e.shape
        assert a.dtype == b.dtype
        if e.numel():
            allowed = 2 * float((b.double() - e).abs().max()) + FLOOR[a.dtype] * float(e.abs().max())
            assert float((a.double() - e).abs().max()) <= allowed


def check_all(dtype: torch.dtype) -> None:
    for shape, splits in product(SHAPES, (1, 2, 4)):
        x, weights = made(shape, splits, dtype)
        poison = [torch.full_like(x, torch.nan), torch.full_like(weights, torch.nan)]
        del poison  # for the kernels' outputs to find in their memory
        wide, wide_weights = x.double(), weights.double()
        check(
            pooled(split_attention_pool, x, splits),
            pooled(reference.split_attention_pool, x, splits),
            pooled(reference.split_attention_pool, wide, splits),
        )
        check(
            combined(split_attention_combine, x, weights),
            combined(reference.split_attention_combine, x, weights),
            combined(reference.split_attention_combine, wide, wide_weights),
        )
        assert split_attention_combine(x, weights).is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_and_gradients_are_as_near_to_float64_as_torchs(dtype: torch.dtype) -> None:
    check_all(dtype)


@pytest.mark.parametrize("shape", [(16, 64, 28, 28), (8, 96, 14, 14), (4, 192, 13, 13)])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_sums_over_pixels_are_within_twice_torchs_error(shape: tuple[int, ...], splits: int) -> None:
    """Those of values that do not cancel, where adding one after another loses digits; no floor."""
    n, c, h, w = shape
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(n, c * splits, h, w, generator=generator) + 1).contiguous(memory_format=LAST)
        dy = (torch.randn(n, c, h, w, generator=generator) + 1).contiguous(memory_format=LAST)
        weights = torch.rand(n, c, splits, generator=generator)

        def sums(pool: Any, combine: Any, x: Tensor = x, weights: Tensor = weights, dy: Tensor = dy) -> list[Tensor]:
            weights = weights.clone().requires_grad_()
            return [pool(x, splits), *torch.autograd.grad(combine(x, weights), weights, dy.to(x.dtype))]

        plain = (reference.split_attention_pool, reference.split_attention_combine)
        exact = sums(*plain, x.double(), weights.double())
        for ours, theirs, right in zip(
            sums(split_attention_pool, split_attention_combine), sums(*plain), exact, strict=True
        ):
            assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max()


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_agrees_with_float64(instruction_set: str) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_split_attention_ops as t\n"
        "for dtype in t.DTYPES: t.check_all(dtype)"
    )
    environment = {**os.environ, "PYNAS_INSTRUCTION_SET": instruction_set, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)], env=environment, capture_output=True, text=True
    )
    if "this processor has up to" in done.stderr:
        pytest.skip(f"no {instruction_set} here")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_gradcheck(splits: int) -> None:
    x, weights = made((2, 3, 3, 4), splits, torch.float64)
    x.requires_grad_()
    weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: split_attention_pool(a, splits), (x,))
    assert torch.autograd.gradcheck(split_attention_combine, (x, weights))


def test_the_same_bits_on_one_and_two_threads_and_when_repeated() -> None:
    x, weights = made((3, 40, 30, 30), 2, torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            found.append([*pooled(split_attention_pool, x, 2), *combined(split_attention_combine, x, weights)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_has_no_kernel_gets_the_references_answer() -> None:
    x, weights = made((2, 3, 5, 5), 2, torch.float32)
    three = torch.randn(2, 9, 5, 5).contiguous(memory_format=LAST)
    assert torch.equal(split_attention_pool(three, 3), reference.split_attention_pool(three, 3))
    assert torch.equal(split_attention_pool(x.contiguous(), 2), reference.split_attention_pool(x.contiguous(), 2))
    strided = x[:, :, ::2]
    assert torch.equal(split_attention_combine(strided, weights), reference.split_attention_combine(strided, weights))
    shared = weights[:1]
    assert torch.equal(split_attention_combine(x, shared), reference.split_attention_combine(x, shared))
    with using("reference"):
        assert torch.equal(split_attention_combine(x, weights), reference.split_attention_combine(x, weights))


def test_gradients_and_weights_in_another_layout() -> None:
    x, weights = made((2, 3, 4, 6), 2, torch.float32)
    x.requires_grad_()
    weights = weights.transpose(1, 2).contiguous().requires_grad_()
    dy = torch.randn(2, 3, 4, 12)[..., ::2]
    ours, theirs = (
        torch.autograd.grad(function(x, weights.transpose(1, 2)), (x, weights), dy)
        for function in (split_attention_combine, reference.split_attention_combine)
    )
    torch.testing.assert_close(ours, theirs)
    (spread,) = torch.autograd.grad(split_attention_pool(x, 2).sum(), x)  # whose gradient is one value, expanded
    torch.testing.assert_close(spread, torch.full_like(x, 1 / 24))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_goes_where_it_goes_in_torch(value: float) -> None:
    x, weights = made((2, 5, 3, 3), 2, torch.float32)
    x[0, 3, 1, 1] = value
    for ours, theirs in (
        (pooled(split_attention_pool, x, 2), pooled(reference.split_attention_pool, x, 2)),
        (combined(split_attention_combine, x, weights), combined(reference.split_attention_combine, x, weights)),
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert torch.equal(a.isinf(), b.isinf())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x, weights = made((2, 6, 3, 4), 2, dtype)
    ops = torch.ops.pynas
    torch.library.opcheck(ops.split_attention_pool_backward, (weights[:, :, 0].contiguous(), 2, 3, 4))
    torch.library.opcheck(ops.split_attention_combine_backward, (x[:, :6].contiguous(memory_format=LAST), x, weights))
    x.requires_grad_()
    torch.library.opcheck(ops.split_attention_pool, (x, 2))
    torch.library.opcheck(ops.split_attention_combine, (x, weights.requires_grad_()))


def test_a_second_derivative_is_refused() -> None:
    x, weights = made((2, 6, 5, 5), 2, torch.float32)
    x.requires_grad_()
    ops = torch.ops.pynas
    for y in (
        split_attention_pool(x, 2),
        split_attention_combine(x, weights),
        ops.split_attention_pool(x, 2),
        ops.split_attention_combine(x, weights),
    ):
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            dx.sum().backward()


def test_compiled_as_one_graph() -> None:
    x, weights = made((2, 6, 5, 5), 4, torch.float32)
    for function, run, given in (
        (split_attention_pool, pooled, (x, 4)),
        (split_attention_combine, combined, (x, weights)),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for a, b in zip(run(compiled, *given), run(function, *given), strict=True):
            assert torch.equal(a, b)


def test_weights_of_another_dtype_as_autocast_makes_them() -> None:
    x, weights = made((2, 6, 5, 5), 2, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = split_attention_combine(x, weights.float())
        assert split_attention_pool(x, 2).dtype == torch.bfloat16
    assert torch.equal(found, split_attention_combine(x, weights))


def test_what_is_wrong_is_said_with_what_is_allowed() -> None:
    ops = torch.ops.pynas
    x, weights = made((2, 3, 5, 5), 2, torch.float32)
    dy = x[:, :3].contiguous(memory_format=LAST)
    wrong: list[tuple[Any, str]] = [
        (lambda: ops.split_attention_pool(x, 3), "splits is 3; allowed: 1, 2, 4"),
        (lambda: ops.split_attention_pool(x, 4), r"x is of shape \(2, 6, 5, 5\); allowed: a number of maps"),
        (lambda: ops.split_attention_pool(x.half(), 2), "x is Half; allowed: float32, bfloat16, float64"),
        (lambda: ops.split_attention_pool(x.contiguous(), 2), "x is not in channels_last"),
        (lambda: ops.split_attention_pool_backward(x, 2, 3, 3), r"dpooled is of shape .*; allowed: \(N, C\)"),
        (
            lambda: ops.split_attention_pool_backward(dy[..., 0, 0].contiguous(), 2, -3, 3),
            "h is -3; allowed: 0 to 2147483",
        ),
        (
            lambda: ops.split_attention_pool_backward(dy[..., 0, 0].contiguous(), 2, 3, -3),
            "w is -3; allowed: 0 to 2147483",
        ),
        (
            lambda: ops.split_attention_pool_backward(dy[:0, :, 0, 0], 2, 2**62, 8),
            "h is 4611686018427387904; allowed: 0",
        ),
        (
            lambda: ops.split_attention_pool_backward(dy[..., 0, 0].contiguous(), 2, 2**31 - 1, 2**31 - 1),
            r"no memory for a tensor of shape \(2, 6, 2147483647, 2147483647\)",
        ),
        (lambda: ops.split_attention_combine(x, weights[0]), r"weights is of shape .*; allowed: \(N, C, splits\)"),
        (lambda: ops.split_attention_combine(x, weights[:1]), r"weights is of shape \(1, 3, 2\)"),
        (lambda: ops.split_attention_combine(x, weights.double()), "weights is Double; allowed: x's dtype"),
        (lambda: ops.split_attention_combine_backward(x, x, weights), r"dy is of shape \(2, 6, 5, 5\)"),
        (lambda: ops.split_attention_combine_backward(dy.double(), x, weights), "dy is Double"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_importing_and_training_load_no_compiler() -> None:
    program = (
        "import sys, torch; from pynas.ops.split_attention import split_attention_pool as f;"
        "x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_();"
        "f(x, 2).sum().backward();"
        "sys.exit(any(name in sys.modules for name in ('torch._dynamo', 'sympy')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
