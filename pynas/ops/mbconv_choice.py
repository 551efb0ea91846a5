"""Whether the GPU's kernels compute a block, and the trial that they have to pass on a GPU before they do."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pynas.ops import library, mbconv_kernels, mbconv_plan, reference_mbconv
from pynas.ops.batch_norm_kernels import statistics_dtype
from pynas.ops.gate import GateLayers
from pynas.ops.mbconv import MBConvLayers, mbconv, under_autocast
from pynas.ops.reduce import Reducer
from pynas.ops.sync_batch_norm import over_several_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""Of a trial's results, by their norms, which may be added to three times what plain torch has in that dtype: sums of
numbers that cancel each other are of little but rounding.
"""


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype that a block computes x in: autocast's, which leaves float64 alone, else x's own."""
    return torch.get_autocast_dtype(x.device.type) if under_autocast(x) else x.dtype


def steps_for(x: Tensor) -> ModuleType | None:
    """Who computes the steps of blocks of x: kernels that have proved right on x's device, or None for nobody."""
    if not library.fused() or dtype_of(x) not in DTYPES or not x.is_cuda:
        return None
    return mbconv_kernels if _trusted(x.device.index, dtype_of(x)) else None


def takes(x: Tensor, layers: MBConvLayers, residual: bool) -> bool:
    """Whether the kernels take x and these layers, and give what the layers would.

    They would not where x is wider than autocast's dtype and is added, for the sum is wide then; and without autocast
    convolutions refuse an x that is narrower than their weights.
    """
    dtype = dtype_of(x)
    if (residual and x.dtype != dtype) or (x.dtype != statistics_dtype(x) and not under_autocast(x)):
        return False
    multiple = 8 if dtype.itemsize == 2 else 4
    channels = (layers.depthwise.in_channels, layers.project.out_channels)
    norms = [norm for norm in (layers.expand_norm, layers.norm, layers.project_norm) if norm is not None]
    made = [mbconv_plan.positions(size, *layers.window) for size in x.shape[2:]]
    return (
        x.dim() == 4
        and x.shape[1] == (layers.expand or layers.depthwise).in_channels
        and all(size > 0 for size in made)
        and (not residual or made == [*x.shape[2:]])
        and min(x.shape[1:]) > 0
        and x.numel() // x.shape[1] < 1 << 31
        # A rank without images must meet the others where they meet: between the steps, in their order.
        and (x.shape[0] > 0 or all(over_several_ranks(norm) is not None for norm in norms))
        and x.is_contiguous(memory_format=torch.channels_last)
        and library.begins_a_vector(x)
        and all(count % multiple == 0 for count in (x.shape[1], *channels))
        and all(
            value is None
            or (
                value.dtype == statistics_dtype(x)
                and value.device == x.device
                and value.is_contiguous()
                and library.begins_a_vector(value)
            )
            for value in _tensors(layers)
        )
        and all(_counts(norm) for norm in norms)
    )


def _counts(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm that follows statistics counts its batches."""
    return norm.running_mean is None or norm.num_batches_tracked is not None


def _tensors(layers: MBConvLayers) -> list[Tensor | None]:
    gate = () if layers.gate is None else (layers.gate.reduce, layers.gate.expand)
    found: list[Tensor | None] = []
    for layer in (layers.expand, layers.depthwise, layers.project, *gate):
        found += [] if layer is None else [layer.weight, layer.bias]
    for norm in (layers.expand_norm, layers.norm, layers.project_norm):
        found += [] if norm is None else [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return found


def _trusted(index: int, dtype: torch.dtype) -> bool:
    if (index, dtype) not in _found and torch.cuda.is_current_stream_capturing():
        return False  # a trial waits for the device; one that runs before the capture decides
    return _tried(index, dtype)


_trusted._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as assume_constant_result, which imports dynamo
_found: dict[tuple[int, torch.dtype], bool] = {}
_one_at_a_time = Lock()


def agree(device: torch.device, reducer: Reducer) -> None:
    """Kernels that are not trusted by every rank are used by none, for ranks meet within blocks. Every rank calls.

    reducer: sums tensors of the device over the ranks.
    """
    if device.type == "cuda":
        _agree(torch.cuda.current_device() if device.index is None else device.index, device, reducer)


def _agree(index: int, device: torch.device, reducer: Reducer) -> None:
    own = [not (library.fused() and _tried(index, dtype)) for dtype in DTYPES]
    refused = torch.tensor(own, dtype=torch.float64, device=device)
    reducer.all_reduce(refused)
    for dtype, count in zip(DTYPES, refused.tolist(), strict=True):
        _found[index, dtype] = count == 0.0


def _tried(index: int, dtype: torch.dtype) -> bool:
    with _one_at_a_time:
        if (index, dtype) not in _found:
            wrong = ""
            if library.has_gpu_kernels(index):
                wrong = trial(mbconv_kernels, torch.device("cuda", index), dtype)
                if wrong:
                    warnings.warn(f"blocks are computed layer by layer: the fused kernels {wrong}", stacklevel=4)
            _found[index, dtype] = not wrong and library.has_gpu_kernels(index)
        return _found[index, dtype]


def trial(steps: ModuleType, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with the steps, by small blocks forward and backward against `reference_mbconv` in float64 on the
    CPU; empty where nothing is.
    """
    # In a thread of its own, whose hooks, modes, autocast and default device are nobody's: a network's first step may
    # be one that is checkpointed, counted or traced.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_wrong, steps, device, dtype).result()


def _wrong(steps: ModuleType, device: torch.device, dtype: torch.dtype) -> str:
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")  # the small products between the steps, too
        if device.type == "cuda":
            torch.cuda.set_device(device)
        for block, plan in product(_TRIED, mbconv_plan.PLANS):
            x, layers = _small_block(*block)
            x = x.to(device, dtype, memory_format=torch.channels_last)
            found = [value.double().cpu() for value in _results(x, layers, plan, steps)]
            plain = _results(x.cpu(), layers, plan, reference_mbconv)
            right = _results(x.cpu().double(), layers, plan, reference_mbconv)  # a GPU's convolutions may be of TF32
            for mine, torchs, exact in zip(found, plain, right, strict=True):
                off, usual = (((value.double() - exact).norm() / exact.norm()).item() for value in (mine, torchs))
                if not off < 3 * usual + ERRORS[dtype]:
                    return f"were off by {off:.1e} on {device} in {dtype}"
    except RuntimeError as error:
        return f"failed on {device} in {dtype}: {str(error).splitlines()[0]}"
    finally:
        torch.set_float32_matmul_precision(precision)
    return ""


_TRIED = ((3, 1, 1, 1), (5, 2, 2, 2), (5, 2, 1, 1))
"""Kernel, stride, padding and splits."""


def _small_block(kernel: int, stride: int, padding: int, splits: int) -> tuple[Tensor, MBConvLayers]:
    generator = torch.Generator().manual_seed(kernel)
    maps = 48 * splits
    made: dict[str, Any] = {"device": "meta", "dtype": torch.float32}  # without values, and so without random numbers
    depthwise = nn.Conv2d(48, maps, kernel, stride, padding, groups=48, bias=False, **made)
    reduce, widen = nn.Conv2d(48, 8, 1, **made), nn.Conv2d(8, maps, 1, **made)
    gate = GateLayers(reduce, "relu", widen, "softmax" if splits > 1 else "hsigmoid")
    norms = [nn.BatchNorm2d(channels, **made) for channels in (48, maps, 16)]
    ends = nn.Conv2d(16, 48, 1, bias=False, **made), nn.Conv2d(48, 16, 1, bias=False, **made)
    layers = MBConvLayers(ends[0], norms[0], depthwise, norms[1], gate, ends[1], norms[2], "hswish")
    modules = _modules(layers).to_empty(device="cpu")
    with torch.no_grad():
        for value in modules.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / max(value[0].numel(), 1) ** 0.5)
    return torch.randn(3, 16, 19, 21, generator=generator), layers


def _modules(layers: MBConvLayers) -> nn.ModuleList:
    return nn.ModuleList([layer for layer in (*layers, *(layers.gate or ())) if isinstance(layer, nn.Module)])


def _results(x: Tensor, layers: MBConvLayers, plan: mbconv_plan.Plan, steps: ModuleType) -> list[Tensor]:
    """Output, the gradients of x and of the weights, output in evaluation."""
    modules, device = _modules(layers), x.device
    modules.zero_grad()
    modules.to(device, torch.promote_types(x.dtype, torch.float32))
    for norm in (layers.expand_norm, layers.norm, layers.project_norm):
        assert norm is not None
        norm.reset_running_stats()
    x = x.detach().requires_grad_()
    residual = layers.depthwise.stride == (1, 1)
    keep = torch.tensor([0.0, 1.25, 1.25], device=device, dtype=x.dtype) if residual else None
    y = mbconv(x, layers, residual, keep, steps=steps, plan=plan)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float32, device=device).view(y.shape)
    (y.float() * weight).sum().backward()
    weights = [value.grad for value in modules.parameters() if value.grad is not None]
    assert x.grad is not None
    modules.eval()
    with torch.no_grad():
        evaluated = mbconv(x, layers, residual, steps=steps, plan=plan)
    modules.train()
    return [y.detach(), x.grad, *weights, evaluated]
