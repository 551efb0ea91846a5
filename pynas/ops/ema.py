"""Exponential moving averages of weights for any training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import reference_arena
from pynas.ops.arena import (
    Watch,
    checked_rate,
    chunks,
    floats,
    has_kernels,
    in_shared_memory,
    overlapping,
    placed,
    require_values,
    strides_of,
    view_of,
    with_version,
    zeros,
)


def ema_update(averages: Tensor | Iterable[Tensor], values: Tensor | Iterable[Tensor], decay: float) -> None:
    """averages <- averages + (1 - decay) (values - averages), in place, as torch.lerp computes it.

    averages, values: a tensor each, or as many tensors of the same shapes; of any floating type, computed in that of
    the average. The fused kernel takes one contiguous float32 average with contiguous float32 or bfloat16 values: the
    flat tensors of an `Arena`. Sequences are torch's grouped operation; `ModelEma` is the faster way there. No gradient
    flows, and autocast changes nothing.

    Raises PynasError for a decay outside [0, 1], for another number of tensors, for other shapes or devices, for
    averages that are not floating, and for what is no tensor or has no shape yet.
    """
    decay = checked_rate("ema_update: decay", decay)
    if isinstance(averages, Tensor) != isinstance(values, Tensor):
        raise PynasError("ema_update: got a tensor and a sequence; allowed: two tensors, or two sequences of them")
    averages, values = _tensors("averages", averages), _tensors("values", values)
    if len(averages) != len(values):
        raise PynasError(f"ema_update: got {len(averages)} averages and {len(values)} values; allowed: as many")
    for average, value in zip(averages, values):
        if average.shape != value.shape or average.device != value.device:
            raise PynasError(
                f"ema_update: got an average {tuple(average.shape)} on {average.device} and values "
                f"{tuple(value.shape)} on {value.device}; allowed: the same shape and device"
            )
        if not (average.is_floating_point() or average.is_complex()):
            raise PynasError(f"ema_update: got an average of {average.dtype}; allowed: floating types")
    if len(averages) == 1 and _has_kernel(averages[0], values[0]):
        torch.ops.pynas.ema_update.default(averages[0].detach(), values[0].detach(), decay)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(averages[0])
    elif len(averages):
        reference_arena.ema_update(averages, values, decay)


def ema_multi_avg_fn(decay: float = 0.999) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """For `torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema_multi_avg_fn(decay), use_buffers=True)`.

    As torch's `get_ema_multi_avg_fn`, also of integers: their average is truncated.
    Raises PynasError for a decay outside [0, 1].
    """
    decay = checked_rate("ema_multi_avg_fn: decay", decay)

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], averaged: Tensor | int) -> None:
        if averages and averages[0].is_floating_point():
            ema_update(averages, values, decay)
        else:
            for average, value in zip(averages, values):
                average.copy_(average * decay + value * (1.0 - decay))

    return update


class ModelEma(nn.Module):
    """A copy of a model whose weights are the moving average of the model's: timm's ModelEmaV2 in one pass over memory.

    `module` is the average, in evaluation mode. Its float32 and bfloat16 parameters and buffers are averaged in
    float32, in contiguous storage; other floating ones in their own type; the rest, such as counts, is copied.
    The model's own tensors stay where they are, and may move.

    device: of the average, by default the model's ("" too, as in timm's first ModelEma).
    Raises PynasError for a decay outside [0, 1], for a lazy module without shapes, and in `update` and `set` for a
    model of other parameters or buffers.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: torch.device | str | None = None) -> None:
        super().__init__()
        require_values("ModelEma", [*model.parameters(), *model.buffers()])
        self.decay = checked_rate("ModelEma: decay", decay)
        self.device = None if device is None or device == "" else torch.device(device)
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        if self.device is not None:
            self.module.to(self.device)
        for tensor in floats(self.module):
            if tensor.dtype == torch.bfloat16:
                tensor.data = tensor.data.float()
        self._plan: _Plan | None = None

    @property
    def ema(self) -> nn.Module:
        """`module`, by the name it has in timm's first ModelEma."""
        return self.module

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """module <- module + (1 - decay) (model - module). step: taken as timm's ModelEmaV3 does, and of no effect."""
        self._plan_for(model).update(checked_rate("ModelEma: decay", self.decay))

    def set(self, model: nn.Module) -> None:
        """module <- model, as at the start."""
        self._plan_for(model).set()

    def forward(self, *inputs: object, **named: object) -> object:
        return self.module(*inputs, **named)

    def _plan_for(self, model: nn.Module) -> _Plan:
        if self._plan is None or not self._plan.holds(model):
            self._plan = _Plan(self.module, model)
        return self._plan

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_plan": None}


class _Plan:
    """What of a model goes where in its average, made once."""

    @torch.no_grad()
    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        averages, values = ([*module.parameters(), *module.buffers()] for module in (average, model))
        if [a.shape for a in averages] != [v.shape for v in values]:
            raise PynasError("ModelEma: got a model of other parameters or buffers; allowed: the one it was made of")
        fused: list[tuple[Tensor, Tensor]] = []
        rest: list[tuple[Tensor, Tensor]] = []
        tied = overlapping(averages)  # these and those in shared memory must not be moved
        for a, v in zip(averages, values):
            apart = id(a) not in tied and not in_shared_memory(a)
            (fused if apart and _fits(a, v) else rest).append((a, v))
        self._model = model
        self._fused = has_kernels(values[0].device) if values else False
        self._every = list(zip(averages, values))
        self._copied = [(a, v) for a, v in rest if not a.is_floating_point()]
        self._others = [(a, v) for a, v in rest if a.is_floating_point()]
        self._flat: Tensor | None = None
        if fused:
            self._lay_out([a for a, _ in fused], [v for _, v in fused])
        self._watch = Watch((average, model), integers=True)

    def _lay_out(self, averages: list[Tensor], values: list[Tensor]) -> None:
        offsets, size = placed(values)
        device = values[0].device
        self._averages = with_version(averages)
        self._flat = zeros(size, torch.float32, device)
        for a, v, offset in zip(averages, values, offsets):
            a.data = view_of(self._flat, offset, v.shape, v.stride()).copy_(a)
        lows = [0 if v.dtype == torch.bfloat16 else -1 for v in values]
        zero = [0] * len(values)
        self._chunks = chunks(values, offsets, lows, range(len(values)), zero, zero).to(device)
        self._values = Watch(tensors=values)

    def holds(self, model: nn.Module) -> bool:
        """Whether model and average are where they were."""
        return (
            model is self._model
            and self._watch.undisturbed()
            and (not self._every or has_kernels(self._every[0][1].device) == self._fused)
        )

    @torch.no_grad()
    def set(self) -> None:
        for a, v in self._every:
            a.copy_(v)

    @torch.no_grad()
    def update(self, decay: float) -> None:
        if self._flat is not None:
            torch.ops.pynas.ema_update_from.default(self._flat, self._chunks, self._values.number, decay)
            torch.autograd.graph.increment_version(self._averages)  # that changed by way of `_flat`
        for a, v in self._copied:
            a.copy_(v)
        if self._others:
            values = [v.to(a.device) for a, v in self._others]
            reference_arena.ema_update([a for a, _ in self._others], values, decay)


def _fits(average: Tensor, value: Tensor) -> bool:
    return (
        value.numel() > 0
        and has_kernels(value.device)
        and value.dtype in (torch.float32, torch.bfloat16)
        and average.dtype == torch.float32
        and value.stride() == strides_of(value)
        and value.device == average.device
    )


def _has_kernel(average: Tensor, value: Tensor) -> bool:
    return (
        has_kernels(average.device)
        and average.dtype == torch.float32
        and value.dtype in (torch.float32, torch.bfloat16)
        and average.is_contiguous()
        and value.is_contiguous()
    )


def _tensors(name: str, given: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(given, Tensor):
        given = [given]
    allowed = "a tensor, or several in a sequence"
    if not isinstance(given, Iterable):
        raise PynasError(f"ema_update: {name} is {type(given).__name__}; allowed: {allowed}")
    tensors = list(given)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise PynasError(f"ema_update: {name} has a {type(tensor).__name__} in it; allowed: {allowed}")
    require_values("ema_update", tensors)
    return tensors
