"""Batch-norm over the images of all ranks: one packed all-reduce forward, one backward, on CPUs and GPUs.

Shapes: N images of this rank, C channels, any further dimensions; n = values a channel on this rank, M on all.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pynas.ops.reduce import ProcessGroupReducer, Reducer


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d`, `2d` or `3d` whose statistics are those of all ranks' batches together.

    forward: float (N, C, ...) to a tensor like it; ranks may have different N, and none at all. In training every rank
    must call it, and backward, in the same order. The running statistics then are the same on every rank, and the
    variance kept is the unbiased one of all images. With one rank, without a reducer and in evaluation it is plain
    batch-norm. It never makes the host wait for the device.

    Gradients of weight and bias are this rank's share, as those of any other parameter: sum or average them.

    Raises ValueError for a single value a channel in all, as torch does; on a GPU that cannot be known without waiting,
    and the output then is the bias.
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
        reducer = self.reducer
        if not self.training or reducer is None or reducer.size == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, reducer)
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean, variance, count)
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running statistics of one more batch. mean, biased variance: float64 (C,); count: float64 ()."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.double()
        share = share * count.clamp(max=1.0)  # a batch without any image leaves them as they are
        unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(new.to(running.dtype), share.to(running.dtype))


class _Shared:
    """Holds the reducer: a module's copy shares it (an average of weights is one), a pickled module has none."""

    def __init__(self, reducer: Reducer | None = None) -> None:
        self.reducer = reducer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Shared, ())


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias with mean and biased variance over all ranks.

    What the ranks add up is [n mean, n (variance + mean^2), n] in float64. Summing squares is safe there: the mean's
    square costs (mean / deviation)^2 / 2^53 of the variance, which for values of fp32 is below what their own rounding
    leaves of it. So no shift has to be agreed on, and no second exchange is needed for one. Each rank's own mean and
    variance come from a kernel that subtracts the mean first.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, reducer: Reducer
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        n = x.numel() // channels
        packed = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if n:
            x = _dense(x)
            local_mean, local_variance = (value.double() for value in local_statistics(x))
            torch.mul(local_mean, n, out=packed[:channels])
            torch.addcmul(local_variance, local_mean, local_mean, out=packed[channels:-1])
            packed[channels:-1] *= n
            packed[-1] = n
        reducer.all_reduce(packed)
        count = packed[-1]
        if x.device.type == "cpu" and count == 1.0:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        moments = packed[:-1].view(2, channels) / count.clamp(min=1.0)
        mean = moments[0]
        variance = torch.addcmul(moments[1], mean, mean, value=-1.0).clamp_(min=0.0)
        invstd = torch.rsqrt(variance + eps)
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else torch.addcmul(bias.double(), mean, scale, value=-1.0)
        output = affine(x, scale, shift) if n else torch.empty_like(x)
        ctx.save_for_backward(x, weight, mean, invstd, count)
        ctx.reducer, ctx.bias_dtype = reducer, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """With xhat = (x - mean) invstd:

        dx = weight invstd (dy - sum(dy) / M - xhat sum(dy xhat) / M),  dweight = sum(dy xhat),  dbias = sum(dy)
        """
        x, weight, mean, invstd, count = ctx.saved_tensors
        channels = x.shape[1]
        if x.numel():
            gradient = _like(gradient, x)
            sums = local_gradient_sums(gradient, x, mean, invstd)
        else:
            sums = torch.zeros(2, channels, dtype=_computed_in(x.dtype), device=x.device)
        weight_gradient = sums[1].to(weight.dtype, copy=True) if ctx.needs_input_grad[1] else None
        bias_gradient = sums[0].to(ctx.bias_dtype, copy=True) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, weight_gradient, bias_gradient, None, None
        ctx.reducer.all_reduce(sums)
        if not x.numel():
            return torch.empty_like(x), weight_gradient, bias_gradient, None, None
        mean_gradient, along = sums.double() / count
        scale = invstd if weight is None else invstd * weight
        slope = -scale * invstd * along
        offset = -scale * mean_gradient - slope * mean
        return input_gradient(gradient, x, scale, slope, offset), weight_gradient, bias_gradient, None, None


# The four passes over the images. Kernels of our own take their place here.


def local_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of float (N, C, ...), N > 0: (C,) each, fp32 or, of double, float64.

    The kernel of torch's own batch-norm, which takes 0.5 ms where `torch.var_mean` takes 11 (8 x 64 x 56 x 56 fp32,
    channels_last, one core). Running statistics are given so that those of bf16 come out in fp32.
    """
    kept = torch.zeros(2, x.shape[1], dtype=_computed_in(x.dtype), device=x.device)
    mean, variance = torch.batch_norm_update_stats(x, kept[0], kept[1], 0.0)
    return mean, variance


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x scale + shift, a channel at a time. x: (N, C, ...); scale, shift: (C,). Returns a tensor like x.

    In one pass: on CPUs `addcmul` takes 0.4 ms and batch-norm's kernel 0.6 for channels_last (as above), 1.2 and 0.7
    for contiguous tensors. Of fp16 and bf16 only batch-norm's kernel returns their own dtype.
    """
    dtype = _computed_in(x.dtype)
    scale, shift = scale.to(dtype), shift.to(dtype)
    if x.device.type == "cpu" and x.dtype == dtype and _channels_last(x):
        return torch.addcmul(_by_channel(shift, x), x, _by_channel(scale, x))
    one = torch.ones_like(scale)
    return nn.functional.batch_norm(x, torch.zeros_like(scale), one, scale, shift, eps=0.0)


def local_gradient_sums(gradient: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    """sum(dy) and sum(dy (x - mean) invstd) of each channel, (2, C). gradient: like x, and laid out like it."""
    dtype = _computed_in(x.dtype)
    mean, invstd = mean.to(dtype), invstd.to(dtype)
    if x.device.type == "cuda":
        sums = torch.batch_norm_backward_reduce(gradient, x, mean, invstd, None, True, False, False)
        return torch.stack([sums[0], sums[1] * invstd])
    found = torch.ops.aten.native_batch_norm_backward(
        gradient, x, invstd, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return torch.stack([found[2], found[1]])


def input_gradient(gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """dy scale + x slope + offset, a channel at a time; a tensor like x. Computed in fp32 for fp16 and bf16."""
    dtype = _computed_in(x.dtype)
    if x.dtype == dtype:
        found = affine(x, slope, offset)
    else:
        found = torch.addcmul(_by_channel(offset.to(dtype), x), x, _by_channel(slope.to(dtype), x))
    return found.addcmul_(gradient, _by_channel(scale.to(dtype), x)).to(x.dtype)


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    """Put a `SyncBatchNorm` in place of every BatchNorm1d, 2d and 3d and of every torch.nn.SyncBatchNorm.

    Parameters and buffers are the old ones themselves, under the old names. Returns the model, or, where the model is
    a batch-norm itself, what takes its place. reducer: None takes torch.distributed's default group where there is one.

    A subclass of them with a `forward` of its own cannot be replaced without losing that: it stays, with a warning.
    Raises ValueError for a lazy batch-norm that knows no channels yet.
    """
    if reducer is None and dist.is_available() and dist.is_initialized():
        reducer = ProcessGroupReducer()
    converted: dict[int, nn.Module] = {}  # a module may stand in several places

    def convert(module: nn.Module) -> nn.Module:
        if id(module) not in converted:
            converted[id(module)] = _converted(module, reducer)
            for name, child in module.named_children():
                if (new := convert(child)) is not child:
                    setattr(module, name, new)
        return converted[id(module)]

    return convert(model)


def _converted(module: nn.Module, reducer: Reducer | None) -> nn.Module:
    if not isinstance(module, _BatchNorm):
        return module
    if any(nn.parameter.is_lazy(value) for value in (*module.parameters(), *module.buffers())):
        raise ValueError(f"{type(module).__name__}: run the network once, so that it knows its channels, then convert")
    if type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward):
        warnings.warn(
            f"{type(module).__name__} has a forward of its own: its statistics stay those of each rank", stacklevel=4
        )
        return module
    new = SyncBatchNorm(
        module.num_features,
        module.eps,
        module.momentum,
        affine=False,
        track_running_stats=module.track_running_stats,
        reducer=reducer,
        device="meta",
    )
    new.affine = module.affine
    new._parameters = copy.copy(module._parameters)
    new._buffers = copy.copy(module._buffers)
    new.training = module.training
    return new
