"""A block of steps with its gradients: what `pynas.ops.mbconv` calls for everything between x and the output.

Shapes: N images, C channels, H x W pixels; y1, y2, y3 are what expand, depthwise and project give.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pynas.ops import library, mbconv_recompute
from pynas.ops.batch_norm_kernels import statistics_dtype
from pynas.ops.gate import Gate, gate_backward, gate_forward
from pynas.ops.reduce import Reducer
from pynas.ops.reference_mbconv import Norm, NormBackward
from pynas.ops.sync_batch_norm import over_ranks


class Static(NamedTuple):
    """What of a block is no tensor. Of three: norms 1 to 3, the first of which need not be there."""

    stride: int
    padding: int
    splits: int
    act: str
    gate: tuple[str, str] | None
    """Activation and function of the gate's layers."""
    residual: bool
    eps: tuple[float, ...]
    of_batch: tuple[bool, ...]
    """Whether statistics are those of the batch, else running ones."""
    reducers: tuple[Reducer | None, ...]
    """Whom statistics of the batch are shared with."""
    counts: tuple[int, ...]
    """Values of a channel on this rank."""
    recomputed: bool
    """Whether y1 is made anew where it is read (`mbconv_recompute`)."""
    steps: ModuleType
    """`reference_mbconv`, or who computes its functions otherwise."""

    @property
    def acts(self) -> tuple[str, str, str]:
        return self.act, self.act, "identity"


class BlockFunction(torch.autograd.Function):
    """Arguments: x, keep, the plan, running mean and variance of three norms (None where statistics are the batch's),
    the weights of expand, depthwise and project, weight and bias of three norms, and of the gate's two layers if any.

    Returns the block's output, then, of each norm with the batch's statistics, mean, biased variance and, with a
    reducer, the number of values of all ranks: without gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor | None, plan: Static, *given: Any) -> tuple[Tensor, ...]:
        running, (w1, w2, w3), affine, of_gate = given[:6], given[6:9], given[9:15], given[15:]
        steps = plan.steps
        norms: list[Norm | None] = [None] * 3
        made: list[Tensor] = []
        counts: list[Tensor | None] = [None] * 3

        def normed(i: int, local: Any, channels: int) -> Norm:
            mean, var = running[2 * i : 2 * i + 2] if local is None else local
            reducer = plan.reducers[i]
            if local is not None and reducer is not None:
                mean, var, counts[i] = over_ranks(
                    local if plan.counts[i] else None, plan.counts[i], channels, x, reducer
                )
            if local is not None:
                made.extend(value for value in (mean, var, counts[i]) if value is not None)
            norm = Norm(mean, var, affine[2 * i], affine[2 * i + 1], plan.eps[i], plan.acts[i])
            norms[i] = norm
            return norm

        y1, first, of_x, anew = None, None, None, w1 if plan.recomputed else None
        if anew is not None:
            wide = statistics_dtype(x)
            of_x = mbconv_recompute.moments(steps, x, wide) if plan.of_batch[0] else None
            weight = mbconv_recompute.rounded(w1, x, wide)
            first = normed(0, None if of_x is None else mbconv_recompute.statistics(of_x, weight), weight.shape[0])
        elif w1 is not None:
            y1, local = steps.expand(x, w1, plan.of_batch[0])
            first = normed(0, local, len(w1))
        read = (x if y1 is None else y1, first, w2, plan.stride, plan.padding)
        y2, local = steps.depthwise(*read, plan.of_batch[1], anew)
        second = normed(1, local, len(w2))
        gate = None if plan.gate is None else gate_forward(steps.pooled(y2, second), of_gate, *plan.gate, plan.splits)
        repeated = _repeated(w3, plan.splits)
        y3, local = steps.project(y2, second, None if gate is None else gate.gate, repeated, plan.of_batch[2])
        third = normed(2, local, len(w3))
        kept = None if keep is None else keep.to(third.mean.dtype).view(-1, 1)
        saved = [value for norm in norms for value in ((None, None) if norm is None else norm[:2])]
        ctx.plan = plan
        ctx.save_for_backward(
            x, y1, y2, y3, kept, w1, w2, w3, *affine, *saved, *counts, *(of_x or (None, None)), *of_gate, *(gate or ())
        )
        ctx.mark_non_differentiable(*made)
        ctx.set_materialize_grads(False)
        return steps.norm_act(y3, third, kept, x if plan.residual else None), *made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        device = dout.device.type
        there = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if there else nullcontext():  # backward may be called within
            return BlockFunction.gradients(ctx, dout)

    @staticmethod
    def gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        plan: Static = ctx.plan
        x, y1, y2, y3, kept, w1, w2, w3, *rest = ctx.saved_tensors
        affine, saved, counts, of_x, of_gate = rest[:6], rest[6:12], rest[12:15], rest[15:17], rest[17:21]
        gate = Gate(*rest[21:]) if plan.gate is not None else None
        steps, act = plan.steps, plan.act
        norms: list[Any] = [
            Norm(saved[2 * i], saved[2 * i + 1], affine[2 * i], affine[2 * i + 1], plan.eps[i], plan.acts[i])
            for i in range(3)
        ]
        library.refuse_batches(dout, "mbconv")
        dout = library.gradient_in_channels_last(dout)
        if not library.begins_a_vector(dout):
            dout = dout.clone(memory_format=torch.channels_last)

        def after(
            i: int, sums: Tensor, act: str, gate: Tensor | None = None, dpool: Tensor | None = None
        ) -> NormBackward:
            norm = norms[i]._replace(act=act)
            if not plan.of_batch[i]:
                return NormBackward(norm, gate, dpool, None, 1.0)
            reducer = plan.reducers[i]
            if reducer is None:
                return NormBackward(norm, gate, dpool, sums, plan.counts[i])
            shared = sums.clone()  # gradients of the norm's weights are this rank's share
            reducer.all_reduce(shared)
            return NormBackward(norm, gate, dpool, (shared / counts[i].clamp(min=1.0)).to(sums.dtype), 1.0)

        sums3 = steps.norm_act_backward_sums(dout, y3, norms[2], kept)
        third = after(2, sums3, "identity", kept)
        multiplier = None if gate is None else gate.gate
        da, of_images = steps.project_backward(dout, y3, third, _repeated(w3, plan.splits), y2, norms[1], plan.splits)
        dw3 = steps.project_weight_backward(dout, y3, third, y2, norms[1], multiplier)
        if plan.splits > 1:
            dw3 = dw3.unflatten(1, (-1, plan.splits)).sum(2)
        dgate: list[Tensor] = []
        if gate is None:
            dpool, sums2 = None, of_images[1::2].sum(1)
        else:
            assert plan.gate is not None
            dpooled, dgate = gate_backward(of_images[0], gate, of_gate[::2], *plan.gate, plan.splits)
            dpool = dpooled / (y2.shape[2] * y2.shape[3])
            # With a' = act'(z): dz = (da gate + dpool) a', whose sums are those of da a' and a' times gate and dpool.
            sums2 = (of_images[1::2] * multiplier + of_images[2::2] * dpool).sum(1)
        second = after(1, sums2, act, multiplier, dpool)
        first_norm, anew = None if w1 is None else norms[0], w1 if plan.recomputed else None
        read = (w2, x if y1 is None else y1, first_norm, plan.stride, plan.padding, anew)
        dz, dw2, sums1 = steps.depthwise_backward(da, y2, second, *read)
        residual = dout if plan.residual else None
        daffine: list[Tensor | None] = [None, None]
        if w1 is None:
            dx, dw1 = dz if residual is None else dz + residual, None
        elif plan.recomputed:
            of = mbconv_recompute.Moments(*of_x) if plan.of_batch[0] else None
            first = after(0, sums1, "identity")
            dx, dw1 = mbconv_recompute.backward(steps, dz, sums1[0], first, x, w1, of, residual)
            daffine = [sums1[1], sums1[0]]
        else:
            first = after(0, sums1, "identity")
            dx = steps.expand_backward(dz, y1, first, w1, residual) if ctx.needs_input_grad[0] else None
            dw1 = steps.expand_weight_backward(dz, y1, first, x)
            daffine = [sums1[1], sums1[0]]
        daffine += [sums2[1], sums2[0], sums3[1], sums3[0]]
        found = [dx, None, None, *[None] * 6, dw1, dw2, dw3, *daffine, *dgate]
        return tuple(value if needs else None for value, needs in zip(found, ctx.needs_input_grad, strict=True))


def infer(x: Tensor, static: Static, *given: Any) -> Tensor:
    """The block's output where every norm's statistics are running ones and nobody needs gradients, in two kernels and
    the gate's small ones between them; three where y1 is stored. given: as `BlockFunction`'s after its plan.
    """
    running, (w1, w2, w3), affine, of_gate = given[:6], given[6:9], given[9:15], given[15:]
    steps = static.steps
    norms: list[Norm | None] = [
        None
        if running[2 * i] is None
        else Norm(running[2 * i], running[2 * i + 1], affine[2 * i], affine[2 * i + 1], static.eps[i], static.acts[i])
        for i in range(3)
    ]
    anew = w1 if static.recomputed else None
    if w1 is not None and anew is None:
        x_or_y1, _ = steps.expand(x, w1, False)
    else:
        x_or_y1 = x
    gated = static.gate is not None
    read = (x_or_y1, norms[0], w2, static.stride, static.padding)
    a, pooled = steps.depthwise_applied(*read, norms[1], gated, anew)
    gate = None
    if static.gate is not None:
        gate = gate_forward(pooled, of_gate, *static.gate, static.splits).gate
    return steps.project_applied(a, gate, _repeated(w3, static.splits), norms[2], x if static.residual else None)


def _repeated(weight: Tensor, splits: int) -> Tensor:
    """`project`'s weight (C', C, 1, 1) for the maps that a channel's weighted sum is of: (C', C splits, 1, 1)."""
    return weight if splits == 1 else weight.repeat_interleave(splits, 1)
