"""The steps of the GPU's kernels, emulated on the CPU with the very code that the GPU runs: see tiles.cpp."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pynas.ops.batch_norm_kernels import ACTIVATIONS
from pynas.ops.mbconv_plan import positions
from pynas.ops.reference_mbconv import Norm, NormBackward

SOURCE = Path(__file__).with_name("tiles.cpp")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LAST = torch.channels_last


@cache
def library() -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        made = Path(folder) / "tiles.so"
        flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        flags += os.environ.get("PYNAS_TILES_FLAGS", "").split()  # tests/core/sanitize.sh has some
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(made)], check=True)
        return ctypes.CDLL(str(made))


@contextmanager
def last_thread_first() -> Iterator[None]:
    """Threads in the other order: results differ where one reads what another writes in the same phase."""
    library().run_last_thread_first(True)
    yield
    library().run_last_thread_first(False)


def structure(*fields: tuple[str, Any]) -> type[ctypes.Structure]:
    return type("Made", (ctypes.Structure,), {"_fields_": list(fields)})


def pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


def ints(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int) for name in names]


# As csrc/kernels/cuda/arguments.hpp has them.
NORM = structure(*pointers("mean", "var", "weight", "bias"), ("eps", ctypes.c_float), ("act", ctypes.c_int32))
GATE = structure(("values", ctypes.c_void_p), ("by_channel", ctypes.c_bool))
BACKWARD = structure(("norm", NORM), ("gate", GATE), *pointers("dpool", "sums"), ("share", ctypes.c_float))
STATISTICS = structure(*pointers("mean", "var"))
PIXELS = structure(*ints("groups", "rows"))
SHAPE = structure(*ints("n", "channels", "h", "w", "kernel", "stride", "padding", "splits"))
EXPANSION = structure(*pointers("weight"), *ints("in"))
OF_PIXELS = [("pixels", PIXELS), *ints("in", "out")]
ROWS = [("pixels", PIXELS), *ints("channels")]
STEPS = {
    "ChannelStatistics": [*ROWS, *pointers("x"), ("statistics", STATISTICS), *pointers("scratch")],
    "NormAct": [*ROWS, *pointers("x"), ("norm", NORM), ("gate", GATE), *pointers("residual", "y")],
    "NormActSums": [*ROWS, *pointers("d", "x"), ("norm", NORM), ("gate", GATE), *pointers("sums", "scratch")],
    "NormActBackward": [*ROWS, *pointers("d", "x"), ("after", BACKWARD), *pointers("dx")],
    "Expand": [*OF_PIXELS, *pointers("x", "weight", "y"), ("statistics", STATISTICS), *pointers("scratch")],
    "Depthwise": [
        *(("shape", SHAPE), ("expansion", EXPANSION), ("norm", NORM), *pointers("x", "weight", "y")),
        *(("statistics", STATISTICS),),
        *pointers("scratch"),
    ],
    "DepthwiseApplied": [
        *(("shape", SHAPE), ("expansion", EXPANSION), ("norm", NORM), *pointers("x", "weight"), ("after", NORM)),
        *pointers("y", "pooled", "scratch"),
    ],
    "ProjectApplied": [
        *(*OF_PIXELS, *pointers("x"), ("gate", GATE), *pointers("weight"), ("after", NORM)),
        *pointers("residual", "y"),
    ],
    "Pooled": [*ROWS, *pointers("x"), ("norm", NORM), *pointers("pooled")],
    "Project": [
        *(*OF_PIXELS, *pointers("x"), ("norm", NORM), ("gate", GATE), *pointers("weight", "y")),
        *(("statistics", STATISTICS), *pointers("scratch")),
    ],
    "ProjectBackward": [
        *(*OF_PIXELS, *ints("splits"), *pointers("d", "y"), ("after", BACKWARD), *pointers("weight", "x")),
        *(("norm", NORM),),
        *pointers("da", "sums", "scratch"),
    ],
    "ProjectWeightBackward": [
        *(*OF_PIXELS, *pointers("d", "y"), ("after", BACKWARD), *pointers("x"), ("norm", NORM), ("gate", GATE)),
        *pointers("dweight", "scratch"),
    ],
    "DepthwiseBackward": [
        *(
            ("shape", SHAPE),
            ("expansion", EXPANSION),
            *pointers("d", "y"),
            ("after", BACKWARD),
            *pointers("weight", "x"),
            ("norm", NORM),
        ),
        *pointers("dz", "dweight", "sums", "scratch"),
    ],
    "Gram": [
        *(("pixels", PIXELS), *ints("left_columns", "right_columns")),
        *pointers("left", "left_centre", "right", "right_centre", "sums", "scratch"),
    ],
    "ExpandedBackward": [
        *OF_PIXELS,
        *pointers("dz", "x", "centre", "weight", "level", "residual", "dx"),
    ],
    "ExpandBackward": [
        *(*OF_PIXELS, *pointers("d", "y"), ("after", BACKWARD), *pointers("weight", "residual", "dx")),
    ],
    "ExpandWeightBackward": [
        *(*OF_PIXELS, *pointers("d", "y"), ("after", BACKWARD), *pointers("x", "dweight", "scratch")),
    ],
}
STRUCTURES = {name: structure(*fields) for name, fields in STEPS.items()}


def address(value: Tensor | None) -> int | None:
    return None if value is None else value.data_ptr()


def norm_of(norm: Norm | None) -> Any:
    if norm is None:
        return NORM()
    mean, var, weight, bias = (address(value) for value in norm[:4])
    return NORM(mean, var, weight, bias, norm.eps, ACTIVATIONS[norm.act])


def gate_of(gate: Tensor | None, channels: int) -> Any:
    return GATE(address(gate), gate is not None and gate.shape[1] == channels)


def backward_of(after: NormBackward) -> Any:
    gate = gate_of(after.gate, len(after.norm.mean))
    return BACKWARD(norm_of(after.norm), gate, address(after.dpool), address(after.sums), 1.0 / max(after.values, 1.0))


def run(step: str, like: Tensor, **arguments: Any) -> None:
    """A step of like's dtype; tensors as their addresses; scratch is made here, of NaN."""
    made = STRUCTURES[step]()
    for name, value in arguments.items():
        setattr(made, name, address(value) if isinstance(value, Tensor) else value)
    kind, own = TYPES[like.dtype], library()
    if hasattr(own, f"scratch_{step}"):
        size = getattr(own, f"scratch_{step}")
        size.restype = ctypes.c_int64
        scratch = torch.full((size(kind, ctypes.byref(made)),), torch.nan)
        made.scratch = address(scratch)
    getattr(own, f"run_{step}")(kind, ctypes.byref(made))


def blank(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What memory holds before a kernel writes to it."""
    made = torch.full(sizes, torch.nan, dtype=dtype)
    return made.contiguous(memory_format=LAST) if len(sizes) == 4 and sizes[2:] != (1, 1) else made


# The functions of pynas.ops.reference_mbconv.

Statistics = tuple[Tensor, Tensor] | None


def _written(channels: int, wanted: bool) -> tuple[Any, Statistics]:
    if not wanted:
        return STATISTICS(), None
    mean, var = blank(channels), blank(channels)
    return STATISTICS(address(mean), address(var)), (mean, var)


def _pixels(x: Tensor) -> Any:
    return PIXELS(x.shape[0], x.shape[2] * x.shape[3])


def _rows(x: Tensor) -> dict[str, Any]:
    return {"pixels": _pixels(x), "channels": x.shape[1]}


def channel_statistics(x: Tensor) -> Statistics:
    own, found = _written(x.shape[1], True)
    run("ChannelStatistics", x, **_rows(x), x=x, statistics=own)
    return found


def norm_act(x: Tensor, norm: Norm, gate: Tensor | None, residual: Tensor | None) -> Tensor:
    y, own = blank(*x.shape, dtype=x.dtype), gate_of(gate, x.shape[1])
    run("NormAct", x, **_rows(x), x=x, norm=norm_of(norm), gate=own, residual=residual, y=y)
    return y


def norm_act_backward_sums(d: Tensor, x: Tensor, norm: Norm, gate: Tensor | None) -> Tensor:
    sums, own = blank(2, x.shape[1]), gate_of(gate, x.shape[1])
    run("NormActSums", x, **_rows(x), d=d, x=x, norm=norm_of(norm), gate=own, sums=sums)
    return sums


def norm_act_backward(d: Tensor, x: Tensor, after: NormBackward) -> Tensor:
    dx = blank(*x.shape, dtype=x.dtype)
    run("NormActBackward", x, **_rows(x), d=d, x=x, after=backward_of(after), dx=dx)
    return dx


def expand(x: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Statistics]:
    y = blank(x.shape[0], len(weight), *x.shape[2:], dtype=x.dtype)
    own, found = _written(len(weight), statistics)
    run("Expand", x, pixels=_pixels(x), **{"in": x.shape[1]}, out=len(weight), x=x, weight=weight, y=y, statistics=own)
    return y, found


def _shape(x: Tensor, weight: Tensor, stride: int, padding: int, expand: Tensor | None) -> dict[str, Any]:
    n, c, h, w = x.shape
    channels = c if expand is None else len(expand)
    shape = SHAPE(n, channels, h, w, weight.shape[2], stride, padding, len(weight) // channels)
    return {"shape": shape, "expansion": EXPANSION(address(expand), c)}


def _convolved(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    sizes = (positions(size, weight.shape[2], stride, padding) for size in x.shape[2:])
    return blank(len(x), len(weight), *sizes, dtype=x.dtype)


def depthwise(
    x: Tensor,
    norm: Norm | None,
    weight: Tensor,
    stride: int,
    padding: int,
    statistics: bool,
    expand: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    y = _convolved(x, weight, stride, padding)
    own, found = _written(len(weight), statistics)
    shape = _shape(x, weight, stride, padding, expand)
    run("Depthwise", x, **shape, norm=norm_of(norm), x=x, weight=weight, y=y, statistics=own)
    return y, found


def depthwise_applied(
    x: Tensor,
    norm: Norm | None,
    weight: Tensor,
    stride: int,
    padding: int,
    after: Norm,
    pool: bool,
    expand: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    y = _convolved(x, weight, stride, padding)
    found = blank(len(x), len(weight)) if pool else None
    shared = {**_shape(x, weight, stride, padding, expand), "norm": norm_of(norm), "after": norm_of(after)}
    run("DepthwiseApplied", x, **shared, x=x, weight=weight, y=y, pooled=found)
    return y, found


def project_applied(x: Tensor, gate: Tensor | None, weight: Tensor, after: Norm, residual: Tensor | None) -> Tensor:
    y = blank(x.shape[0], len(weight), *x.shape[2:], dtype=x.dtype)
    sizes = {"pixels": _pixels(x), "in": x.shape[1], "out": len(weight)}
    shared = {"gate": gate_of(gate, x.shape[1]), "weight": weight, "after": norm_of(after), "residual": residual}
    run("ProjectApplied", x, **sizes, x=x, **shared, y=y)
    return y


def pooled(x: Tensor, norm: Norm) -> Tensor:
    found = blank(*x.shape[:2])
    run("Pooled", x, **_rows(x), x=x, norm=norm_of(norm), pooled=found)
    return found


def project(x: Tensor, norm: Norm, gate: Tensor | None, weight: Tensor, statistics: bool) -> tuple[Tensor, Statistics]:
    y = blank(x.shape[0], len(weight), *x.shape[2:], dtype=x.dtype)
    own, found = _written(len(weight), statistics)
    sizes = {"pixels": _pixels(x), "in": x.shape[1], "out": len(weight)}
    gated = gate_of(gate, x.shape[1])
    run("Project", x, **sizes, x=x, norm=norm_of(norm), gate=gated, weight=weight, y=y, statistics=own)
    return y, found


def _of_backward(d: Tensor, y: Tensor, after: NormBackward, channels: int) -> dict[str, Any]:
    sizes = {"pixels": _pixels(y), "in": channels, "out": y.shape[1]}
    return {**sizes, "d": d, "y": y, "after": backward_of(after)}


def project_backward(
    d: Tensor, y: Tensor, after: NormBackward, weight: Tensor, x: Tensor, norm: Norm, splits: int
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    da, sums = blank(n, c // splits, h, w, dtype=x.dtype), blank(5, n, c)
    shared = {**_of_backward(d, y, after, c), "splits": splits}
    run("ProjectBackward", x, **shared, weight=weight, x=x, norm=norm_of(norm), da=da, sums=sums)
    return da, sums


def project_weight_backward(
    d: Tensor, y: Tensor, after: NormBackward, x: Tensor, norm: Norm, gate: Tensor | None
) -> Tensor:
    c = x.shape[1]
    dweight = blank(y.shape[1], c, 1, 1)
    shared = _of_backward(d, y, after, c)
    run("ProjectWeightBackward", x, **shared, x=x, norm=norm_of(norm), gate=gate_of(gate, c), dweight=dweight)
    return dweight


def depthwise_backward(
    d: Tensor,
    y: Tensor,
    after: NormBackward,
    weight: Tensor,
    x: Tensor,
    norm: Norm | None,
    stride: int,
    padding: int,
    expand: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    c = c if expand is None else len(expand)
    dz, dweight, sums = blank(n, c, h, w, dtype=x.dtype), torch.full_like(weight, torch.nan), blank(2, c)
    shared = {
        **_shape(x, weight, stride, padding, expand),
        "d": d,
        "y": y,
        "after": backward_of(after),
        "weight": weight,
        "x": x,
    }
    run("DepthwiseBackward", x, **shared, norm=norm_of(norm), dz=dz, dweight=dweight, sums=sums)
    return dz, dweight, sums


def gram(left: Tensor, left_centre: Tensor | None, right: Tensor, right_centre: Tensor | None) -> Tensor:
    sums = blank(left.shape[1], right.shape[1])
    given = {"left": left, "left_centre": left_centre, "right": right, "right_centre": right_centre}
    columns = {"left_columns": left.shape[1], "right_columns": right.shape[1]}
    run("Gram", left, pixels=_pixels(left), **columns, **given, sums=sums)
    return sums


def expanded_backward(
    dz: Tensor, x: Tensor, centre: Tensor, weight: Tensor, level: Tensor, residual: Tensor | None
) -> Tensor:
    dx = blank(*x.shape, dtype=x.dtype)
    sizes = {"pixels": _pixels(x), "in": dz.shape[1], "out": x.shape[1]}
    given = {"centre": centre, "weight": weight, "level": level, "residual": residual}
    run("ExpandedBackward", x, **sizes, dz=dz, x=x, **given, dx=dx)
    return dx


def expand_backward(d: Tensor, y: Tensor, after: NormBackward, weight: Tensor, residual: Tensor | None) -> Tensor:
    c = weight.shape[1]
    dx = blank(y.shape[0], c, *y.shape[2:], dtype=y.dtype)
    run("ExpandBackward", y, **_of_backward(d, y, after, c), weight=weight, residual=residual, dx=dx)
    return dx


def expand_weight_backward(d: Tensor, y: Tensor, after: NormBackward, x: Tensor) -> Tensor:
    dweight = blank(y.shape[1], x.shape[1], 1, 1)
    run("ExpandWeightBackward", x, **_of_backward(d, y, after, x.shape[1]), x=x, dweight=dweight)
    return dweight
