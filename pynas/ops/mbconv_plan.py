"""Which plan a block follows on a GPU: whether the expanded tensor y1 is kept, or made anew where it is read.

Shapes: X is the block's input, H what the expansion makes of it, D what the depthwise convolution does, O the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from pynas.errors import PynasError

Plan = Literal["stored", "recomputed"]
PLANS: tuple[Plan, ...] = ("stored", "recomputed")
_forced: Plan | None = None

BYTES_PER_SECOND = 3e12
"""Of a GPU's memory; an assumption (an H100's), as is the next."""
OPERATIONS_PER_SECOND = {2: 1e14, 4: 2e13}
"""Of the products within a depthwise kernel, by the size of a number: tensor cores on small tiles, fused multiply-adds.
An assumption until it is measured on a GPU."""


def positions(size: int, kernel: int, stride: int, padding: int) -> int:
    """Pixels of a row or column that a convolution makes of `size`."""
    return (size + 2 * padding - kernel) // stride + 1


class BlockShape(NamedTuple):
    """Numbers of images, of channels (given, expanded, made by the depthwise convolution, returned), of pixels, the
    kernel, the stride, the padding, and the bytes of a number."""

    images: int
    channels: int
    expanded: int
    maps: int
    out: int
    h: int
    w: int
    kernel: int
    stride: int
    padding: int
    itemsize: int

    def sizes(self) -> tuple[int, int, int, int]:
        """Bytes of X, H, D and O; H is 0 where nothing expands."""
        pixels = self.images * self.h * self.w * self.itemsize
        high, wide = (positions(size, self.kernel, self.stride, self.padding) for size in (self.h, self.w))
        made = self.images * high * wide * self.itemsize
        return self.channels * pixels, self.expanded * pixels, self.maps * made, self.out * made


def saved_activations(shape: BlockShape, plan: Plan) -> int:
    """Bytes kept for backward: X, H (stored), D and O."""
    x, h, d, o = shape.sizes()
    return x + d + o + (h if _known(plan, "saved_activations") == "stored" else 0)


def traffic(shape: BlockShape, plan: Plan, training: bool = True) -> int:
    """Bytes that forward and backward move, or inference, counted step by step (docs/kernels.md)."""
    x, h, d, o = shape.sizes()
    plan = _known(plan, "traffic")
    if not training:
        return 2 * x + (2 * h if plan == "stored" else 0) + 2 * d + o
    of_expansion = 4 * x + 8 * h if plan == "stored" else 9 * x + 3 * h
    return (of_expansion if shape.expanded else 4 * x) + 8 * d + 10 * o


def operations(shape: BlockShape) -> int:
    """Floating-point operations that the recomputed plan adds: the expansion of a tile and its surroundings in forward,
    of the tile in backward, less that of the step which it leaves out."""
    side = 8 if shape.stride == 2 or max(shape.h, shape.w) <= 8 else 16
    halo = (side - 1) * shape.stride + shape.kernel
    surroundings = (halo / (side * shape.stride)) ** 2
    pixels = shape.images * shape.h * shape.w
    return int(2 * shape.channels * shape.expanded * pixels * surroundings)


def plan_for(shape: BlockShape, training: bool = True) -> Plan:
    """The plan that `use` has chosen, else the one that takes less time by bytes and operations: y1 is made anew where
    the bytes that this saves take longer than its products, which is where few channels are expanded."""
    if not shape.expanded:
        return "stored"
    if _forced is not None:
        return _forced
    bytes_saved = traffic(shape, "stored", training) - traffic(shape, "recomputed", training)
    rate = OPERATIONS_PER_SECOND[4 if shape.itemsize > 2 else 2]
    return "recomputed" if bytes_saved / BYTES_PER_SECOND > operations(shape) / rate else "stored"


def use(plan: Plan | None) -> None:
    """Force a plan for the process, None for the better one of each block. Raises PynasError for another."""
    global _forced
    _forced = None if plan is None else _known(plan, "use", " and None")


def _known(plan: str, where: str, beside: str = "") -> Plan:
    if plan not in PLANS:
        raise PynasError(f"mbconv_plan.{where}: got {plan!r}, allowed are {', '.join(PLANS)}{beside}")
    return plan


@contextmanager
def using(plan: Plan | None) -> Iterator[None]:
    """`use(plan)` for a block of statements; backward follows the plan that forward had."""
    before = _forced
    use(plan)
    try:
        yield
    finally:
        use(before)
