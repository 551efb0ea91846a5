"""Models by name: what is known of one without building it (`ModelSpec`), and the torch module (`load_model`).

    read_model(name, ...) -> ModelSpec -> .build(...) -> nn.Module

A spec is plain values that go through JSON, so that a run directory or a worker's payload can rebuild the same module
without the file it came from. This module imports no torch of itself.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.errors import PynasError
from pynas.space.architecture import Architecture, Recipe
from pynas.space.space import check_seed, load_design

if TYPE_CHECKING:
    from torch import nn

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
RESNET = re.compile(r"resnet18(?:_([\d.]+)x_width)?(?:_([\d.]+)x_depth)?")
RESNETS = ("resnet18", "resnet18_1.4x_width", "resnet18_2x_depth")
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be built: an `Architecture` of ours, a ResNet-18, or a function that returns an nn.Module.

    `resolution` (pixels), `classes` and `input_channels` are those of the model; for a function they are what was asked
    for, None where nothing was. `recipe` is the training recipe that the table, the winner's file or the weights file
    holds. `weights` is the path of a weights file that `build` restores.
    """

    name: str
    architecture: Architecture | None = None
    recipe: Recipe | None = None
    function: str | None = None  # "package.module:function"
    resnet: tuple[float, float] | None = None  # multipliers of ResNet-18's width and depth
    resolution: int | None = None
    classes: int | None = None
    input_channels: int | None = None
    small_input: bool = False
    weights: str | None = None
    keywords: Mapping[str, float] = field(default_factory=dict)  # dropout, stochastic_depth the weights were made with

    @classmethod
    def of(
        cls, architecture: Architecture, *, name: str = "network", recipe: Recipe | None = None, **values: Any
    ) -> ModelSpec:
        """The spec of a network of ours."""
        values = {"resolution": architecture.resolution, "classes": architecture.classes} | values
        values["input_channels"] = architecture.input_channels
        return cls(name, architecture, recipe, **values)

    def build(
        self,
        *,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        seed: int = 0,
        features_only: bool = False,
        out_strides: Sequence[int] | None = None,
        restore: bool = True,
    ) -> nn.Module:
        """The module on the CPU, float32, in training mode; torch's global random state is left as it was.

        Initial weights depend on the spec and on `seed` alone, or come from the weights file unless `restore` is false
        (for who loads other weights anyway). `features_only` gives a `FeatureNetwork`; `out_strides` chooses its maps.
        Raises PynasError where the function fails or the weights do not fit.
        """
        rates = {"dropout": dropout, "stochastic_depth": stochastic_depth}
        for key, rate in rates.items():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise PynasError(f"{key}: got {rate!r}, allowed is a probability from 0 to 1")
        seed = check_seed(seed)
        network = self._make({key: rate or self.keywords.get(key, 0.0) for key, rate in rates.items()}, seed)
        if self.weights is not None and restore:
            from pynas.nets.weights import restore as restore_weights

            restore_weights(network, self.weights)
        if features_only:
            from pynas.nets.features import FeatureNetwork

            inner = self.architecture.blocks() if self.architecture else ()
            backbone = FeatureNetwork(network, inner, out_strides=out_strides)
            object.__setattr__(backbone, "pynas_model", network.pynas_model)
            return backbone
        if out_strides is not None:
            raise PynasError(f"model {self.name}: out_strides is for features_only")
        return network

    def _make(self, rates: dict[str, Any], seed: int) -> nn.Module:
        made = replace(self, weights=None)
        network: nn.Module
        if self.architecture is not None:
            from pynas.nets.build import build

            network = build(self.architecture.blocks(), **rates, seed=seed)
        elif self.resnet is not None:
            from pynas.nets.resnet import resnet18

            network = resnet18(**self._sizes(), **rates, seed=seed)
        elif self.function is not None:
            from pynas.nets.callable import call

            network = call(self.function, self._sizes() | rates, seed)
            made = replace(made, keywords=rates)
        else:
            raise PynasError(f"model {self.name}: has no architecture, no function and no ResNet")
        object.__setattr__(network, "pynas_model", made)  # what save_model writes
        return network

    def _sizes(self) -> dict[str, Any]:
        sizes: dict[str, Any] = {
            "classes": self.classes,
            "input_channels": self.input_channels,
            "small_input": self.small_input,
        }
        if self.resnet is not None:
            sizes["width"], sizes["depth"] = self.resnet
        return {key: value for key, value in sizes.items() if value is not None}

    def skeleton(self) -> nn.Module | None:
        """The module without values (on the meta device), for names and shapes; None for a function."""
        import torch

        with torch.device("meta"):
            if self.architecture is not None:
                from pynas.nets.build import Network

                return Network(self.architecture.blocks())
            if self.resnet is not None:
                from pynas.nets.resnet import ResNet

                return ResNet(**self._sizes())
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_dict` makes an equal spec."""
        return {
            "name": self.name,
            "architecture": self.architecture and self.architecture.to_dict(),
            "recipe": self.recipe and self.recipe.to_dict(),
            "function": self.function,
            "resnet": self.resnet and list(self.resnet),
            "resolution": self.resolution,
            "classes": self.classes,
            "input_channels": self.input_channels,
            "small_input": self.small_input,
            "weights": self.weights,
            "keywords": dict(self.keywords),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`. Raises PynasError for values that describe no model."""
        try:
            made = dict(values)
            made["architecture"] = made.get("architecture") and Architecture.from_dict(made["architecture"])
            made["recipe"] = made.get("recipe") and Recipe.from_dict(made["recipe"])
            made["resnet"] = made.get("resnet") and tuple(made["resnet"])
            spec = cls(**made)
        except (TypeError, KeyError, ValueError) as error:
            raise PynasError(f"not the description of a model: {type(error).__name__}: {error}") from error
        if sum(part is not None for part in (spec.architecture, spec.function, spec.resnet)) != 1:
            raise PynasError(f"model {spec.name}: exactly one of architecture, function and resnet must be there")
        return spec


def read_model(
    name: str | Path,
    *,
    genome: str | Sequence[int] | None = None,
    resolution: int | None = None,
    classes: int | None = None,
    input_channels: int | None = None,
    padding: str | None = None,
    small_input: bool = False,
) -> ModelSpec:
    """What a model's name stands for; the keywords as in `load_model`.

    Builds nothing, and imports no torch except for a weights file. Raises PynasError for a name that stands for nothing
    and for what the model cannot be given.
    """
    text = str(name)
    if isinstance(name, str) and FUNCTION.fullmatch(text):
        _refuse(text, genome=genome, padding=padding)
        add_working_directory()  # already here, since executors hand on the path to their workers
        sizes = _sizes(text, resolution=resolution, classes=classes, input_channels=input_channels)
        return ModelSpec(text, function=text, small_input=small_input, **sizes)
    if found := RESNET.fullmatch(text):
        _refuse(text, genome=genome, padding=padding)
        width, depth = (_multiplier(text, group) for group in found.groups())
        sizes = {"resolution": 32 if small_input else 224, "classes": 1000, "input_channels": 3}
        sizes |= _sizes(text, resolution=resolution, classes=classes, input_channels=input_channels)
        return ModelSpec(text, resnet=(width, depth), small_input=small_input, **sizes)
    if text.endswith(WEIGHTS):
        return _read_weights(text, genome, resolution, classes, input_channels, padding, small_input)
    try:
        architecture, recipe = load_design(name, genome)
        changed = architecture.with_(
            resolution=resolution,
            classes=classes,
            input_channels=input_channels,
            padding=padding,
            small_input=small_input,
        )
        changed.blocks()  # refuses what cannot be computed, for instance a map smaller than a kernel
    except PynasError as error:
        if str(error).startswith("no table"):
            ours = f"{', '.join(RESNETS)}, a weights file (*{WEIGHTS}) and package.module:function"
            raise PynasError(f"{error}; also allowed as a model: {ours}") from None
        raise
    return ModelSpec.of(changed, name=text, recipe=recipe)


def load_model(
    name: str | Path,
    *,
    genome: str | Sequence[int] | None = None,
    resolution: int | None = None,
    classes: int | None = None,
    input_channels: int | None = None,
    padding: str | None = None,
    small_input: bool = False,
    features_only: bool = False,
    out_strides: Sequence[int] | None = None,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A network as a torch module on the CPU, float32, in training mode: images (N, channels, H, W) to (N, classes).

    `name` is a network of the zoo (``"fbnetv3_a"``), the path of a table without choices (a search's winner), a table
    with choices together with a `genome` (``"0,1,3"`` or whole numbers), a weights file (``*.safetensors``, whose
    weights are restored), ``"resnet18"``, ``"resnet18_1.4x_width"``, ``"resnet18_2x_depth"``, or a function that
    returns a module, as ``"package.module:function"``.

    `resolution` (pixels), `classes` and `input_channels` replace the network's own; a weights file's classes and
    channels are fixed. ``padding="same"`` pads every convolution by k // 2; `small_input` gives the variant for images
    of 28 to 32 pixels. `features_only` returns a `FeatureNetwork`: the maps at strides 4, 8, 16, 32, or at
    `out_strides`. `dropout` is the probability before the classifier, `stochastic_depth` the drop rate of the last
    block.

    Initial weights depend on the network and on `seed` alone; torch's global random state is left as it was. Raises
    PynasError for whatever is wrong with the name, a value, the file or the function.
    """
    spec = read_model(
        name,
        genome=genome,
        resolution=resolution,
        classes=classes,
        input_channels=input_channels,
        padding=padding,
        small_input=small_input,
    )
    return spec.build(
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        seed=seed,
        features_only=features_only,
        out_strides=out_strides,
    )


def add_working_directory() -> None:
    """Make modules in the working directory importable, as ``python -m`` does."""
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)


def _sizes(name: str, **values: int | None) -> dict[str, Any]:
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise PynasError(f"model {name}: {key}: {value!r}; allowed: a whole number of at least 1")
    return {key: value for key, value in values.items() if value is not None}


def _refuse(name: str, **values: Any) -> None:
    for key, value in values.items():
        if value is not None:
            raise PynasError(f"model {name}: {key}: got {value!r}, which is for tables only")


def _read_weights(
    name: str,
    genome: Any,
    resolution: int | None,
    classes: int | None,
    input_channels: int | None,
    padding: str | None,
    small_input: bool,
) -> ModelSpec:
    from pynas.nets.weights import read_weights

    _refuse(name, genome=genome)
    spec, _ = read_weights(name)
    sizes = _sizes(name, resolution=resolution, classes=classes, input_channels=input_channels)
    for key in ("classes", "input_channels"):
        if key in sizes and getattr(spec, key) not in (None, sizes[key]):
            raise PynasError(f"{name}: {key}: got {sizes[key]}, but the weights are of {getattr(spec, key)} {key}")
    if spec.architecture is not None:
        if small_input:
            raise PynasError(f"{name}: small_input: the weights are of one network, which stays as it was trained")
        architecture = spec.architecture.with_(resolution=resolution, padding=padding)
        architecture.blocks()
        return replace(spec, architecture=architecture, resolution=architecture.resolution)
    _refuse(name, padding=padding, small_input=None if small_input == spec.small_input else small_input or None)
    return replace(spec, **sizes)


def _multiplier(name: str, text: str | None) -> float:
    try:
        value = float(text or 1)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise PynasError(f"model {name}: multiplier {text!r}; allowed are numbers above 0, as in {', '.join(RESNETS)}")
    return value
