"""Networks for other runtimes: ONNX, and torch.export's own format. The batch is dynamic, the resolution is fixed."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pynas.errors import PynasError
from pynas.files import placed
from pynas.nets.features import FeatureNetwork
from pynas.nets.weights import spec_of, unwrapped

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


def export_model(
    network: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    resolution: int | None = None,
    input_channels: int | None = None,
) -> dict[str, Any]:
    """Write a network in evaluation mode as ``"onnx"`` or as ``"torch"`` (for torch.export.load) to `path`.

    The format follows from the suffix, .onnx or .pt2, where it is not given. The exported model takes float32 images
    (batch, input_channels, resolution, resolution) with any batch and returns logits (batch, classes), or a
    `FeatureNetwork`'s maps. In ONNX they are called ``images``, ``logits`` and ``stride_4``, ``stride_8``, ...
    `resolution` and `input_channels` are the network's own where `pynas.load_model` made it. `network` itself is left
    as it is; the file appears whole or not at all.

    Returns what was written: ``path``, ``format``, ``input`` (its shape, None for the batch) and ``bytes``. Raises
    PynasError where the size of the input is not known, the network cannot be traced or computed at it, packages are
    missing or the file cannot be written.
    """
    path = Path(path)
    format = _format(path, format)
    if format == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise PynasError(f"{path}: ONNX export needs {' and '.join(missing)}: pip install 'pynas-nars[export]'")
    network = unwrapped(network)
    size = _input_size(network, path, resolution, input_channels)
    network = copy.deepcopy(network).cpu().float().eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = torch.zeros(2, *size)  # not one: torch.export takes a batch of one for a constant
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            if format == "onnx":
                names = [f"stride_{s}" for s in network.strides] if isinstance(network, FeatureNetwork) else ["logits"]
                converted = torch.onnx.export(
                    program, dynamo=True, input_names=["images"], output_names=names, verbose=False
                )
    except Exception as error:
        what = f"the {type(network).__name__} cannot be exported at {' x '.join(map(str, size))}"
        first = next(iter(str(error).strip().splitlines()), "")
        raise PynasError(f"{path}: {what}: {type(error).__name__}: {first}") from error
    with placed(path) as temporary, _quiet():
        if format == "onnx":
            assert converted is not None
            converted.save(temporary)
        else:
            torch.export.save(program, temporary)
    return {"path": str(path), "format": format, "input": [None, *size], "bytes": path.stat().st_size}


def _format(path: Path, format: str | None) -> str:
    allowed = ", ".join(f"{name} ({suffix})" for name, suffix in FORMATS.items())
    if format is None:
        format = next((name for name, suffix in FORMATS.items() if suffix == path.suffix), None)
        if format is None:
            raise PynasError(f"{path}: its suffix tells no format; allowed: {allowed}, or name the format")
    if format not in FORMATS:
        raise PynasError(f"format {format!r}; allowed: {allowed}")
    return format


def _input_size(network: nn.Module, path: Path, resolution: int | None, channels: int | None) -> tuple[int, int, int]:
    spec = spec_of(network)
    if spec is not None:
        resolution, channels = resolution or spec.resolution, channels or spec.input_channels
    if channels is None:
        first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
        channels = None if first is None else first.in_channels
    if resolution is None or channels is None:
        lacking = "resolution" if resolution is None else "input_channels"
        raise PynasError(f"{path}: {lacking} of the {type(network).__name__} is not known; give it")
    return channels, resolution, resolution


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about itself (deprecations, an absent torchvision)."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
