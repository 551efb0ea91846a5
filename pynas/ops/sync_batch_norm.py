"""Batch-norm over the images of all ranks: one packed all-reduce forward, one backward, on CPUs and GPUs.

Shapes: N images of this rank, C channels, any further dimensions; n = values a channel on this rank, M on all.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pynas.ops.batch_norm_kernels import ACTIVATIONS, has_kernel, statistics_dtype
from pynas.ops.library import without_autograd
from pynas.ops.reduce import ProcessGroupReducer, Reducer


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d`, `2d` or `3d` whose statistics are those of all ranks' batches together.

    forward: float (N, C, ...) to a tensor like it; ranks may have different N, and none at all. In training every rank
    must call it, and backward, in the same order. The running statistics then are the same on every rank, and the
    variance kept is the unbiased one of all images. With one rank, without a reducer and in evaluation it is plain
    batch-norm. It never makes the host wait for the device.

    Gradients of weight and bias are this rank's share, as those of any other parameter: sum or average them.

    Raises ValueError for a single value a channel in all, as torch does, and leaves the running statistics where there
    is no image on any rank. On a GPU neither can be known without waiting: a single value gives the bias, and no value
    counts as zeros.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        reducer: Reducer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self._shared = _Shared(reducer)

    @property
    def reducer(self) -> Reducer | None:
        return self._shared.reducer

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        reducer = over_several_ranks(self)
        if reducer is None:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, reducer)
        if self.track_running_stats and self.running_mean is not None:
            follow(self, mean, variance, count)
        return output


class SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d over all ranks: the activation, and dropout before it, belong to the norm."""

    def forward(self, input: Tensor) -> Tensor:
        dropped: Tensor = self.drop(super().forward(input))  # type: ignore[operator]
        activated: Tensor = self.act(dropped)  # type: ignore[operator]
        return activated


@torch.no_grad()
def follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """The running statistics of one more batch. mean, biased variance: (C,); count: values a channel, float64 ()."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    if isinstance(count, int):
        unbiased = variance * (count / max(count - 1, 1))
    else:
        if count.device.type == "cpu" and not count:
            return  # no image on any rank
        unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
    norm.num_batches_tracked.add_(1)
    share: Any = norm.momentum
    if share is None:  # the mean of all batches so far
        share = (1.0 / norm.num_batches_tracked.double()).to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


def over_several_ranks(norm: nn.Module) -> Reducer | None:
    """The reducer of a `SyncBatchNorm` in training with other ranks, else None."""
    reducer = norm.reducer if isinstance(norm, SyncBatchNorm) and norm.training else None
    return reducer if reducer is not None and reducer.size > 1 else None


class _Shared:
    """Holds the reducer: a module's copy shares it (an average of weights is one), a pickled module has none."""

    def __init__(self, reducer: Reducer | None = None) -> None:
        self.reducer = reducer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Shared, ())


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias with mean and biased variance over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, reducer: Reducer
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = x.numel() // x.shape[1]
        x = _dense(x) if n else x
        mean, variance, count = over_ranks(local_statistics(x) if n else None, n, x.shape[1], x, reducer)
        output = normalise(x, mean, variance, eps, weight, bias) if n else torch.empty_like(x)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.reducer, ctx.eps, ctx.bias_dtype = reducer, eps, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """With xhat = (x - mean) invstd:

        dx = weight invstd (dy - sum(dy) / M - xhat sum(dy xhat) / M),  dweight = sum(dy xhat),  dbias = sum(dy)
        """
        x, weight, mean, variance, count = ctx.saved_tensors
        if x.numel():
            gradient = _like(gradient, x)
            total, along = local_gradient_sums(gradient, x, mean, variance, ctx.eps)
        else:
            total, along = torch.zeros_like(mean), torch.zeros_like(mean)
        weight_gradient = along.to(weight.dtype) if ctx.needs_input_grad[1] else None
        bias_gradient = total.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, weight_gradient, bias_gradient, None, None
        sums = torch.stack([total, along])
        ctx.reducer.all_reduce(sums)
        if x.numel():
            x_gradient = input_gradient(gradient, x, weight, mean, variance, ctx.eps, sums, count)
        else:
            x_gradient = torch.empty_like(x)
        return x_gradient, weight_gradient, bias_gradient, None, None


def over_ranks(
    local: tuple[Tensor, Tensor] | None, n: int, channels: int, like: Tensor, reducer: Reducer
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all ranks, (C,) each, and how many values a channel, float64 ().

    local: those of this rank's n values a channel, or None for n = 0. like: activations of their kind. What the ranks
    add up is [n mean, n (variance + mean^2), n] in float64. Summing squares is safe there: the mean's square costs
    (mean / deviation)^2 / 2^53 of the variance, which for values of fp32 is below what their own rounding leaves of it.
    So no shift has to be agreed on, and no second exchange is needed for one. Each rank's own mean and variance come
    from a kernel that subtracts the mean first. Raises ValueError for a single value in all, on a CPU.
    """
    packed = torch.empty(2 * channels + 1, dtype=torch.float64, device=like.device)
    moments, count = packed[:-1].view(2, channels), packed[-1]
    count.fill_(n)
    if local is not None:
        moments.copy_(torch.stack(local))
        moments[1].addcmul_(moments[0], moments[0])
        moments.mul_(n)
    else:
        moments.zero_()
    reducer.all_reduce(packed)
    if like.device.type == "cpu" and count == 1.0:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {like.size()}")
    moments.div_(count.clamp(min=1.0))
    moments[1].addcmul_(moments[0], moments[0], value=-1.0).clamp_(min=0.0)
    mean, variance = moments.to(statistics_dtype(like))
    return mean, variance, count


# The four passes over the images: those of libpynas_ops where it has kernels for them, else torch's own. Statistics are
# fp32, or float64 for double.


def local_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of float (N, C, ...), N > 0: (C,) each.

    The kernel of torch's own batch-norm, which takes 0.5 ms where `torch.var_mean` takes 11 (8 x 64 x 56 x 56 fp32,
    channels_last, one core).
    """
    if _has_kernel(x):
        with without_autograd():
            return torch.ops.pynas.channel_statistics.default(x)
    if x.dtype == statistics_dtype(x):
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    else:  # with running statistics in fp32 those of a batch in bf16 come out in fp32
        kept = torch.zeros(2, x.shape[1], device=x.device)
        mean, variance = torch.batch_norm_update_stats(x, kept[0], kept[1], 0.0)
    return mean, variance


def normalise(
    x: Tensor, mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """(x - mean) invstd weight + bias, a channel at a time; a tensor like x. invstd: 1 / sqrt(variance + eps)."""
    if _has_kernel(x, weight, bias):
        with without_autograd():
            return torch.ops.pynas.batch_norm_act.default(x, mean, variance, weight, bias, eps, _IDENTITY, None, None)
    invstd = torch.rsqrt(variance + eps)
    if x.device.type == "cuda":
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, 0.0)
    scale = invstd if weight is None else invstd * weight
    shift = -mean * scale if bias is None else torch.addcmul(bias.to(mean.dtype), mean, scale, value=-1.0)
    return affine(x, scale, shift)


def local_gradient_sums(
    gradient: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """sum(dy) and sum(dy (x - mean) invstd) of each channel, (C,) each. gradient: like x, and laid out like it."""
    if _has_kernel(x):
        norm = (mean, variance, None, None, eps, _IDENTITY)
        total, along = torch.ops.pynas.batch_norm_act_backward_sums(gradient, x, *norm, None)
        return total, along
    invstd = torch.rsqrt(variance + eps)
    if x.device.type == "cuda":
        sums = torch.batch_norm_backward_reduce(gradient, x, mean, invstd, None, True, False, False)
        return sums[0], sums[1] * invstd
    found = torch.ops.aten.native_batch_norm_backward(
        gradient, x, invstd, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return found[2], found[1]


def input_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    sums: Tensor,
    count: Tensor,
) -> Tensor:
    """dx of `_Normalise.backward`, a tensor like x. sums: `local_gradient_sums` of all ranks, (2, C); count: M, ()."""
    if _has_kernel(x, weight):
        norm = (mean, variance, weight, None, eps, _IDENTITY)
        means = (sums / count).to(sums.dtype)
        return torch.ops.pynas.batch_norm_act_backward(gradient, x, *norm, None, None, means, 1.0)
    invstd = torch.rsqrt(variance + eps)
    if x.device.type == "cuda":
        values = count.to(torch.int32).view(1)
        return torch.batch_norm_backward_elemt(gradient, x, mean, invstd, weight, sums[0], sums[1] / invstd, values)
    mean_gradient, along = sums / count
    scale = invstd if weight is None else invstd * weight
    slope = scale * invstd * along
    offset = torch.addcmul(slope * mean, scale, mean_gradient, value=-1.0)
    if x.dtype == mean.dtype:
        found = affine(x, -slope, offset)
    else:  # the sum of three terms is rounded once
        found = torch.addcmul(_by_channel(offset, x), x, _by_channel(slope, x), value=-1.0)
    return found.addcmul_(gradient, _by_channel(scale, x)).to(x.dtype)


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x scale + shift on a CPU, a channel at a time. x: (N, C, ...); scale, shift: (C,). Returns a tensor like x.

    In one pass: `addcmul` takes 0.4 ms and batch-norm's kernel 0.6 for channels_last (as above), 1.2 and 0.7 for
    contiguous tensors. Of fp16 and bf16 only batch-norm's kernel returns their own dtype.
    """
    if x.dtype == scale.dtype and _channels_last(x):
        return torch.addcmul(_by_channel(shift, x), x, _by_channel(scale, x))
    return nn.functional.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, eps=0.0)


_IDENTITY = ACTIVATIONS["identity"]


def _has_kernel(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether libpynas_ops takes x, with weights of these dtypes and strides."""
    return has_kernel(x) and all(
        weight is None or (weight.dtype == statistics_dtype(x) and weight.is_contiguous()) for weight in weights
    )


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 2 or x.stride(1) == 1


def _dense(x: Tensor) -> Tensor:
    """The tensor in a layout that the kernels take without a copy of their own: contiguous or channels_last."""
    if x.is_contiguous() or (x.dim() in (4, 5) and x.is_contiguous(memory_format=_last(x))):
        return x
    return x.contiguous()


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient.contiguous() if x.is_contiguous() else gradient.contiguous(memory_format=_last(x))


def _last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def convert_sync_batchnorm(model: nn.Module, reducer: Reducer | None = None) -> nn.Module:
    """Make every BatchNorm1d, 2d and 3d and every torch.nn.SyncBatchNorm in the model a `SyncBatchNorm`, and timm's
    BatchNormAct2d a `SyncBatchNormAct`.

    They stay the objects that they are, wherever they stand and however often, with their parameters, buffers and
    hooks: only their class changes. Returns the model. reducer: None takes torch.distributed's default group where
    there is one.

    One with a `forward` of its own, or with parametrized weights, cannot change without losing them: it stays, with a
    warning. Raises ValueError for a lazy batch-norm that knows no channels yet.
    """
    if reducer is None and dist.is_available() and dist.is_initialized():
        reducer = ProcessGroupReducer()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            _convert(module, reducer)
    return model


def _convert(module: _BatchNorm, reducer: Reducer | None) -> None:
    if any(nn.parameter.is_lazy(value) for value in (*module.parameters(), *module.buffers())):
        raise ValueError(f"{type(module).__name__}: run the network once, so that it knows its channels, then convert")
    if (type(module).__module__, type(module).__name__) == ("timm.layers.norm_act", "BatchNormAct2d"):
        kind: type[SyncBatchNorm] = SyncBatchNormAct
    else:
        kind = SyncBatchNormAct if isinstance(module, SyncBatchNormAct) else SyncBatchNorm
    plain = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)
    own = type(module).forward not in plain and kind is SyncBatchNorm
    if own or nn.utils.parametrize.is_parametrized(module):
        what = "a forward of its own" if own else "parametrized weights"
        warnings.warn(f"{type(module).__name__} has {what}: its statistics stay those of each rank", stacklevel=3)
        return
    module.__class__ = kind
    module.__dict__["_shared"] = _Shared(reducer)
