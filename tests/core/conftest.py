"""Spaces to test the compiled core with: Table 2 of the FBNetV3 paper, and helpers to declare small ones.

With PYNAS_CORE=<folder> in the environment the extension in that folder is tested instead of the installed one (for
instance a sanitizer build).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if "PYNAS_CORE" in os.environ:
    (library,) = Path(os.environ["PYNAS_CORE"]).glob("_core*.so")
    spec = importlib.util.spec_from_file_location("pynas._core", library)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["pynas._core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pynas._core"])

from pynas import _core

FIELDS = ("k", "k_rest", "e", "e_rest", "c", "n", "s", "se", "pad")
DEFAULTS = {"k": 3, "e": 1, "c": 16, "n": 1, "s": 1, "se": 0, "pad": -1}
FIXED = {"se_from": "in", "bias": True}
UNBOUNDED = (np.zeros(4, np.int64), np.full(4, np.iinfo(np.int64).max))


class Declaration:
    """Collects variables and rows. A field given as a list becomes a list variable, as a range a range variable."""

    def __init__(self) -> None:
        self.variables: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def variable(self, name: str, values: Any, group: str = "architecture") -> tuple[int, float]:
        kind = "range" if isinstance(values, range) else "list"
        self.variables.append({"name": name, "kind": kind, "group": group, "values": [float(v) for v in values]})
        return len(self.variables) - 1, 0.0

    def field(self, name: str, value: Any) -> tuple[int, float]:
        if isinstance(value, tuple):
            return value
        return self.variable(name, value) if isinstance(value, (list, range)) else (-1, float(value))

    def row(self, block: str, **given: Any) -> dict[str, tuple[int, float]]:
        number = len(self.rows)
        fields = {}
        for name in FIELDS:
            base = name.removesuffix("_rest")
            if name != base and name not in given:
                fields[name] = fields[base]
            else:
                fields[name] = self.field(f"{name}{number}", given.get(name, DEFAULTS[base]))
        fixed = {name: given.get(name, value) for name, value in FIXED.items()}
        self.rows.append({"block": block, **fixed, **fields})
        return fields

    def compile(self, resolution: Any = 224, input_channels: int = 3) -> Any:
        return _core.Space(self.variables, self.rows, self.field("resolution", resolution), input_channels)


def declare_table2(ema: bool = False) -> tuple[Declaration, tuple[int, float]]:
    """Table 2 with one kernel, expansion pair, width and depth a stage, inclusive tuples and shared superscripts."""
    table = Declaration()
    resolution = table.variable("resolution", range(224, 273, 8))
    kernels = [3, 5]
    table.row("conv", c=range(16, 25, 2), s=2)
    table.row("mbconv", k=kernels, c=range(16, 25, 2), n=range(1, 5))
    expansions = {"e": range(4, 8), "e_rest": range(2, 6)}
    table.row("mbconv", k=kernels, **expansions, c=range(20, 33, 4), n=range(4, 8), s=2)
    table.row("mbconv", k=kernels, **expansions, c=range(24, 49, 4), n=range(4, 8), s=2, se=1)
    shared = table.row("mbconv", k=kernels, **expansions, c=range(56, 85, 4), n=range(4, 9), s=2)
    tied = {"e": shared["e"], "e_rest": shared["e_rest"]}
    table.row("mbconv", k=kernels, **tied, c=range(96, 145, 4), n=range(6, 11), se=1)
    table.row("mbconv", k=kernels, e=range(4, 8), c=range(180, 225, 4), n=range(5, 10), s=2, se=1)
    table.row("mbconv", k=kernels, e=6, c=range(180, 225, 4), se=1)
    table.row("mbpool", e=6, c=1984)
    table.row("fc", c=1000)
    table.variable("lr", range(20, 31), "recipe")
    table.variable("optim", [0, 1], "recipe")
    if ema:
        table.variable("ema", [0, 1], "recipe")
    for name, values in {"p": range(1, 32), "d": range(10, 32), "m": range(42), "wd": range(7, 22)}.items():
        table.variable(name, values, "recipe")
    return table, resolution


@pytest.fixture(scope="session")
def table2() -> Any:
    table, resolution = declare_table2()
    return table.compile(resolution)


@pytest.fixture(scope="session")
def table2_declaration() -> Declaration:
    return declare_table2()[0]


def within(lower: dict[str, int] | None = None, upper: dict[str, int] | None = None) -> tuple[Any, Any]:
    """(lower, upper) arrays from named bounds."""
    arrays = UNBOUNDED[0].copy(), UNBOUNDED[1].copy()
    for array, named in zip(arrays, (lower or {}, upper or {})):
        for name, value in named.items():
            array[_core.COSTS.index(name)] = value
    return arrays


def random_genomes(space: Any, n: int, seed: int = 0) -> Any:
    return space.sample(n, seed, *UNBOUNDED, 1)
