"""Whether the GPU's kernels compute a block, and the trial that they have to pass on a GPU before they do."""

from __future__ import annotations

import warnings
from itertools import product
from types import ModuleType

import torch
from torch import Tensor, nn

from pynas.ops import library, mbconv_kernels, mbconv_plan, reference_mbconv
from pynas.ops.batch_norm_kernels import statistics_dtype
from pynas.ops.gate import GateLayers
from pynas.ops.mbconv import MBConvLayers, mbconv, under_autocast

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
    if not library.fused() or not x.is_cuda or dtype_of(x) not in DTYPES or not library.available():
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
    made = [mbconv_plan.positions(size, *layers.window) for size in x.shape[2:]]
    return (
        x.dim() == 4
        and all(size > 0 for size in made)
        and (not residual or made == [*x.shape[2:]])
        and 0 < x.numel() // max(x.shape[1], 1) < 1 << 31
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.storage_offset() * x.element_size() % 16 == 0
        and all(count % multiple == 0 for count in (x.shape[1], *channels))
        and all(
            value is None or (value.dtype == statistics_dtype(x) and value.device == x.device and value.is_contiguous())
            for value in _tensors(layers)
        )
        and all(norm is None or _counts(norm) for norm in (layers.expand_norm, layers.norm, layers.project_norm))
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


def _tried(index: int, dtype: torch.dtype) -> bool:
    if (index, dtype) not in _found:
        wrong = "the library was built without them"
        if torch.ops.pynas.has_cuda():
            wrong = trial(mbconv_kernels, torch.device("cuda", index), dtype)
            if wrong:
                warnings.warn(f"blocks are computed layer by layer: the fused kernels {wrong}", stacklevel=4)
        _found[index, dtype] = not wrong
    return _found[index, dtype]


def trial(steps: ModuleType, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with the steps, by small blocks forward and backward against `reference_mbconv` in float64 on the
    CPU; empty where nothing is.
    """
    cpu = torch.device("cpu")  # a GPU's convolutions may be of TF32
    for block, plan in product(_TRIED, mbconv_plan.PLANS):
        narrow = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), narrow, mbconv_plan.using(plan):
            x, layers = _small_block(*block)
            x = x.to(device, dtype, memory_format=torch.channels_last)
            try:
                found = _results(x, layers, device, steps)
            except RuntimeError as error:
                return f"failed on {device} in {dtype}: {str(error).splitlines()[0]}"
            plain = _results(x.cpu(), layers, cpu, reference_mbconv)
            right = _results(x.double().cpu(), layers, cpu, reference_mbconv)
        for mine, torchs, exact in zip(found, plain, right, strict=True):
            off, usual = (((value.double().cpu() - exact).norm() / exact.norm()).item() for value in (mine, torchs))
            if not off < 3 * usual + ERRORS[dtype]:
                return f"were off by {off:.1e} on {device} in {dtype}"
    return ""


_TRIED = ((3, 1, 1, 1), (5, 2, 2, 2), (5, 2, 1, 1))
"""Kernel, stride, padding and splits."""


def _small_block(kernel: int, stride: int, padding: int, splits: int) -> tuple[Tensor, MBConvLayers]:
    generator = torch.Generator().manual_seed(kernel)
    with torch.random.fork_rng(devices=[]):
        maps = 48 * splits
        depthwise = nn.Conv2d(48, maps, kernel, stride, padding, groups=48, bias=False)
        gate = GateLayers(nn.Conv2d(48, 8, 1), "relu", nn.Conv2d(8, maps, 1), "softmax" if splits > 1 else "hsigmoid")
        norms = [nn.BatchNorm2d(channels) for channels in (48, maps, 16)]
        ends = nn.Conv2d(16, 48, 1, bias=False), nn.Conv2d(48, 16, 1, bias=False)
    layers = MBConvLayers(ends[0], norms[0], depthwise, norms[1], gate, ends[1], norms[2], "hswish")
    with torch.no_grad():
        for value in (value for value in _tensors(layers) if isinstance(value, nn.Parameter)):
            value.copy_(torch.randn(value.shape, generator=generator) / max(value[0].numel(), 1) ** 0.5)
    return torch.randn(3, 16, 19, 21, generator=generator), layers


def _results(x: Tensor, layers: MBConvLayers, device: torch.device, steps: ModuleType) -> list[Tensor]:
    """Output, the gradients of x and of the weights, output in evaluation."""
    every = (*layers, *(layers.gate or ()))
    modules = nn.ModuleList([layer for layer in every if isinstance(layer, nn.Module)])
    modules.zero_grad()
    modules.to(device, torch.promote_types(x.dtype, torch.float32))
    for norm in (layers.expand_norm, layers.norm, layers.project_norm):
        assert norm is not None
        norm.reset_running_stats()
    x = x.detach().requires_grad_()
    residual = layers.depthwise.stride == (1, 1)
    keep = torch.tensor([0.0, 1.25, 1.25], device=device, dtype=x.dtype) if residual else None
    y = mbconv(x, layers, residual, keep, steps=steps)
    (y.float() * torch.linspace(-1, 1, y.numel(), device=device).view_as(y)).sum().backward()
    weights = [value.grad for value in modules.parameters() if value.grad is not None]
    assert x.grad is not None
    modules.eval()
    with torch.no_grad():
        evaluated = mbconv(x, layers, residual, steps=steps)
    modules.train()
    return [y.detach(), x.grad, *weights, evaluated]
