"""Tensors of a module in contiguous storage, where one pass over memory reaches them all.

An arena has one float32 value for each value of its parameters and floating buffers. float32 tensors *are* those
values: their data become views of the arena. bfloat16 parameters lie in a second piece of memory, and the arena holds
their float32 masters. Tensors keep identity, shape and strides; each has a storage of its own over its part of the
memory, so that copying, pickling or saving one of them takes no more than that part.
"""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import dlpack

from pynas.errors import PynasError
from pynas.ops import library

ALIGNMENT = 16  # values: a tensor begins at a multiple, 64 bytes in float32 and 32 in bfloat16
HUGE_PAGE = 1 << 21  # bytes
CHUNK = 4096  # values that one block of a GPU takes at once

FINITE = sys.float_info.max

_gradient = attrgetter("grad")
_is_trained = attrgetter("requires_grad")


class Arena:
    """Lays out the parameters of `groups` and then the floating buffers and remaining parameters of `module`.

    module: None for the groups alone. groups: None for all parameters of the module in one group.
    gradient_views: gradients too lie in contiguous storage, as views that `zero_gradients` sets and `backward` adds to.
    Those that are there already move into the views; a parameter without one has none until `zero_gradients`.
    That spares a GPU the copy of their addresses at every step and costs a pass over them; otherwise a gradient is
    wherever backward left it.

    weights: float32 (values), the float32 tensors and masters; low: bfloat16 parameters, or None.
    tensors: all that have a place, parameters first; shape and strides of their views are theirs.

    Raises PynasError for tensors on several devices or without values, as on the meta device, and for parameters that
    are neither float32 nor bfloat16, that come twice, whose memory is another tensor's too, or that lie in memory which
    processes share: whoever uses it would not see what becomes of them. What else the module has of other types or in
    such memory is left where it is, in `outside`.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        groups: Sequence[Sequence[Tensor]] | None = None,
        *,
        gradient_views: bool = False,
    ) -> None:
        if module is None and groups is None:
            raise PynasError("Arena: got neither a module nor groups of parameters")
        if groups is None:
            assert module is not None
            groups = [list(module.parameters())]
        every = [] if module is None else floats(module)
        require_values("Arena", chain(every, *groups))
        self.parameters = [p for group in groups for p in group if p.numel()]
        owned = {id(p) for p in self.parameters}
        if len(owned) < len(self.parameters):
            again = len(self.parameters) - len(owned)
            raise PynasError(f"Arena: got {again} parameters more than once; allowed: each parameter once")
        others = [t for t in every if id(t) not in owned and t.numel()]
        tied = overlapping([*self.parameters, *others])
        if wrong := len(tied & owned):
            raise PynasError(
                f"Arena: got {wrong} parameters that share memory with others; allowed: memory of its own for each (a "
                "parameter that several modules are to share is one tensor in all of them)"
            )
        if wrong := sum(map(in_shared_memory, self.parameters)):
            raise PynasError(f"Arena: got {wrong} parameters in shared memory; allowed: memory of this process alone")
        inside = [t.dtype == torch.float32 and id(t) not in tied and not in_shared_memory(t) for t in others]
        self.outside = [t for t, fits in zip(others, inside) if not fits]
        self.tensors = self.parameters + [t for t, fits in zip(others, inside) if fits]
        if not self.tensors:
            raise PynasError("Arena: got no parameter with a value; allowed: at least one")
        self.device = self.tensors[0].device
        for t in self.tensors:
            if t.device != self.device:
                raise PynasError(f"Arena: got tensors on {self.device} and {t.device}; allowed: one device")
            if t.is_meta:
                raise PynasError("Arena: got a parameter on the meta device; allowed: one with values, as on cpu, cuda")
            if t.dtype not in (torch.float32, torch.bfloat16):
                raise PynasError(f"Arena: got a parameter of {t.dtype}; allowed: float32, bfloat16")
        self.offsets, self.size = placed(self.tensors)
        self.is_low = [t.dtype == torch.bfloat16 for t in self.tensors]
        self._shapes = [(t.shape, strides_of(t)) for t in self.tensors]
        self._group_of = [i for i, group in enumerate(groups) for p in group if p.numel()]
        self._adopt()
        self._gradient_strides = [strides for _, strides in self._shapes[: len(self.parameters)]]
        self._matrices = [i for i, p in enumerate(self.parameters) if sum(size > 1 for size in p.shape) > 1]
        self._matrix_strides = [self._gradient_strides[i] for i in self._matrices]
        self._copies: list[Tensor] = []  # of gradients in another order, until the next step
        self.stepped: list[Tensor] = []  # the parameters that had a gradient when the kernel's arguments were made
        self.gradients: list[Tensor] = []
        if gradient_views:
            self._lay_out_gradients()
        self._watch = Watch(tensors=[*self.tensors, *self.gradients])

    def _adopt(self) -> None:
        self.weights = self.flat(0.0)
        lows = [t for t, low in zip(self.tensors, self.is_low) if low]
        low_offsets, low_size = placed(lows)
        self.low = zeros(low_size, torch.bfloat16, self.device) if lows else None
        following = iter(low_offsets)
        self._low_offsets = [next(following) if low else -1 for low in self.is_low]
        with torch.no_grad():
            for t, view, place in zip(self.tensors, self.views(self.weights), self._low_offsets):
                view.copy_(t)
                if place >= 0:
                    assert self.low is not None
                    view = view_of(self.low, place, t.shape, strides_of(t)).copy_(t)
                t.data = view
        self._nothing = torch.empty(0, device=self.device)
        self.chunks = self._chunks(range(len(self.parameters)), [0] * len(self.parameters)).to(self.device)

    def _lay_out_gradients(self) -> None:
        self.flat_gradients = {
            dtype: zeros(placed(same)[1], dtype, self.device)
            for dtype in (torch.float32, torch.bfloat16)
            if (same := [p for p in self.parameters if p.dtype == dtype])
        }
        places = {
            dtype: iter(placed([p for p in self.parameters if p.dtype == dtype])[0]) for dtype in self.flat_gradients
        }
        self.gradients = [
            view_of(self.flat_gradients[p.dtype], next(places[p.dtype]), *shape)
            for p, shape in zip(self.parameters, self._shapes)
        ]
        # With these a kernel is given the flat gradients alone: a list of all takes longer to hand over.
        first = {dtype: flat.data_ptr() for dtype, flat in self.flat_gradients.items()}
        starts = [(g.data_ptr() - first[g.dtype]) // g.itemsize for g in self.gradients]
        rows = [list(first).index(g.dtype) for g in self.gradients]
        self._view_chunks = self._chunks(rows, starts).to(self.device)
        with torch.no_grad():
            for p, view in zip(self.parameters, self.gradients):
                if p.grad is not None and _can_move(p.grad, view):
                    p.grad = view.copy_(p.grad)

    def zero_gradients(self) -> None:
        """Sets gradients to zero and, where backward or another put them elsewhere, back into the arena.

        One that is not trained (`requires_grad` is false) is left without.
        """
        for flat in self.flat_gradients.values():
            flat.zero_()
        for p, gradient in zip(self.parameters, self.gradients):
            if not p.requires_grad:
                p.grad = None
            elif p.grad is not gradient:
                p.grad = gradient

    def forget_frozen(self) -> None:
        """Takes the view from parameters that are not trained, if backward did not reach them before they were frozen.

        What has no gradient stands still; a gradient of zero would go on with weight decay and momentum.
        """
        if all(map(_is_trained, self.parameters)):
            return
        for p, gradient in zip(self.parameters, self.gradients):
            if p.grad is gradient and not p.requires_grad and not gradient.any():
                p.grad = None

    def flat(self, value: float) -> Tensor:
        """float32 (values): one of the arena's size, all `value`."""
        flat = zeros(self.size, torch.float32, self.device)
        return flat.fill_(value) if value else flat

    def views(self, flat: Tensor) -> list[Tensor]:
        """The places of all tensors in a `flat` of the arena's size."""
        return [view_of(flat, offset, *shape) for offset, shape in zip(self.offsets, self._shapes)]

    def in_place(self) -> bool:
        """Whether all tensors and views are as the arena put them: of one device, dtype, memory, shape and strides."""
        return self._watch.undisturbed()

    def chunks_and_gradients(self) -> tuple[Tensor, list[Tensor]]:
        """What a kernel is given: the chunks, and of this moment the gradients that they number.

        A gradient's values are in its parameter's order; it is copied where they were not, and empty where there is
        none. Raises PynasError for a sparse one and for one of another dtype.
        """
        gradients = list(map(_gradient, self.parameters))
        self.stepped = self.parameters
        if self.gradients and all(map(is_, gradients, self.gradients)):
            return self._view_chunks, list(self.flat_gradients.values())
        self._copies.clear()
        # Those of one row of values are in its order, if without gaps; these and other dtypes the kernel refuses.
        if set(map(type, gradients)) == {Tensor}:
            with suppress(RuntimeError):  # of a sparse one
                if list(map(Tensor.stride, map(gradients.__getitem__, self._matrices))) == self._matrix_strides:
                    return self.chunks, gradients
        return self.chunks_and_ordered_gradients()

    def chunks_and_ordered_gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The same with every gradient looked at."""
        self._copies.clear()
        self.stepped = [p for p in self.parameters if p.grad is not None]
        return self.chunks, [self._ordered(i, gradient) for i, gradient in enumerate(map(_gradient, self.parameters))]

    def _ordered(self, index: int, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return self._nothing
        if gradient.layout != torch.strided:
            raise PynasError(f"gradient of a parameter is {gradient.layout}; allowed: dense gradients")
        parameter, strides = self.parameters[index], self._gradient_strides[index]
        if gradient.dtype != parameter.dtype:
            raise PynasError(f"gradient is {gradient.dtype}; allowed: its parameter's type, {parameter.dtype}")
        matters = [size > 1 for size in gradient.shape]
        if any(m and a != b for m, a, b in zip(matters, gradient.stride(), strides)):
            copy = torch.empty_strided(parameter.shape, strides, dtype=gradient.dtype, device=self.device)
            gradient = copy.copy_(gradient)
            self._copies.append(copy)
        return gradient

    def _chunks(self, rows: Iterable[int], starts: Iterable[int]) -> Tensor:
        others = len(self.tensors) - len(self.parameters)
        groups = [*self._group_of, *([0] * others)]
        rows, starts = [*rows, *([-1] * others)], [*starts, *([0] * others)]
        return chunks(self.tensors, self.offsets, self._low_offsets, rows, groups, starts)


class Watch:
    """Notices that a tensor of `modules`, or one of `tensors`, was moved, changed in layout or replaced.

    integers: whether those of other types than floating count too. A module that takes another's place is not noticed.
    number: by which the library knows the tensors; 0 without it.
    """

    def __init__(
        self, modules: Iterable[nn.Module] = (), tensors: Iterable[Tensor] = (), *, integers: bool = False
    ) -> None:
        every = [module for root in modules for module in root.modules()]
        homes: list[Any] = [home for module in every for home in (module._parameters, module._buffers) if home]
        self._homes: list[dict[str, Tensor | None]] = homes
        self._integers = integers
        self._named = self._now()
        self._kept = [*self._counting(self._named), *tensors]
        self._places: list[object] = []
        self.number = 0
        if library.available():
            self.number = torch.ops.pynas.watch.default(self._kept)
            weakref.finalize(self, torch.ops.pynas.unwatch.default, self.number).atexit = False
        else:
            self._places = list(map(_place, self._kept))

    def undisturbed(self) -> bool:
        now = self._now()
        if len(now) != len(self._named) or not all(map(is_, now, self._named)):
            before, after = self._counting(self._named), self._counting(now)
            if len(before) != len(after) or not all(map(is_, before, after)):
                return False
            self._named = now
        if self.number:
            return torch.ops.pynas.watched_in_place.default(self.number)
        return list(map(_place, self._kept)) == self._places

    def _now(self) -> list[Tensor | None]:
        return list(chain.from_iterable(map(dict.values, self._homes)))

    def _counting(self, tensors: list[Tensor | None]) -> list[Tensor]:
        return [t for t in tensors if t is not None and (self._integers or t.is_floating_point())]


def _can_move(gradient: Tensor, view: Tensor) -> bool:
    """Whether the view can stand for the gradient; a step reads or refuses others where they are."""
    return (
        gradient.layout == torch.strided
        and not gradient.requires_grad  # has a graph of its own
        and (gradient.dtype, gradient.device, gradient.shape) == (view.dtype, view.device, view.shape)
    )


def _place(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def chunks(
    tensors: Sequence[Tensor],
    offsets: Iterable[int],
    low_offsets: Iterable[int],
    rows: Iterable[int],
    groups: Iterable[int],
    starts: Iterable[int],
) -> Tensor:
    """int64 (chunks, 6): what lies where; for the columns see ArenaChunk in csrc/kernels/cpu/arena.hpp."""
    found = [
        (offset + start, low + start if low >= 0 else -1, first + start, min(CHUNK, t.numel() - start), row, group)
        for t, offset, low, row, group, first in zip(tensors, offsets, low_offsets, rows, groups, starts)
        for start in range(0, t.numel(), CHUNK)
    ]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 6)


def checked_rate(what: str, value: Any, most: float = 1.0) -> float:
    """The number, if it is from 0 to `most`."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor of several
        number = math.nan
    if not 0.0 <= number <= most:
        allowed = f"from 0 to {most:g}" if most < FINITE else "a finite number of at least 0"
        raise PynasError(f"{what} is {value}; allowed: {allowed}")
    return number


def zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size). On a CPU in huge pages where it fills some and Linux has them: going through it is a fifth faster."""
    if device.type != "cpu" or size * dtype.itemsize < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size * dtype.itemsize + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory alive
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + size * dtype.itemsize].view(dtype)


def has_kernels(device: torch.device) -> bool:
    """Whether updates on the device are to be fused, and can be."""
    return library.fused() and (
        device.type == "cpu" or (device.type == "cuda" and library.has_gpu_kernels(device.index))
    )


def floats(module: nn.Module) -> list[Tensor]:
    """Parameters and floating buffers of a module, each once."""
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]


def require_values(where: str, tensors: Iterable[Tensor]) -> None:
    """Raises PynasError for parameters of lazy modules that have no shape yet."""
    if any(isinstance(t, (UninitializedParameter, UninitializedBuffer)) for t in tensors):
        raise PynasError(
            f"{where}: got a parameter without a shape, of a lazy module; allowed: a module that has been called once"
        )


def with_version(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those whose changes autograd counts: all but what was made in inference mode."""
    return [tensor for tensor in tensors if not tensor.is_inference()]


def in_shared_memory(tensor: Tensor) -> bool:
    """Whether other processes may use the tensor's memory, as after `share_memory_`."""
    return tensor.device.type == "cpu" and tensor.is_shared()


def overlapping(tensors: Iterable[Tensor]) -> set[int]:
    """The ids of those from whose first to last byte some byte is another's too."""
    runs = []
    for i, t in enumerate(tensors):
        if t.numel() and (start := t.data_ptr()):
            last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
            runs.append((str(t.device), start, start + (last + 1) * t.itemsize, i, id(t)))
    found = set()
    furthest = None
    for run in sorted(runs):
        if furthest is not None and run[0] == furthest[0] and run[1] < furthest[2]:
            found |= {run[-1], furthest[-1]}
        if furthest is None or run[0] != furthest[0] or run[2] > furthest[2]:
            furthest = run
    return found


def placed(tensors: Iterable[Tensor]) -> tuple[list[int], int]:
    """Where each begins, and the size of all."""
    offsets, end = [], 0
    for t in tensors:
        offsets.append(end)
        end += -(-t.numel() // ALIGNMENT) * ALIGNMENT
    return offsets, end


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides where its values fill a run of memory, in whatever order; else those of a contiguous one."""
    return torch.empty_like(tensor, device="meta").stride()


def view_of(flat: Tensor, offset: int, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
    """A tensor with a storage of its own over a part of `flat`'s memory, which it keeps alive."""
    part = dlpack.from_dlpack(dlpack.to_dlpack(flat[offset : offset + shape.numel()]))
    return part.as_strided(shape, strides)


@library.of_one_device
def _fake(*_: object) -> None:
    """The operators write to arguments and return nothing."""


if library.available():
    for _name in ("ema_update", "ema_update_from", "rmsprop_ema_step", "sgd_ema_step"):
        torch.library.register_fake(f"pynas::{_name}")(_fake)
