"""Named lower and upper bounds on cost: what a network may spend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pynas.errors import PynasError

if TYPE_CHECKING:
    import numpy as np

COSTS = ("flops", "macs", "params", "parameters")  # columns of the core's costs, in its order
LATENCY = "latency"  # of a named device in milliseconds, where a model of it is given (`pynas.space.latency`)
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_AMOUNT = re.compile(r"^(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)([kMGT]?)$")
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1

Bounds = tuple[float | None, float | None]


def parse_amount(text: str) -> float:
    """``"550M"`` -> 550e6. Units k, M, G, T; raises PynasError for anything else."""
    match = _AMOUNT.match(text.strip().replace("_", ""))
    if not match:
        raise PynasError(f"{text!r} is not an amount; write for instance 400M, 2.5G or 550e6")
    return float(match[1]) * _UNITS[match[2]]


def format_amount(value: float) -> str:
    """550e6 -> ``"550M"``: three or four digits and a unit, for people."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


@dataclass(frozen=True, init=False)
class Budget:
    """Inclusive bounds by cost: ``Budget(flops=(400e6, 550e6), params=(None, 9e6))``.

    Costs are `flops` and `params` by the published counting rule, `macs`, `parameters` (the true count), and `latency`,
    in milliseconds, where a method takes it. A bound of None is open; a single number is an upper bound; text may use
    units (``"400M:550M"``). Raises PynasError for an unknown cost, for a lower bound above the upper one and for what
    is not a number.
    """

    bounds: tuple[tuple[str, Bounds], ...]

    def __init__(self, **costs: Any) -> None:
        bounds = []
        for name, value in costs.items():
            if name not in (*COSTS, LATENCY):
                raise PynasError(f"budget: unknown cost {name!r}; allowed: {', '.join((*COSTS, LATENCY))}")
            bounds.append((name, read_bounds(name, value)))
        object.__setattr__(self, "bounds", tuple(sorted(bounds)))

    @classmethod
    def parse(cls, *texts: str) -> Budget:
        """From ``"flops=400M:550M"`` and the like; ``flops=:550M``, ``flops=400M:`` and ``flops=550M`` (at most)."""
        costs: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not value:
                raise PynasError(f"budget {text!r}: write COST=LOW:HIGH, for instance flops=400M:550M or params=:9M")
            if name.strip() in costs:
                raise PynasError(f"budget {text!r}: {name.strip()} is given twice")
            costs[name.strip()] = value
        return cls(**costs)

    @classmethod
    def of(cls, value: Budget | Mapping[str, Any] | str | None) -> Budget:
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls.parse(value)
        if not isinstance(value, Budget | Mapping):
            raise PynasError(f"budget {value!r}; allowed: a Budget, a mapping such as {{'flops': (4e8, 5e8)}}, or text")
        return value if isinstance(value, Budget) else cls(**value)

    def __getitem__(self, cost: str) -> Bounds:
        return dict(self.bounds).get(cost, (None, None))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds as int64 arrays of length 4 in the order of COSTS, open ones at the int64 limits.

        Raises PynasError for a bound on latency, which is not counted but predicted.
        """
        import math

        import numpy as np

        if LATENCY in dict(self.bounds):
            raise PynasError(f"budget {LATENCY}: a target for method fpnas alone; allowed here: {', '.join(COSTS)}")

        lower = [_LOWEST if self[c][0] is None else math.ceil(self[c][0] or 0) for c in COSTS]
        upper = [_HIGHEST if self[c][1] is None else math.floor(self[c][1] or 0) for c in COSTS]
        return np.array(lower, np.int64), np.array(upper, np.int64)

    def to_dict(self) -> dict[str, list[float | None]]:
        return {name: list(bounds) for name, bounds in self.bounds}

    def __str__(self) -> str:
        def text(low: float | None, high: float | None) -> str:
            return ":".join("" if bound is None else format_amount(bound) for bound in (low, high))

        return " ".join(f"{name}={text(*bounds)}" for name, bounds in self.bounds) or "no bounds"


def read_bounds(name: str, value: Any) -> Bounds:
    """Bounds on a cost of any name, as `Budget` takes them. Raises PynasError."""
    if isinstance(value, str):
        text_low, colon, text_high = value.partition(":")
        value = (text_low or None, text_high or None) if colon else (None, text_low)
    elif not isinstance(value, tuple | list):
        value = (None, value)
    if len(value) != 2:
        raise PynasError(f"budget {name}: {value!r}; allowed: (low, high), one upper bound, or text such as 400M:550M")
    low, high = _read_bound(name, value[0]), _read_bound(name, value[1])
    if low is not None and high is not None and low > high:
        raise PynasError(f"budget {name}: the lower bound {low:g} is above the upper bound {high:g}")
    return low, high


def _read_bound(name: str, bound: Any) -> float | None:
    if bound is None:
        return None
    try:
        if isinstance(bound, bool):
            raise TypeError
        number = parse_amount(bound) if isinstance(bound, str) else float(bound)
    except (TypeError, OverflowError):
        raise PynasError(f"budget {name}: {bound!r} is not a number") from None
    if not abs(number) < 9.2e18:  # also catches NaN
        raise PynasError(f"budget {name}: {bound!r} is not a finite cost")
    return number
