"""Tensors of a module in contiguous storage, where one pass over memory reaches them all.

An arena has one float32 value for each value of its parameters and floating buffers. float32 tensors *are* those
values: their data become views of the arena. bfloat16 parameters lie in a second piece of memory, and the arena holds
their float32 masters. Tensors keep identity, shape and strides; each has a storage of its own over its part of the
memory, so that copying, pickling or saving one of them takes no more than that part.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import attrgetter, is_

import torch
from torch import Tensor, nn
from torch.utils import dlpack

from pynas.errors import PynasError
from pynas.ops import library

ALIGNMENT = 16  # values: a tensor begins at a multiple, 64 bytes in float32 and 32 in bfloat16
HUGE_PAGE = 1 << 21  # bytes
CHUNK = 4096  # values that one block of a GPU takes at once

_gradient = attrgetter("grad")
_dtype = attrgetter("dtype")


class Arena:
    """Lays out the parameters of `groups` and then the floating buffers and remaining parameters of `module`.

    module: None for the groups alone. groups: None for all parameters of the module in one group.
    gradient_views: gradients too lie in contiguous storage, as views that `zero_gradients` sets and `backward` adds to.
    That spares a GPU the copy of their addresses at every step and costs a pass over them; otherwise a gradient is
    wherever backward left it.

    weights: float32 (values), the float32 tensors and masters; low: bfloat16 parameters, or None.
    tensors: all that have a place, parameters first; shape and strides of their views are theirs.

    Raises PynasError for tensors on several devices and for parameters that are neither float32 nor bfloat16.
    Floating buffers of other types are left where they are, in `outside`.
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
        self.parameters = [p for group in groups for p in group if p.numel()]
        owned = {id(p) for p in self.parameters}
        others = [] if module is None else [t for t in floats(module) if id(t) not in owned and t.numel()]
        self.outside = [t for t in others if t.dtype != torch.float32]
        self.tensors = self.parameters + [t for t in others if t.dtype == torch.float32]
        if not self.tensors:
            raise PynasError("Arena: got no parameter with a value; allowed: at least one")
        self.device = self.tensors[0].device
        for t in self.tensors:
            if t.device != self.device:
                raise PynasError(f"Arena: got tensors on {self.device} and {t.device}; allowed: one device")
            if t.dtype not in (torch.float32, torch.bfloat16):
                raise PynasError(f"Arena: got a parameter of {t.dtype}; allowed: float32, bfloat16")
        self.offsets, self.size = placed(self.tensors)
        self.is_low = [t.dtype == torch.bfloat16 for t in self.tensors]
        self._shapes = [(t.shape, strides_of(t)) for t in self.tensors]
        self._group_of = [i for i, group in enumerate(groups) for p in group if p.numel()]
        self._adopt()
        self._gradient_strides = [strides for _, strides in self._shapes[: len(self.parameters)]]
        self._gradient_dtypes = [parameter.dtype for parameter in self.parameters]
        self._copies: list[Tensor] = []  # of gradients in another order, until the next step
        self.gradients: list[Tensor] = []
        if gradient_views:
            self._lay_out_gradients()

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
        self._addresses = list(map(Tensor.data_ptr, self.parameters))
        self._ends = (self.tensors[0], self.tensors[-1])
        self._end_addresses = [t.data_ptr() for t in self._ends]
        self.chunks = self._chunks().to(self.device)

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
        self._gradient_table = self._table(list(map(Tensor.data_ptr, self.gradients)))
        self.zero_gradients()

    def zero_gradients(self) -> None:
        """Sets gradients to zero and, where backward or another put them elsewhere, back into the arena."""
        for flat in self.flat_gradients.values():
            flat.zero_()
        for p, gradient in zip(self.parameters, self.gradients):
            if p.grad is not gradient and p.requires_grad:
                p.grad = gradient

    def flat(self, value: float) -> Tensor:
        """float32 (values): one of the arena's size, all `value`."""
        flat = zeros(self.size, torch.float32, self.device)
        return flat.fill_(value) if value else flat

    def views(self, flat: Tensor) -> list[Tensor]:
        """The places of all tensors in a `flat` of the arena's size."""
        return [view_of(flat, offset, *shape) for offset, shape in zip(self.offsets, self._shapes)]

    def in_place(self) -> bool:
        """Whether all parameters are where the arena put them: not moved to another device, dtype or memory since.

        Of buffers the first or the last is asked, which any `Module.to` moves along with the rest.
        """
        return (
            list(map(Tensor.data_ptr, self.parameters)) == self._addresses
            and [t.data_ptr() for t in self._ends] == self._end_addresses
        )

    def gradient_table(self) -> Tensor:
        """int64 (parameters): where each parameter's gradient of this moment begins, 0 for none.

        Gradients whose values are in another order than their parameter's are copied. Raises PynasError for a sparse
        one.
        """
        gradients = list(map(_gradient, self.parameters))
        if self.gradients and all(map(is_, gradients, self.gradients)):
            return self._gradient_table
        self._copies.clear()
        try:
            alike = list(map(Tensor.stride, gradients)) == self._gradient_strides
            if alike and list(map(_dtype, gradients)) == self._gradient_dtypes:
                return self._table(list(map(Tensor.data_ptr, gradients)))
        except (TypeError, AttributeError, RuntimeError):
            pass  # one is None or sparse
        return self._table([self._address(i, gradient) for i, gradient in enumerate(gradients)])

    def _address(self, index: int, gradient: Tensor | None) -> int:
        if gradient is None:
            return 0
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
        return gradient.data_ptr()

    def _table(self, addresses: list[int]) -> Tensor:
        return address_table(addresses, self.device)

    def _chunks(self) -> Tensor:
        rows = (i if i < len(self.parameters) else -1 for i in range(len(self.tensors)))
        groups = [*self._group_of, *([0] * (len(self.tensors) - len(self.parameters)))]
        return chunks(self.tensors, self.offsets, self._low_offsets, rows, groups)


def chunks(
    tensors: Sequence[Tensor],
    offsets: Iterable[int],
    low_offsets: Iterable[int],
    rows: Iterable[int],
    groups: Iterable[int],
) -> Tensor:
    """int64 (chunks, 6): what lies where; for the columns see ArenaChunk in csrc/kernels/cpu/arena.hpp."""
    found = [
        (offset + start, low + start if low >= 0 else -1, start, min(CHUNK, t.numel() - start), row, group)
        for t, offset, low, row, group in zip(tensors, offsets, low_offsets, rows, groups)
        for start in range(0, t.numel(), CHUNK)
    ]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 6)


def address_table(addresses: list[int], device: torch.device) -> Tensor:
    """int64 (tensors). On a GPU the copy there is in the current stream, and nothing waits for it."""
    table = torch.frombuffer(array("q", addresses or [0]), dtype=torch.int64)
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


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
    return library.fused() and (device.type == "cpu" or (device.type == "cuda" and torch.ops.pynas.has_cuda()))


def floats(module: nn.Module) -> list[Tensor]:
    """Parameters and floating buffers of a module, each once."""
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]


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


def _fake(*arguments: object) -> None:
    """The operators write to arguments and return nothing."""


if library.available():
    for _name in ("ema_update", "ema_update_from", "rmsprop_ema_step", "sgd_ema_step"):
        torch.library.register_fake(f"pynas::{_name}")(_fake)
