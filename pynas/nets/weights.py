"""Weights as safetensors files that know their model.

A file holds the state of one module and, as JSON under the key "pynas" of its metadata:

    {"version": 1, "model": ModelSpec.to_dict(), "metadata": {what the writer added}}

so that `pynas.load_model(path)` needs nothing else. Safetensors files run no code when they are read.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.files import placed
from pynas.nets.load import ModelSpec
from pynas.space.architecture import Architecture, Recipe

VERSION = 1
SHOWN = 3  # names in an error message


def save_model(
    network: nn.Module,
    path: str | Path,
    *,
    architecture: Architecture | None = None,
    recipe: Recipe | None = None,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    spec: ModelSpec | None = None,
) -> None:
    """Write a network's parameters and buffers, with what `pynas.load_model` needs to make it again, to `path`.

    What the network is comes from `architecture` or `spec`; a network that `load_model` or `ModelSpec.build` returned
    knows it by itself, a user's function with the values it was called with included. `recipe` is the recipe it was
    trained with, `metadata` anything else that goes into JSON. The file appears whole or not at all.

    Raises PynasError where it is not known what the network is, where the network is another, and where the file cannot
    be written.
    """
    path = Path(path)
    network = unwrapped(network)
    known = spec_of(network)
    if architecture is not None:
        spec = ModelSpec.of(architecture)
    elif spec is None:
        spec = known
    elif known is not None and spec.function == known.function:
        spec = replace(spec, keywords=known.keywords)
    if spec is None:
        raise PynasError(
            f"{path}: not saved: it is not known what the {type(network).__name__} is; give save_model its "
            "architecture, or make the network with pynas.load_model"
        )
    spec = replace(spec, recipe=recipe or spec.recipe, name=name or spec.name, weights=None)
    tensors = {}
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise PynasError(f"{path}: not saved: {key} of the {type(network).__name__} is no tensor")
        # A copy of its own and in order: safetensors takes neither shared memory nor strides.
        tensors[key] = value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
    if skeleton := spec.skeleton():
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        check_fit(shapes, skeleton.state_dict(), f"{path}: not saved")
    try:
        described = json.dumps({"version": VERSION, "model": spec.to_dict(), "metadata": dict(metadata or {})})
    except (TypeError, ValueError) as error:
        raise PynasError(f"{path}: not saved: metadata must go into JSON: {error}") from None
    # One key alone: safetensors writes several in an order that changes from run to run.
    whole = _safetensors("torch").save(tensors, metadata={"pynas": described})
    with placed(path) as temporary:
        temporary.write_bytes(whole)


def read_weights(path: str | Path) -> tuple[ModelSpec, dict[str, Any]]:
    """The model that a weights file holds, and what its writer added; reads no tensor.

    Raises PynasError for a file that is absent, truncated, no safetensors file, or not one of ours.
    """
    with _opened(Path(path)) as file:
        text = (file.metadata() or {}).get("pynas")
    if text is None:
        raise PynasError(
            f"{path}: a safetensors file that pynas did not write: it holds no architecture. Make the network by name "
            "and give it the tensors with load_state_dict (those of timm after pynas.nets.timm_names.from_timm)"
        )
    try:
        described = json.loads(text)
        version = described["version"]
        if version != VERSION:
            raise PynasError(f"{path}: is of format {version!r}; this pynas reads format {VERSION}")
        spec = replace(ModelSpec.from_dict(described["model"]), weights=str(Path(path).resolve()))
        return spec, dict(described["metadata"])
    except PynasError as error:
        raise PynasError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PynasError(f"{path}: its description cannot be read: {type(error).__name__}: {error}") from None


def restore(network: nn.Module, path: str | Path) -> None:
    """Put a weights file's tensors into a network of the same parameters and buffers.

    Raises PynasError, before anything is changed, where a tensor is missing, too many or of another shape.
    """
    if lazy := [name for name, value in network.state_dict().items() if nn.parameter.is_lazy(value)]:
        raise PynasError(
            f"{path}: cannot be restored: the network's {some(lazy)} have no shape before its first images"
        )
    with _opened(Path(path)) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        check_fit(shapes, network.state_dict(), str(path))
        network.load_state_dict({key: file.get_tensor(key) for key in shapes})


def check_fit(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise PynasError, naming the first few, where names or shapes are not those of the state `expected`."""
    if missing := [key for key in expected if key not in shapes]:
        raise PynasError(f"{where}: the tensors do not fit the model: lacks {some(missing)}")
    if unknown := [key for key in shapes if key not in expected]:
        raise PynasError(f"{where}: the tensors do not fit the model: unknown {some(unknown)}")
    wrong = [
        f"{key} of shape {shape}, the model's {tuple(expected[key].shape)}"
        for key, shape in shapes.items()
        if shape != tuple(expected[key].shape)
    ]
    if wrong:
        raise PynasError(f"{where}: the tensors do not fit the model: {some(wrong)}")


def some(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def unwrapped(network: nn.Module) -> nn.Module:
    """The module that torch.compile or DistributedDataParallel was put around."""
    while True:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


def spec_of(network: nn.Module) -> ModelSpec | None:
    """What `ModelSpec.build` made the network from; None where something else did."""
    found = getattr(network, "pynas_model", None)
    return found if isinstance(found, ModelSpec) else None


def _safetensors(module: str = "") -> Any:
    try:
        return importlib.import_module(f"safetensors.{module}" if module else "safetensors")
    except ImportError:
        raise PynasError("weights files need the package safetensors: pip install 'pynas-nars[train]'") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    library = _safetensors()
    if not path.is_file():
        raise PynasError(f"{path}: cannot be read: there is no such file")
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except library.SafetensorError as error:
        raise PynasError(f"{path}: no whole safetensors file: {error}") from None
    except OSError as error:
        raise PynasError(f"{path}: cannot be read: {error.strerror or error}") from None
