"""depthwise_conv2d and its kernels against torch in float64, on shapes drawn at random and on the awkward ones."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pynas.ops import depthwise, library, rules, using
from pynas.ops.depthwise import depthwise_conv2d
from pynas.ops.reference_depthwise import depthwise_conv2d as reference

pytestmark = [
    pytest.mark.usefixtures("unruled"),
    pytest.mark.skipif(not library.available(), reason=library.why_missing()),
]

LAST = torch.channels_last
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float64: 1e-14}  # of the largest value: a rounding or two
CASES = 40


@pytest.fixture(autouse=True)
def fused() -> Any:
    with using("fused"):
        yield


def case(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[int, int], tuple[int, int]]:
    """x, weight, stride, padding of a convolution with at least one output pixel."""
    draw = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        n, c, m = draw.choice([0, 1, 2, 5]), draw.choice([1, 3, 8, 17, 24, 40]), draw.choice([1, 2, 4])
        size, kernel = draw.choice([1, 2, 7, 13], 2), draw.choice([1, 3, 5, 7], 2 if draw.random() < 0.2 else 1)
        kernel = np.broadcast_to(kernel, 2)
        stride = np.broadcast_to(draw.choice([1, 2], 2 if draw.random() < 0.2 else 1), 2)
        padding = np.array([draw.integers(0, k // 2 + 1) for k in kernel])
        if (size + 2 * padding >= kernel).all():
            break
    x = torch.randn(int(n), int(c), *map(int, size), generator=generator).to(dtype).contiguous(memory_format=LAST)
    weight = torch.randn(int(c * m), 1, *map(int, kernel), generator=generator).to(dtype)
    return x, weight, tuple(map(int, stride)), tuple(map(int, padding))  # type: ignore[return-value]


def results(function: Any, x: Tensor, weight: Tensor, stride: Any, padding: Any, dy: Tensor | None = None) -> Any:
    """Output, gradient of x, gradient of weight."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    y = function(x, weight, stride, padding)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) if dy is None else dy
    y.backward(dy.to(y.dtype).contiguous(memory_format=LAST))
    return y.detach(), x.grad, weight.grad


def drawn(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max()) if exact.numel() else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients_are_as_near_to_float64_as_torchs(dtype: torch.dtype) -> None:
    for seed in range(CASES):
        x, weight, stride, padding = case(seed, dtype)
        dy = drawn(reference(x, weight, stride, padding).shape, seed).to(dtype)
        exact = results(reference, x.double(), weight.double(), stride, padding, dy)
        theirs = results(reference, x, weight, stride, padding, dy)
        ours = results(depthwise_conv2d, x, weight, stride, padding, dy)
        for what, a, b, e in zip(("y", "dx", "dweight"), ours, theirs, exact, strict=True):
            allowed = 2 * error(b, e) + FLOOR[dtype] * (float(e.abs().max()) if e.numel() else 0.0)
            assert error(a, e) <= allowed, (
                f"{what} of case {seed}: {tuple(x.shape)} {tuple(weight.shape)} {stride} {padding}"
            )
            assert a.dtype == dtype
        assert ours[0].is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_kernel_alone_is_right_and_writes_its_output_whole(dtype: torch.dtype) -> None:
    """Including those that the public function leaves to torch. Memory that is freed full of NaN is what they get."""
    for seed in range(CASES):
        x, weight, stride, padding = case(seed, dtype)
        numbers = (*stride, *padding)
        exact = reference(x.double(), weight.double(), stride, padding)
        dy = drawn(exact.shape, seed).to(dtype).contiguous(memory_format=LAST)
        _, dx, dweight = results(reference, x.double(), weight.double(), stride, padding, dy)
        calls: list[tuple[Any, Tensor]] = [
            (lambda a=(x, weight, *numbers): torch.ops.pynas.depthwise_forward(*a), exact),
            (lambda a=(dy, x, *weight.shape[2:], *numbers): torch.ops.pynas.depthwise_grad_weight(*a), dweight),
        ]
        if weight.shape[0] == x.shape[1]:
            arguments = (dy, weight, *x.shape[2:], *numbers)
            calls.append((lambda a=arguments: torch.ops.pynas.depthwise_grad_input(*a), dx))
        for call, right in calls:
            poison = torch.full(right.shape, torch.nan, dtype=dtype)
            del poison
            assert error(call(), right) <= FLOOR[dtype] * (float(right.abs().max()) if right.numel() else 0.0), seed


def test_kernels_of_any_size_strides_and_paddings() -> None:
    for kernel, stride, padding in product([(1, 2), (4, 6), (9, 3), (2, 7)], [(1, 3), (3, 1)], [(0, 0), (4, 5)]):
        x = torch.randn(2, 6, 11, 10, dtype=torch.float64).contiguous(memory_format=LAST)
        weight = torch.randn(6, 1, *kernel, dtype=torch.float64)
        ours = results(depthwise_conv2d, x, weight, stride, padding)
        for a, b in zip(ours, results(reference, x, weight, stride, padding), strict=True):
            torch.testing.assert_close(a, b)


def test_large_maps_are_summed_in_chunks() -> None:
    x = torch.randn(3, 19, 70, 130).contiguous(memory_format=LAST)
    weight = torch.randn(19, 1, 5, 5)
    exact = results(reference, x.double(), weight.double(), (1, 1), (2, 2))
    theirs = results(reference, x, weight, (1, 1), (2, 2))
    ours = results(depthwise_conv2d, x, weight, (1, 1), (2, 2))
    assert error(ours[2], exact[2]) <= 2 * error(theirs[2], exact[2])


@pytest.mark.parametrize(("multiplier", "stride"), [(1, 1), (1, 2), (2, 1)])
def test_gradcheck(multiplier: int, stride: int) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=LAST).requires_grad_()
    weight = torch.randn(3 * multiplier, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: depthwise_conv2d(a, b, stride, 1), (x, weight))


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_only_the_gradient_that_is_needed_is_computed(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("computed for nothing")

    monkeypatch.setattr(depthwise, "grad_weight" if wanted == "x" else "grad_input", refuse)
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=LAST).requires_grad_(wanted == "x")
    weight = torch.randn(8, 1, 3, 3, requires_grad=wanted == "weight")
    depthwise_conv2d(x, weight, 1, 1).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == (wanted == "x", wanted == "weight")


def test_inputs_that_have_no_kernel_get_the_references_answer() -> None:
    weight = torch.randn(8, 1, 3, 3)
    dense = torch.randn(2, 8, 9, 9)
    for x in (dense, dense.contiguous(memory_format=LAST)[:, :, ::2], dense.half(), dense[0]):
        given = (x, weight.to(x.dtype), (1, 1), (1, 1))
        assert torch.equal(depthwise_conv2d(*given), functional.conv2d(*given[:2], None, *given[2:], groups=8))
    x = dense.contiguous(memory_format=LAST)
    with using("reference"):
        assert torch.equal(depthwise_conv2d(x, weight, 1, 1), reference(x, weight, (1, 1), (1, 1)))


def test_gradients_and_weights_in_another_layout() -> None:
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=LAST).requires_grad_()
    weight = torch.randn(3, 3, 1, 8).permute(3, 2, 0, 1).requires_grad_()
    dy = torch.randn(2, 8, 9, 18)[..., ::2]
    found = torch.autograd.grad(depthwise_conv2d(x, weight, 1, 1), (x, weight), dy)
    expected = torch.autograd.grad(reference(x, weight, (1, 1), (1, 1)), (x, weight), dy)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_goes_where_it_goes_in_torch(dtype: torch.dtype, value: float) -> None:
    """In float64 torch multiplies padding too; where that gives NaN ours may, as in float32 torch's does not."""
    x = torch.randn(2, 8, 7, 7, dtype=dtype).contiguous(memory_format=LAST)
    weight = torch.randn(8, 1, 3, 3, dtype=dtype)
    x[0, 3, 2, 2] = value
    dy = torch.randn(2, 8, 7, 7, dtype=dtype)
    dy[1, 5, 0, 3] = value
    for ours, theirs in zip(
        results(depthwise_conv2d, x, weight, (1, 1), (1, 1), dy),
        results(reference, x, weight, (1, 1), (1, 1), dy),
        strict=True,
    ):
        must = ~theirs.isfinite() if dtype == torch.float32 else theirs.isinf()
        may = ~results_with_padding(x, weight, dy)[ours.shape].isfinite()
        assert not ours[must].isfinite().any()
        assert ours[~may].isfinite().all()


def results_with_padding(x: Tensor, weight: Tensor, dy: Tensor) -> dict[torch.Size, Tensor]:
    """By shape; y and dx, of the same shape, are not finite where either is not."""
    y, dx, dweight = results(reference, x.double(), weight.double(), (1, 1), (1, 1), dy)
    return {y.shape: y + dx, dweight.shape: dweight}


def digest() -> str:
    """Bits of the kernels' answers on shapes of several chunks and blocks."""
    found = []
    generator = torch.Generator().manual_seed(3)
    for dtype, n, c, h, k, stride in ((torch.float32, 3, 40, 40, 5, 1), (torch.bfloat16, 2, 24, 60, 3, 2)):
        x = torch.randn(n, c, h, h, generator=generator).to(dtype).contiguous(memory_format=LAST)
        weight = torch.randn(c, 1, k, k, generator=generator).to(dtype)
        numbers = (stride, stride, k // 2, k // 2)
        y = torch.ops.pynas.depthwise_forward(x, weight, *numbers)
        dx = torch.ops.pynas.depthwise_grad_input(y, weight, h, h, *numbers)
        dweight = torch.ops.pynas.depthwise_grad_weight(y, x, k, k, *numbers)
        found += [t.contiguous().view(torch.uint8).numpy().tobytes() for t in (y, dx, dweight)]
    return hashlib.sha256(b"".join(found)).hexdigest()


def test_the_same_bits_on_one_and_two_threads_and_when_repeated() -> None:
    threads = torch.get_num_threads()
    try:
        found = set()
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            found.add(digest())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_agrees_with_float64(instruction_set: str) -> None:
    environment = {**os.environ, "PYNAS_INSTRUCTION_SET": instruction_set, "OMP_NUM_THREADS": "1"}
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_depthwise as t; t.check_instruction_set()"
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)], env=environment, capture_output=True, text=True
    )
    if "this processor has up to" in done.stderr:
        pytest.skip(f"no {instruction_set} here")
    assert done.returncode == 0, done.stderr


def check_instruction_set() -> None:
    """What the subprocess of the test above runs."""
    rules.MEASURED = False
    for dtype in DTYPES:
        for seed in range(100, 112):
            x, weight, stride, padding = case(seed, dtype)
            exact = results(reference, x.double(), weight.double(), stride, padding)
            y = torch.ops.pynas.depthwise_forward(x, weight, *stride, *padding)
            for a, e in ((y, exact[0]), (results(depthwise_conv2d, x, weight, stride, padding)[2], exact[2])):
                assert error(a, e) <= 3 * FLOOR[dtype] * (float(e.abs().max()) if e.numel() else 0.0), (dtype, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 5, 7).to(dtype).contiguous(memory_format=LAST)
    weight = torch.randn(6, 1, 3, 3).to(dtype)
    dy = torch.randn(2, 6, 3, 4).to(dtype).contiguous(memory_format=LAST)
    ops = torch.ops.pynas
    torch.library.opcheck(ops.depthwise_forward, (x, weight, 2, 2, 1, 1))
    torch.library.opcheck(ops.depthwise_grad_input, (dy, weight, 5, 7, 2, 2, 1, 1))
    torch.library.opcheck(ops.depthwise_grad_weight, (dy, x, 3, 3, 2, 2, 1, 1))
    torch.library.opcheck(ops.depthwise_conv2d_backward, (dy, x, weight, [2, 2], [1, 1], [True, False]))
    x.requires_grad_()
    torch.library.opcheck(ops.depthwise_conv2d, (x, weight.requires_grad_(), [2, 2], [1, 1]))


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=LAST).requires_grad_()
    weight = torch.randn(6, 1, 3, 3)
    for y in (depthwise_conv2d(x, weight, 1, 1), torch.ops.pynas.depthwise_conv2d(x, weight, [1, 1], [1, 1])):
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            dx.sum().backward()


def test_compiled_as_one_graph() -> None:
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=LAST)
    weight = torch.randn(16, 1, 5, 5)
    compiled = torch.compile(depthwise_conv2d, fullgraph=True, backend="aot_eager")
    found, expected = (results(f, x, weight, (2, 2), (2, 2)) for f in (compiled, depthwise_conv2d))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_autocast_computes_in_its_dtype_and_gives_gradients_in_the_inputs() -> None:
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=LAST).requires_grad_()
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, 1, 1)
        assert y.dtype == reference(x, weight, (1, 1), (1, 1)).dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_what_is_wrong_is_said_with_what_is_allowed() -> None:
    ops = torch.ops.pynas
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=LAST)
    weight = torch.randn(6, 1, 3, 3)
    wrong: list[tuple[Any, str]] = [
        (
            lambda: ops.depthwise_forward(x[0], weight, 1, 1, 1, 1),
            r"x is of shape \(6, 5, 5\); allowed: \(N, C, H, W\)",
        ),
        (lambda: ops.depthwise_forward(x.contiguous(), weight, 1, 1, 1, 1), "x is not in channels_last"),
        (lambda: ops.depthwise_forward(x.half(), weight.half(), 1, 1, 1, 1), "x is Half; allowed: float32, bfloat16"),
        (lambda: ops.depthwise_forward(x, weight.double(), 1, 1, 1, 1), "weight is Double; allowed: the dtype"),
        (lambda: ops.depthwise_forward(x, weight[:4], 1, 1, 1, 1), "number of maps is 4; allowed: a multiple"),
        (lambda: ops.depthwise_forward(x, weight, 0, 1, 1, 1), r"stride is \(0, 1\); allowed: 1 to 2147483647"),
        (lambda: ops.depthwise_forward(x, weight, 1, 1, -1, 1), r"padding is \(-1, 1\); allowed: 0 to 2147483647"),
        (lambda: ops.depthwise_forward(x[:1, :, :2], weight, 1, 1, 0, 0), r"size of images is \(2, 5\)"),
        (lambda: ops.depthwise_grad_weight(x, x, 3, 3, 1, 1, 0, 0), r"dy is of shape \(2, 6, 5, 5\)"),
        (lambda: ops.depthwise_grad_weight(x, x, 9, 9, 1, 1, 4, 4), r"kernel is \(9, 9\); allowed: up to 7 wide"),
        (lambda: ops.depthwise_grad_input(x, weight[:3], 5, 5, 1, 1, 1, 1), "dy is of shape"),
        (lambda: ops.depthwise_forward(x, weight, 1, 1, 2**62, 0), r"padding is \(4611686018427387904, 0\)"),
        (lambda: ops.depthwise_forward(x, weight, 1, 1, 2**30, 2**30), r"no memory for a tensor of shape \(2, 6, 2147"),
        (lambda: ops.depthwise_grad_input(x, weight, 2**40, 5, 1, 1, 1, 1), r"size of images is \(1099511627776, 5\)"),
        (lambda: ops.depthwise_grad_weight(x, x, 3, 3, 2**40, 1, 1, 1), "stride is .*; allowed: 1 to 2147483647"),
        # Torch's own convolution divides by zero here, and the process ends.
        (lambda: ops.depthwise_conv2d(x, weight, (2**63 - 1, 2), (0, 0)), "stride is .*; allowed: two of 1 to 2147483"),
        (lambda: ops.depthwise_conv2d(x, weight, (0, 1), (0, 0)), r"stride is \(0, 1\); allowed: two of 1"),
        (lambda: ops.depthwise_conv2d(x.to("meta"), weight.to("meta"), (0, 1), (0, 0)), r"stride is \(0, 1\); allowed"),
        (lambda: ops.depthwise_conv2d(x, weight, (1, 1), (0, -1)), r"padding is \(0, -1\); allowed: two of 0"),
        (lambda: ops.depthwise_conv2d(x, weight, (1, 1, 1), (0, 0)), r"stride is \(1, 1, 1\); allowed: two of"),
        (lambda: ops.depthwise_conv2d(x[0], weight, (1, 1), (0, 0)), r"x is of shape \(6, 5, 5\); allowed: \(N, C, H"),
        (lambda: ops.depthwise_conv2d(x.half(), weight, (1, 1), (0, 0)), "x is float16; allowed: float32, bfloat16"),
        (
            lambda: ops.depthwise_conv2d(x, weight.double(), (1, 1), (0, 0)),
            "weight is float64; allowed: the dtype of x",
        ),
        (lambda: ops.depthwise_conv2d(x, weight[:, 0], (1, 1), (0, 0)), r"weight is of shape .*; allowed: \(maps, 1"),
        (lambda: ops.depthwise_conv2d(x, weight[:, :0], (1, 1), (0, 0)), r"weight is of shape .*; allowed: \(maps, 1"),
        (
            lambda: ops.depthwise_conv2d(x, weight[:4], (1, 1), (0, 0)),
            "the number of maps is 4 of 6 channels; allowed:",
        ),
        (
            lambda: ops.depthwise_conv2d_backward(x, x, weight, (1, 1), (0, 0), (True, True)),
            r"dy is float32 of shape \(2, 6, 5, 5\); allowed: the dtype of x, of shape \(2, 6, 3, 3\)",
        ),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(RuntimeError):  # torch's own words
        depthwise_conv2d(x, weight[:4], 1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 9])
@pytest.mark.parametrize("last", [False, True])
def test_the_operator_takes_every_layout_and_width_with_gradients(dtype: torch.dtype, width: int, last: bool) -> None:
    x = torch.randn(2, 6, 9, 10).to(dtype)
    x = (x.contiguous(memory_format=LAST) if last else x).requires_grad_()
    weight = torch.randn(12, 1, 3, width).to(dtype).requires_grad_()
    op, given = torch.ops.pynas.depthwise_conv2d, ((2, 1), (1, width // 2))
    torch.library.opcheck(op, (x, weight, *given))
    exact = results(reference, x.double(), weight.double(), *given)
    for a, b, e in zip(results(op, x, weight, *given), results(reference, x, weight, *given), exact, strict=True):
        assert error(a, e) <= 2 * error(b, e) + FLOOR[dtype] * float(e.abs().max())


@pytest.mark.parametrize("value", [(1, 2, 3), (1,), (), "a", "ab", 1.5, (1.5, 1), None])
def test_a_stride_or_padding_of_another_kind_is_a_runtime_error(value: Any) -> None:
    weight = torch.randn(6, 1, 5, 5)
    for x in (torch.randn(2, 6, 9, 9), torch.randn(2, 6, 9, 9).contiguous(memory_format=LAST)):
        with pytest.raises(RuntimeError, match=r"stride is .*; allowed: an int, or two"):
            depthwise_conv2d(x, weight, value, 1)
        with pytest.raises(RuntimeError, match=r"padding is .*; allowed: an int, or two"):
            depthwise_conv2d(x, weight, 1, value)


def test_importing_and_training_load_no_compiler() -> None:
    program = (
        "import sys, torch; from pynas.ops.depthwise import depthwise_conv2d as f;"
        "x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_();"
        "f(x, torch.randn(8, 1, 3, 3, requires_grad=True), 1, 1).sum().backward();"
        "sys.exit(any(name in sys.modules for name in ('torch._dynamo', 'sympy')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
