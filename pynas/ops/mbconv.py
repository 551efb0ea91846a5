"""An inverted residual block fused across its batch-norms: their statistics are taken where a convolution writes, and
they are applied where the next one reads, so that none of them is a pass over activations of its own.

Shapes: N images, C channels, H x W pixels. docs/kernels.md has the steps, F1 to F5 forward and B1 to B5 backward.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pynas.errors import PynasError
from pynas.ops import reference_mbconv
from pynas.ops.reference_batch_norm import activation
from pynas.ops.reference_mbconv import Norm, NormBackward
from pynas.ops.squeeze_excite import activation_backward


class MBConvLayers(NamedTuple):
    """The layers of a block. Without `expand` the depthwise convolution reads the block's input as it is; `gate` is
    squeeze-and-excite's two 1x1 convolutions and the activation between them."""

    expand: nn.Conv2d | None
    expand_norm: nn.BatchNorm2d | None
    depthwise: nn.Conv2d
    norm: nn.BatchNorm2d
    gate: tuple[nn.Conv2d, str, nn.Conv2d] | None
    project: nn.Conv2d
    project_norm: nn.BatchNorm2d
    act: str


def mbconv(
    x: Tensor, layers: MBConvLayers, residual: bool, keep: Tensor | None = None, *, steps: ModuleType | None = None
) -> Tensor:
    """norm3(project(gate(act(norm2(depthwise(act(norm1(expand(x))))))))) keep[n] + x: (N, C', H', W').

    x: channels_last. residual: whether x is added. keep: (N,), what each sample's branch is multiplied by (stochastic
    depth). Norms count as when they are called: in training they take the batch's statistics and follow them.
    Gradients: of x and of all layers' parameters. steps: who computes, `reference_mbconv` by default.

    Saved for backward: x and what the three convolutions give (y1, y2, y3), nothing else of their size. Raises
    PynasError for convolutions that no step computes, ValueError for a single value a channel in training, as torch.
    """
    _check(layers)
    steps = steps or reference_mbconv
    norms = [layers.expand_norm, layers.norm, layers.project_norm]
    weights: list[Tensor | None] = [None if layers.expand is None else layers.expand.weight, layers.depthwise.weight]
    weights += [layers.project.weight]
    for norm in norms:
        weights += [None, None] if norm is None else [norm.weight, norm.bias]
    if layers.gate is not None:
        reduce, _, expand = layers.gate
        weights += [reduce.weight, reduce.bias, expand.weight, expand.bias]
    else:
        weights += [None] * 4
    return _MBConv.apply(x, keep, *weights, _Block(layers, norms, residual, steps))


def _check(layers: MBConvLayers) -> None:
    """That the steps compute what the layers say."""
    if (layers.expand is None) != (layers.expand_norm is None):
        raise PynasError("mbconv: expand without its norm, or a norm without it; allowed: both or neither")
    conv = layers.depthwise
    kernel = conv.kernel_size[0]
    as_steps = (conv.kernel_size, conv.padding) == ((kernel, kernel), (kernel // 2, kernel // 2)) and kernel in (
        3,
        5,
        7,
    )
    if not as_steps or conv.stride not in ((1, 1), (2, 2)) or conv.groups != conv.out_channels or not _plain(conv):
        allowed = "one kernel of 3, 5 or 7 a channel, padding of half of it, stride 1 or 2, no bias"
        raise PynasError(f"mbconv: depthwise {conv}; allowed: {allowed}")
    for other in (layers.expand, layers.project):
        if other is None:
            continue
        if not (other.kernel_size == other.stride == (1, 1) and other.groups == 1 and _plain(other)):
            raise PynasError(f"mbconv: {other}; allowed: 1x1 with stride 1, one group, no padding, no bias")


def _plain(conv: nn.Conv2d) -> bool:
    padded = conv.kernel_size == (1, 1) and conv.padding != (0, 0)
    return conv.bias is None and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not padded


class _Block(NamedTuple):
    layers: MBConvLayers
    norms: list[nn.BatchNorm2d | None]
    residual: bool
    steps: ModuleType


class _Gate(NamedTuple):
    """What squeeze-and-excite computes of the pooled activations (N, C), as backward needs it."""

    pooled: Tensor
    hidden: Tensor
    active: Tensor
    logits: Tensor
    gate: Tensor


class _MBConv(torch.autograd.Function):
    """Arguments: x, keep, the weights of expand, depthwise and project, those of the three norms, those of the gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor | None, *arguments: Any) -> Tensor:
        *weights, block = arguments
        w1, w2, w3, *rest = weights
        layers, steps = block.layers, block.steps
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        norms: list[Norm | None] = [None] * 3

        def normed(i: int, act: str, statistics: Any, y: Tensor) -> Norm:
            norm = block.norms[i]
            mean, var = _followed(norm, statistics, y) if statistics else (norm.running_mean, norm.running_var)
            norms[i] = made = Norm(mean, var, rest[2 * i], rest[2 * i + 1], norm.eps, act)
            return made

        wanted = [norm is not None and _of_batch(norm) for norm in block.norms]
        y1, first = None, None
        if w1 is not None:
            y1, statistics = steps.expand(x, w1, wanted[0])
            first = normed(0, layers.act, statistics, y1)
        stride = layers.depthwise.stride[0]
        y2, statistics = steps.depthwise(x if y1 is None else y1, first, w2, stride, wanted[1])
        second = normed(1, layers.act, statistics, y2)
        gate = None if layers.gate is None else _gated(steps.pooled(y2, second), rest[6:], layers.gate[1])
        y3, statistics = steps.project(y2, second, None if gate is None else gate.gate, w3, wanted[2])
        third = normed(2, "identity", statistics, y3)
        kept = None if keep is None else keep.to(wide).view(-1, 1)
        ctx.block, ctx.wanted = block, wanted
        ctx.norms = [None if norm is None else (norm.eps, norm.act) for norm in norms]
        saved = [value for norm in norms for value in ((None, None) if norm is None else norm[:2])]
        ctx.save_for_backward(x, y1, y2, y3, kept, *weights, *saved, *(gate or [None] * 5))
        return steps.norm_act(y3, third, kept, x if block.residual else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, y1, y2, y3, kept, w1, w2, w3, *rest = ctx.saved_tensors
        affine, of_gate = rest[:6], rest[6:10]
        saved, gate = rest[10:16], None if rest[16] is None else _Gate(*rest[16:21])
        block, steps, wanted = ctx.block, ctx.block.steps, ctx.wanted
        norms: list[Any] = [
            None if of is None else Norm(*saved[2 * i : 2 * i + 2], *affine[2 * i : 2 * i + 2], *of)
            for i, of in enumerate(ctx.norms)
        ]
        dout = dout.contiguous(memory_format=torch.channels_last)

        def after(i: int, y: Tensor, sums: Tensor, act: str, **given: Tensor | None) -> NormBackward:
            values = y.numel() // y.shape[1]
            own = sums if wanted[i] else None
            return NormBackward(norms[i]._replace(act=act), given.get("gate"), given.get("dpool"), own, values)

        act = block.layers.act
        sums3 = steps.norm_act_backward_sums(dout, y3, norms[2], kept)
        third = after(2, y3, sums3, "identity", gate=kept)
        multiplier = None if gate is None else gate.gate
        da, of_images = steps.project_backward(dout, y3, third, w3, y2, norms[1])
        dw3 = steps.project_weight_backward(dout, y3, third, y2, norms[1], multiplier)
        dgate: list[Tensor | None] = [None] * 4
        if gate is None:
            dpool, sums2 = None, of_images[1::2].sum(1)
        else:
            dpooled, dgate = _gate_backward(of_images[0], gate, of_gate, block.layers.gate[1])
            dpool = dpooled / (y2.shape[2] * y2.shape[3])
            # With a' = act'(z): dz = (da gate + dpool) a', whose sums are those of da a' and a' times gate and dpool.
            sums2 = (of_images[1::2] * multiplier + of_images[2::2] * dpool).sum(1)
        second = after(1, y2, sums2, act, gate=multiplier, dpool=dpool)
        stride = block.layers.depthwise.stride[0]
        dz, dw2, sums1 = steps.depthwise_backward(da, y2, second, w2, x if y1 is None else y1, norms[0], stride)
        residual = dout if block.residual else None
        if y1 is None:
            dx, dw1 = dz if residual is None else dz + residual, None
        else:
            first = after(0, y1, sums1, "identity")
            dx = steps.expand_backward(dz, y1, first, w1, residual) if ctx.needs_input_grad[0] else None
            dw1 = steps.expand_weight_backward(dz, y1, first, x)
        daffine: list[Tensor | None] = []
        for norm, sums in zip(norms, (sums1, sums2, sums3), strict=True):
            daffine += [None, None] if norm is None else [sums[1], sums[0]]
        found = [dx, None, dw1, dw2, dw3, *daffine, *dgate]
        return (*(value if needs else None for value, needs in zip(found, ctx.needs_input_grad, strict=False)), None)


def _of_batch(norm: nn.BatchNorm2d) -> bool:
    return norm.training or norm.running_mean is None


@torch.no_grad()
def _followed(norm: nn.BatchNorm2d, statistics: tuple[Tensor, Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of a batch, which the running ones follow."""
    mean, var = statistics
    count = y.numel() // y.shape[1]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.size()}")
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share: Any = norm.momentum if norm.momentum is not None else 1.0 / norm.num_batches_tracked.to(mean.dtype)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), share)
    return mean, var


def _gated(pooled: Tensor, weights: list[Tensor], act: str) -> _Gate:
    reduce, reduce_bias, expand, expand_bias = weights
    hidden = F.linear(pooled, reduce.flatten(1), reduce_bias)
    active = activation(act)(hidden)
    logits = F.linear(active, expand.flatten(1), expand_bias)
    return _Gate(pooled, hidden, active, logits, F.hardsigmoid(logits))


def _gate_backward(dgate: Tensor, gate: _Gate, weights: list[Tensor], act: str) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of the pooled activations (N, C), and of the weights."""
    reduce, _, expand, _ = weights
    dlogits = torch.ops.aten.hardsigmoid_backward(dgate, gate.logits)
    dhidden = activation_backward(act, dlogits @ expand.flatten(1), gate.hidden)
    dreduce, dexpand = dhidden.t() @ gate.pooled, dlogits.t() @ gate.active
    return dhidden @ reduce.flatten(1), [
        dreduce.view(reduce.shape),
        dhidden.sum(0),
        dexpand.view(expand.shape),
        dlogits.sum(0),
    ]
