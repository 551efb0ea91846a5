"""The GPU kernels of a block's steps, emulated on the CPU and, where there is one, on a GPU: halos, tails, odd sizes,
statistics, every fragment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import tiles
import torch
from torch import Tensor

from pynas.ops import available, mbconv_kernels
from pynas.ops import reference_mbconv as reference
from pynas.ops.mbconv_plan import positions
from pynas.ops.reference_mbconv import Norm, NormBackward

CAPS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FLOORS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
DTYPES = list(CAPS)
LAST = torch.channels_last
has_gpu = available() and torch.cuda.is_available() and torch.ops.pynas.has_cuda()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu, reason="no GPU here, or a library without CUDA kernels")]


EMULATED: Any = tiles
ON_GPU: Any = mbconv_kernels
WHERE = [pytest.param(EMULATED, id="emulated"), pytest.param(ON_GPU, id="cuda", marks=GPU)]


class Draw:
    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.generator)

    def images(self, *sizes: int, mean: float = 0.5) -> Tensor:
        return (2 * self(*sizes) + mean).to(self.dtype).contiguous(memory_format=LAST)

    def norm(self, channels: int, act: str) -> Norm:
        return Norm(self(channels), self(channels).square() + 0.5, self(channels), self(channels), 1e-5, act)

    def backward(self, y: Tensor, act: str, gate: str, sums: bool = True) -> NormBackward:
        n, c, h, w = y.shape
        gates = {"none": None, "images": self(n, 1), "channels": self(n, c)}[gate]
        dpool = self(n, c) if gate == "channels" else None
        return NormBackward(self.norm(c, act), gates, dpool, self(2, c) if sums else None, n * h * w)


def mapped(convert: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, (Norm, NormBackward)):
        return type(value)(*(mapped(convert, part) for part in value))
    return value


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [tensor for part in value for tensor in flat(part)]


def check(steps: Any, step: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Errors against float64 are at most twice those of torch's operators, and below a cap; weights of products and
    what is between two operators are rounded to the dtype, as of what is given: `exact` has them as they are."""
    device = "cuda" if steps is ON_GPU else "cpu"
    mine, wide = ([mapped(to, value) for value in arguments] for to in (lambda x: x.to(device), Tensor.double))
    found = [value.cpu() for value in flat(getattr(steps, step)(*mine))]
    if steps is EMULATED:
        with tiles.last_thread_first():
            others = flat(getattr(tiles, step)(*arguments))
        assert all(torch.equal(a, b) for a, b in zip(found, others, strict=True)), "threads disturb each other"
    eager = flat(getattr(reference, step)(*arguments))
    exact = flat(getattr(reference, step)(*wide))
    assert len(found) == len(eager) == len(exact) > 0
    for i, (mine, torchs, right) in enumerate(zip(found, eager, exact, strict=True)):
        assert mine.dtype == torchs.dtype, i
        assert mine.shape == torchs.shape, i
        size = max(right.norm().item(), 1e-30)
        error, allowed = ((value.double() - right).norm().item() / size for value in (mine, torchs))
        assert error <= 2 * allowed + FLOORS[dtype], f"result {i}: {error:.1e}, torch's {allowed:.1e}"
        assert error <= CAPS[dtype], f"result {i}: {error:.1e}"


# --- depthwise: images of one pixel, one row, less than a tile, a tile and its tail; channels beyond a warp ---

IMAGES = [(1, 8, 1, 1), (9, 40, 7, 7), (2, 8, 9, 1), (2, 40, 19, 23), (2, 16, 8, 8), (1, 64, 17, 33), (5, 24, 2, 3)]
SPLITS = [1, 1, 4, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("steps", WHERE)
def test_depthwise(steps: Any, kernel: int, stride: int, dtype: torch.dtype) -> None:
    for i, ((n, c, h, w), splits) in enumerate(zip(IMAGES, SPLITS, strict=True)):
        draw = Draw(i, dtype)
        act = ("hswish", "swish", "relu", "identity", "relu6")[i % 5]
        x, weight = draw.images(n, c, h, w), draw(c * splits, 1, kernel, kernel) / kernel
        norm = draw.norm(c, act) if i != 4 else None
        check(steps, "depthwise", dtype, x, norm, weight, stride, kernel // 2, True)
        known = draw.norm(c * splits, act)
        check(steps, "depthwise_applied", dtype, x, norm, weight, stride, kernel // 2, known, i != 2)
        y = draw.images(n, c * splits, (h - 1) // stride + 1, (w - 1) // stride + 1)
        d = draw.images(n, c, *y.shape[2:], mean=0.0)
        after = draw.backward(y, act, ("none", "images", "channels")[i % 3], sums=i != 3)
        check(steps, "depthwise_backward", dtype, d, y, after, weight, x, norm, stride, kernel // 2)
        if norm is not None:
            inputs = (8, 40, 24, 16, 8, 72, 8)[i]  # more and fewer than a panel's terms
            x, expand = draw.images(n, inputs, h, w), (draw(c, inputs, 1, 1) / math.sqrt(inputs)).to(dtype).float()
            check(steps, "depthwise", dtype, x, norm, weight, stride, kernel // 2, True, expand)
            check(steps, "depthwise_applied", dtype, x, norm, weight, stride, kernel // 2, known, True, expand)
            check(steps, "depthwise_backward", dtype, d, y, after, weight, x, norm, stride, kernel // 2, expand)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "padding"), [(k, padding) for k in (3, 5, 7) for padding in range(k) if padding != k // 2]
)
@pytest.mark.parametrize("steps", WHERE)
def test_depthwise_with_any_padding(steps: Any, kernel: int, padding: int, stride: int) -> None:
    """Gradients of stride 2 go by the parity of padding; tiles may begin a pixel before the image."""
    dtype = DTYPES[(kernel + padding) % 3]
    for i, (n, c, h, w) in enumerate([(1, 8, 17, 16), (2, 8, 7, 8)]):
        draw = Draw(padding, dtype)
        splits = 1 + i
        x, weight, norm = draw.images(n, c, h, w), draw(c * splits, 1, kernel, kernel) / kernel, draw.norm(c, "swish")
        inputs, expand = draw.images(n, 16, h, w), (draw(c, 16, 1, 1) / 4).to(dtype).float()
        made = [positions(size, kernel, stride, padding) for size in (h, w)]
        y, d = draw.images(n, c * splits, *made), draw.images(n, c, *made, mean=0.0)
        after, known = draw.backward(y, "swish", "channels"), draw.norm(c * splits, "swish")
        for given in ((x, None), (inputs, expand))[: 2 - i]:
            check(steps, "depthwise", dtype, given[0], norm, weight, stride, padding, True, given[1])
            check(steps, "depthwise_applied", dtype, given[0], norm, weight, stride, padding, known, True, given[1])
            check(steps, "depthwise_backward", dtype, d, y, after, weight, given[0], norm, stride, padding, given[1])


# --- products: fewer rows, columns and terms than a tile, and tails of each ---

PRODUCTS = [(2, 7, 7, 16, 64, 24), (3, 19, 13, 24, 96, 40), (1, 1, 3, 8, 8, 8), (2, 14, 14, 8, 200, 32)]
PRODUCTS += [(9, 3, 3, 40, 72, 16), (2, 40, 33, 8, 8, 8)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "h", "w", "channels", "mid", "out"), PRODUCTS)
@pytest.mark.parametrize("steps", WHERE)
def test_products(steps: Any, n: int, h: int, w: int, channels: int, mid: int, out: int, dtype: torch.dtype) -> None:
    draw = Draw(mid, dtype)
    act = "swish" if h % 2 else "hswish"
    x, y1, y2 = draw.images(n, channels, h, w), draw.images(n, mid, h, w), draw.images(n, mid, h, w)
    y3, d = draw.images(n, out, h, w), draw.images(n, out, h, w, mean=0.0)
    first, last = draw(mid, channels, 1, 1) / math.sqrt(channels), draw(out, mid, 1, 1) / math.sqrt(mid)
    norm = draw.norm(mid, act)
    for gate in (None, draw(n, mid)):
        check(steps, "expand", dtype, x, first, gate is None)
        check(steps, "pooled", dtype, y2, norm)
        check(steps, "project", dtype, y2, norm, gate, last, gate is None)
        check(steps, "project_applied", dtype, y2, gate, last, draw.norm(out, "identity"), None if gate is None else d)
        after = draw.backward(y3, "identity", "none" if gate is None else "images", sums=gate is None)
        check(steps, "project_backward", dtype, d, y3, after, last, y2, norm, 1)
        check(steps, "project_weight_backward", dtype, d, y3, after, y2, norm, gate)
        of_first = draw.backward(y1, "identity", "none", sums=gate is None)
        check(steps, "expand_backward", dtype, y2, y1, of_first, first, None if gate is None else x)
        check(steps, "expand_weight_backward", dtype, y2, y1, of_first, x)
        centre = draw(channels)
        check(steps, "gram", dtype, x, centre, x, centre)
        check(steps, "gram", dtype, y1, None, x, centre)
        weight = draw(channels, mid + channels) / math.sqrt(mid + channels)
        residual = None if gate is None else x
        check(steps, "expanded_backward", dtype, y1, x, centre, weight, draw(channels), residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [2, 4])
@pytest.mark.parametrize("steps", WHERE)
def test_a_gradient_that_maps_share_is_written_once(steps: Any, splits: int, dtype: torch.dtype) -> None:
    draw, channels, out = Draw(splits, dtype), 24, 40
    y2, y3 = draw.images(3, channels * splits, 9, 5), draw.images(3, out, 9, 5)
    weight = draw(out, channels, 1, 1).repeat_interleave(splits, 1) / math.sqrt(out)
    after, norm = draw.backward(y3, "identity", "images"), draw.norm(channels * splits, "swish")
    d = draw.images(*y3.shape, mean=0.0)
    check(steps, "project_backward", dtype, d, y3, after, weight, y2, norm, splits)


def test_a_large_mean_costs_no_more_than_in_torchs_own() -> None:
    draw = Draw(0, torch.float32)
    for mean in (1e3, 1e4):
        x, weight = draw.images(2, 8, 20, 20, mean=mean), torch.eye(8)[:, :, None, None]
        for found in (tiles.expand(x, weight, True), tiles.depthwise(x, None, torch.ones(8, 1, 3, 3), 1, 1, False)):
            assert found[0].isfinite().all()
        _, statistics = tiles.expand(x, weight, True)
        var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        assert statistics is not None
        assert statistics[0] == pytest.approx(exact_mean, rel=1e-6)
        assert statistics[1] == pytest.approx(var, rel=1e-4)


def test_the_same_bits_when_repeated() -> None:
    draw = Draw(0, torch.bfloat16)
    x, weight = draw.images(2, 40, 19, 23), draw(40, 1, 5, 5)
    norm, after = draw.norm(40, "swish"), draw.backward(x, "swish", "channels")
    one, other = (flat(tiles.depthwise_backward(x, x, after, weight, x, norm, 1, 2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- numbers ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    own = tiles.library()
    own.number_of.restype, own.bits_for.restype = tiles.ctypes.c_float, tiles.ctypes.c_uint16
    kind = tiles.TYPES[dtype]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    read = torch.tensor([own.number_of(kind, int(bits) & 0xFFFF) for bits in every])
    torch.testing.assert_close(read, every.view(dtype).float(), rtol=0, atol=0, equal_nan=True)
    # What lies on, halfway and next to halfway between two neighbours, and beyond the largest.
    finite = torch.sort(read[read.isfinite()])[0]
    between = (finite[1:].double() + finite[:-1].double()).float() / 2
    given = torch.cat([between, between.nextafter(finite[1:]), between.nextafter(finite[:-1])])[::5]
    given = torch.cat([given, torch.tensor([65519.9, 65520.0, 1e38, -3.4e38, math.inf, -math.inf, math.nan])])
    argument = tiles.ctypes.c_float
    put = torch.tensor([own.bits_for(kind, argument(value)) for value in given.tolist()], dtype=torch.int32)
    found = put.to(torch.int16).view(dtype)
    torch.testing.assert_close(found, given.to(dtype), rtol=0, atol=0, equal_nan=True)
