"""An inverted residual block fused across its batch-norms: their statistics are taken where a convolution writes, and
they are applied where the next one reads, so that none of them is a pass over activations of its own.

Shapes: N images, C channels, H x W pixels. docs/kernels.md has the steps, F1 to F5 forward and B1 to B5 backward.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pynas.errors import PynasError
from pynas.ops import mbconv_plan, reference_mbconv
from pynas.ops.gate import GateLayers, check_gate
from pynas.ops.mbconv_autograd import BlockFunction, Static, infer
from pynas.ops.sync_batch_norm import follow, over_several_ranks


class MBConvLayers(NamedTuple):
    """The layers of a block. Without `expand` the depthwise convolution reads the block's input as it is; with several
    kernels a channel (`depthwise.groups` its input's channels) the gate is Split-Attention's, and `project` reads the
    weighted sum of a channel's maps.
    """

    expand: nn.Conv2d | None
    expand_norm: nn.BatchNorm2d | None
    depthwise: nn.Conv2d
    norm: nn.BatchNorm2d
    gate: GateLayers | None
    project: nn.Conv2d
    project_norm: nn.BatchNorm2d
    act: str

    @property
    def splits(self) -> int:
        return self.depthwise.out_channels // self.depthwise.in_channels

    @property
    def window(self) -> tuple[int, int, int]:
        """Kernel, stride and padding of the depthwise convolution."""
        conv = self.depthwise
        return conv.kernel_size[0], conv.stride[0], cast(int, conv.padding[0])


def mbconv(
    x: Tensor,
    layers: MBConvLayers,
    residual: bool,
    keep: Tensor | None = None,
    *,
    steps: ModuleType | None = None,
    plan: mbconv_plan.Plan | None = None,
) -> Tensor:
    """norm3(project(gate(act(norm2(depthwise(act(norm1(expand(x))))))))) keep[n] + x: (N, C', H', W').

    x: channels_last. residual: whether x is added. keep: (N,), what each sample's branch is multiplied by (stochastic
    depth). Norms count as when they are called: in training they take the batch's statistics, a `SyncBatchNorm` those
    of all ranks' batches, and follow them. Under autocast x is taken in its dtype. Gradients: of x and of all layers'
    parameters. steps: who computes, `reference_mbconv` by default. plan: `mbconv_plan`'s by default.

    Saved for backward: x and what the three convolutions give (y1, y2, y3), without y1 where `mbconv_plan` has it made
    anew; nothing else of their size. Raises PynasError for layers that no step computes and for an x or keep that does
    not fit them, ValueError for a single value a channel in training, as torch.
    """
    check_layers(layers)
    _check_input(x, layers, residual, keep)
    device = x.device.type
    if under_autocast(x):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return _mbconv(x, layers, residual, keep, steps or reference_mbconv, plan)
    return _mbconv(x, layers, residual, keep, steps or reference_mbconv, plan)


def under_autocast(x: Tensor) -> bool:
    """Whether autocast computes with x in its own dtype."""
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return enabled and x.dtype != torch.float64


def _mbconv(
    x: Tensor,
    layers: MBConvLayers,
    residual: bool,
    keep: Tensor | None,
    steps: ModuleType,
    plan: mbconv_plan.Plan | None,
) -> Tensor:
    norms = (layers.expand_norm, layers.norm, layers.project_norm)
    of_batch = tuple(norm is not None and (norm.training or norm.running_mean is None) for norm in norms)
    reducers = tuple(None if norm is None else over_several_ranks(norm) for norm in norms)
    counts = _counts(x, layers)
    for own, reducer, count in zip(of_batch, reducers, counts, strict=True):
        if own and reducer is None and count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    weights = [None if layers.expand is None else layers.expand.weight, layers.depthwise.weight, layers.project.weight]
    running: list[Tensor | None] = []
    for norm, own in zip(norms, of_batch, strict=True):
        weights += [None, None] if norm is None else [norm.weight, norm.bias]
        running += [None, None] if norm is None or own else [norm.running_mean, norm.running_var]
    gate = layers.gate
    if gate is not None:
        weights += [gate.reduce.weight, gate.reduce.bias, gate.expand.weight, gate.expand.bias]
    inferring = not torch.is_grad_enabled() and not any(of_batch) and keep is None
    static = Static(
        stride=layers.window[1],
        padding=layers.window[2],
        splits=layers.splits,
        act=layers.act,
        gate=None if gate is None else (gate.act, gate.function),
        residual=residual,
        eps=tuple(0.0 if norm is None else norm.eps for norm in norms),
        of_batch=of_batch,
        reducers=reducers,
        counts=counts,
        recomputed=(plan or mbconv_plan.plan_for(block_shape(x, layers), not inferring)) == "recomputed",
        steps=steps,
    )
    if inferring:
        return infer(x, static, *running, *weights)
    out, *statistics = BlockFunction.apply(x, keep, static, *running, *weights)
    found = iter(statistics)
    for norm, own, reducer, count in zip(norms, of_batch, reducers, counts, strict=True):
        if not own or norm is None:
            continue
        mean, var = next(found), next(found)
        values = count if reducer is None else next(found)
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            follow(norm, mean, var, values)
    return out


def _check_input(x: Tensor, layers: MBConvLayers, residual: bool, keep: Tensor | None) -> None:
    channels = (layers.expand or layers.depthwise).in_channels
    if x.dim() != 4 or x.shape[1] != channels:
        raise PynasError(f"mbconv: x of shape {tuple(x.shape)}; allowed: (N, {channels}, H, W)")
    made = (layers.project.out_channels, *(mbconv_plan.positions(size, *layers.window) for size in x.shape[2:]))
    if min(made) < 1:
        raise PynasError(f"mbconv: x of shape {tuple(x.shape)}; allowed: no less than the kernel with its padding")
    if residual and made != tuple(x.shape[1:]):
        raise PynasError(f"mbconv: residual of shape {tuple(x.shape)}; allowed: that of the result, (N, {made})")
    if keep is not None and tuple(keep.shape) != (x.shape[0],):
        raise PynasError(f"mbconv: keep of shape {tuple(keep.shape)}; allowed: ({x.shape[0]},)")


def block_shape(x: Tensor, layers: MBConvLayers) -> mbconv_plan.BlockShape:
    """What `mbconv_plan` chooses by."""
    depthwise, expanded = layers.depthwise, 0 if layers.expand is None else layers.expand.out_channels
    channels = (x.shape[1], expanded, depthwise.out_channels, layers.project.out_channels)
    return mbconv_plan.BlockShape(x.shape[0], *channels, x.shape[2], x.shape[3], *layers.window, x.element_size())


def _counts(x: Tensor, layers: MBConvLayers) -> tuple[int, int, int]:
    """Values a channel of what the three convolutions give, on this rank."""
    n, _, h, w = x.shape
    made = n * mbconv_plan.positions(h, *layers.window) * mbconv_plan.positions(w, *layers.window)
    return n * h * w, made, made


def check_layers(layers: MBConvLayers) -> None:
    """Raises PynasError for layers that no step computes."""
    if (layers.expand is None) != (layers.expand_norm is None):
        raise PynasError("mbconv: expand without its norm, or a norm without it; allowed: both or neither")
    conv = layers.depthwise
    kernel = conv.kernel_size[0]
    square = conv.kernel_size == (kernel, kernel) and kernel in (3, 5, 7)
    padded = conv.padding in [(pixels, pixels) for pixels in range(kernel)]
    each = conv.groups == conv.in_channels and layers.splits in (1, 2, 4)
    if not square or not padded or conv.stride not in ((1, 1), (2, 2)) or not each or not _plain(conv):
        allowed = "1, 2 or 4 kernels of 3, 5 or 7 a channel, padding less than they, stride 1 or 2, no bias"
        raise PynasError(f"mbconv: depthwise {conv}; allowed: {allowed}")
    for other in (layers.expand, layers.project):
        if other is None:
            continue
        if not (other.kernel_size == other.stride == (1, 1) and other.groups == 1 and _plain(other)):
            raise PynasError(f"mbconv: {other}; allowed: 1x1 with stride 1, one group, no padding, no bias")
    mid = conv.in_channels
    sizes = (None if layers.expand is None else layers.expand.out_channels, layers.project.in_channels)
    if any(size not in (None, mid) for size in sizes):
        raise PynasError(f"mbconv: {layers.expand}, {layers.project}; allowed: to and from the depthwise one's {mid}")
    if layers.gate is not None:
        check_gate(layers.gate, conv.in_channels, layers.splits)
    elif layers.splits > 1:
        raise PynasError(
            f"mbconv: depthwise {conv} without a gate; allowed: Split-Attention's where a channel has several"
        )
    features = (mid, conv.out_channels, layers.project.out_channels)
    for norm, count in zip((layers.expand_norm, layers.norm, layers.project_norm), features, strict=True):
        if norm is not None and not (isinstance(norm, _BatchNorm) and norm.num_features == count):
            raise PynasError(f"mbconv: norm {norm}; allowed: batch-norm of {count} channels")


def _plain(conv: nn.Conv2d) -> bool:
    padded = conv.kernel_size == (1, 1) and conv.padding != (0, 0)
    return (
        type(conv) is nn.Conv2d
        and conv.bias is None
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not padded
    )
