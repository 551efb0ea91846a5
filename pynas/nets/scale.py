"""Compound scaling (EfficientNet, Tan & Le 2019): one network made larger or smaller in depth, width and resolution.

The FBNetV3 paper makes A from B, and F and G from E in this way. A takes B's recipe; F and G take E's with stochastic
depth raised to 0.2. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pynas.errors import PynasError
from pynas.space.architecture import Architecture, Recipe, Row, round_channels
from pynas.space.budget import format_amount

STOCHASTIC_DEPTH = 0.2  # the least of a network that was scaled up
CLOSE = 0.05  # a limit of the scaling that misses the target by no more than this share is an answer
_FURTHEST = 64.0  # 1.2 * 1.1**2 * 1.15**2 is nearly 2: beyond any network in either direction
_FINEST = 1e-4  # of phi: coarser than the rounding of repeats, finer than any step that matters
_ROUNDING = 1e-6  # 50 * 1.1 is a little more than 55, and means 55


@dataclass(frozen=True)
class Scaled:
    """A scaled network, its recipe, the multipliers it came from and the FLOPs it reaches (published rule).

    `phi` and `target` (FLOPs) are those of `scale_to`, None where the multipliers were given.
    """

    architecture: Architecture
    recipe: Recipe | None
    depth: float
    width: float
    resolution: float
    flops: int
    phi: float | None = None
    target: float | None = None

    @property
    def error(self) -> float:
        """By what share of the target the FLOPs differ from it; positive is above, 0 where there is none."""
        return 0.0 if self.target is None else self.flops / self.target - 1

    def to_dict(self) -> dict[str, Any]:
        recipe = self.recipe and self.recipe.to_dict()
        return asdict(self) | {"architecture": self.architecture.to_dict(), "recipe": recipe, "error": self.error}


def compound_scale(
    architecture: Architecture,
    recipe: Recipe | None = None,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: float = 1.0,
) -> Scaled:
    """The network with `depth` times the blocks, `width` times the channels and `resolution` times the pixels a side.

    Stages get ceil(n * depth) blocks, channels are rounded to multiples of 8 (never more than 5% down) and the
    resolution to the nearest multiple of 8; a multiplier of 1 changes nothing. MBPool's width and the classes stay.
    Where a stage takes several rows (consecutive mbconv of one width, the first of which may have a stride), its
    longest row takes or gives the blocks and every row keeps one. The recipe's stochastic depth becomes at least 0.2
    where the network costs more than it did. Raises PynasError for multipliers that give no network.
    """
    for name, value in (("depth", depth), ("width", width), ("resolution", resolution)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise PynasError(f"{name}: {value!r}; allowed: a multiplier above 0")
    rows = _wider(_deeper(architecture.rows, depth), width)
    pixels = architecture.resolution
    if resolution != 1:
        pixels = max(math.floor(pixels * resolution / 8 + 0.5), 1) * 8
    scaled = Architecture(rows, pixels, architecture.input_channels)
    flops = scaled.cost()["flops"]
    if recipe is not None and flops > architecture.cost()["flops"]:
        recipe = replace(recipe, stochastic_depth=max(recipe.stochastic_depth, STOCHASTIC_DEPTH))
    return Scaled(scaled, recipe, depth, width, resolution, flops)


def scale_to(
    architecture: Architecture,
    recipe: Recipe | None = None,
    *,
    flops: float,
    alpha: float = 1.2,
    beta: float = 1.1,
    gamma: float = 1.15,
) -> Scaled:
    """The network scaled to about `flops` FLOPs by one coefficient phi: depth alpha**phi, width beta**phi, resolution
    gamma**phi; phi is negative for a smaller network.

    FLOPs are a staircase in phi, because blocks, channels and pixels are whole. Bisection finds the step at which they
    pass the target, and the nearer side of the step is the answer: `Scaled.error` says how near. Raises PynasError
    where even the smallest or the largest network misses the target by more than 5%.
    """
    if isinstance(flops, bool) or not isinstance(flops, int | float) or not 0 < flops < math.inf:
        raise PynasError(f"flops: {flops!r}; allowed: a number above 0")
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
            raise PynasError(f"{name}: {value!r}; allowed: a number of at least 1")
    if alpha == beta == gamma == 1:
        raise PynasError("alpha, beta and gamma are all 1; at least one of them must be above it to scale anything")

    def at(phi: float) -> Scaled:
        scaled = compound_scale(architecture, recipe, depth=alpha**phi, width=beta**phi, resolution=gamma**phi)
        return replace(scaled, phi=phi, target=float(flops))

    near = at(0.0)
    if near.flops == flops:
        return near
    sign = 1 if near.flops < flops else -1

    def passes(scaled: Scaled) -> bool:
        return sign * (scaled.flops - flops) >= 0

    # `near` does not reach the target yet; `far` passes it, or is None where there is no network that far out.
    inner, outer, far = 0.0, 0.25, None
    while outer <= _FURTHEST:
        far = _try(at, sign * outer)
        if far is None or passes(far):
            break
        near, inner, outer = far, outer, 2 * outer
    while outer - inner > _FINEST and outer <= _FURTHEST:
        middle = (inner + outer) / 2
        tried = _try(at, sign * middle)
        if tried is not None and not passes(tried):
            near, inner = tried, middle
        else:
            far, outer = tried, middle
    if far is None or not passes(far):
        if abs(near.error) > CLOSE:
            end = "largest" if sign > 0 else "smallest"
            raise PynasError(
                f"flops: {format_amount(flops)} cannot be reached; the {end} network of this scaling has "
                f"{format_amount(near.flops)} (phi {near.phi:.2f})"
            )
        return near
    return min(near, far, key=lambda scaled: abs(scaled.error))


def _try(at: Any, phi: float) -> Scaled | None:
    """None where the multipliers give no network: too many blocks or channels, or feature maps below the kernels."""
    try:
        return at(phi)
    except (PynasError, OverflowError):
        return None


def _stages(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows of each stage: consecutive mbconv of one width, of which only the first may have a stride."""
    stages: list[list[int]] = []
    for index, row in enumerate(rows):
        if row.block != "mbconv":
            continue
        if stages and stages[-1][-1] == index - 1 and row.s == 1 and rows[index - 1].c == row.c:
            stages[-1].append(index)
        else:
            stages.append([index])
    return stages


def _deeper(rows: Sequence[Row], depth: float) -> list[Row]:
    scaled = list(rows)
    if depth == 1:
        return scaled
    for stage in _stages(rows):
        repeats = {index: rows[index].n for index in stage}
        goal = math.ceil(sum(repeats.values()) * depth - _ROUNDING)
        change = max(goal, len(stage)) - sum(repeats.values())
        for _ in range(-change):
            repeats[max(stage, key=lambda index: (repeats[index], index))] -= 1
        if change > 0:
            repeats[max(stage, key=lambda index: (repeats[index], index))] += change
        for index in stage:
            scaled[index] = replace(rows[index], n=repeats[index])
    return scaled


def _wider(rows: Sequence[Row], width: float) -> tuple[Row, ...]:
    if width == 1:
        return tuple(rows)
    kept = ("mbpool", "fc")
    return tuple(row if row.block in kept else replace(row, c=round_channels(row.c * width)) for row in rows)
