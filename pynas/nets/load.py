"""Models by name: what is known of one without building it (`ModelSpec`), and the torch module (`load_model`).

    read_model(name, ...) -> ModelSpec -> .build(...) -> nn.Module

A spec is plain values that go through JSON, so that a run directory or a worker's payload can rebuild the same module
without the file it came from. This module imports no torch of itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.errors import PynasError
from pynas.space.architecture import Architecture, Recipe
from pynas.space.space import load_space

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
        network = self._make(self._rates(dropout, stochastic_depth), seed)
        if self.weights is not None and restore:
            from pynas.nets.weights import restore as restore_weights

            restore_weights(network, self.weights)
        if features_only:
            from pynas.nets.features import FeatureNetwork

            inner = self.architecture.blocks() if self.architecture else ()
            return FeatureNetwork(network, inner, out_strides=out_strides)
        if out_strides is not None:
            raise PynasError(f"model {self.name}: out_strides is for features_only")
        return network

    def _rates(self, dropout: float, stochastic_depth: float) -> dict[str, float]:
        rates = {"dropout": dropout, "stochastic_depth": stochastic_depth}
        return {key: rate or self.keywords.get(key, 0.0) for key, rate in rates.items()}

    def _make(self, rates: dict[str, float], seed: int) -> nn.Module:
        network: nn.Module
        if self.architecture is not None:
            from pynas.nets.build import build

            blocks = self.architecture.blocks()
            network = build(blocks, dropout=rates["dropout"], stochastic_depth=rates["stochastic_depth"], seed=seed)
        elif self.resnet is not None:
            from pynas.nets.resnet import resnet18

            width, depth = self.resnet
            network = resnet18(
                width,
                depth,
                classes=self.classes or 1000,
                input_channels=self.input_channels or 3,
                small_input=self.small_input,
                dropout=rates["dropout"],
                stochastic_depth=rates["stochastic_depth"],
                seed=seed,
            )
        elif self.function is not None:
            from pynas.nets.callable import call

            asked = {"classes": self.classes, "input_channels": self.input_channels}
            asked |= {"small_input": self.small_input or None}
            network = call(self.function, asked | rates, seed)
        else:
            raise PynasError(f"model {self.name}: has no architecture, no function and no ResNet")
        return network

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
    """What a model's name stands for; the keywords as in `load_model`. Builds nothing and imports no torch.

    Raises PynasError for a name that stands for nothing and for what the model cannot be given.
    """
    text = str(name)
    for key, value in (("resolution", resolution), ("classes", classes), ("input_channels", input_channels)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise PynasError(f"model {text}: {key}: got {value!r}, allowed are whole numbers of at least 1")
    found = RESNET.fullmatch(text)
    if not found and not FUNCTION.fullmatch(text):
        architecture, recipe = _read_table(text, genome)
        rows = architecture.rows
        if classes is not None:
            rows = (*rows[:-1], replace(rows[-1], c=classes))
        architecture = replace(
            architecture,
            rows=rows,
            resolution=resolution or architecture.resolution,
            input_channels=input_channels or architecture.input_channels,
        )
        return ModelSpec.of(architecture, name=text, recipe=recipe)
    for key, given in (("genome", genome), ("padding", padding)):
        if given is not None:
            raise PynasError(f"model {text}: {key}: got {given!r}, but the model is no table")
    if found:
        width, depth = (_multiplier(text, group) for group in found.groups())
        return ModelSpec(
            text,
            resnet=(width, depth),
            resolution=resolution or (32 if small_input else 224),
            classes=classes or 1000,
            input_channels=input_channels or 3,
            small_input=small_input,
        )
    return ModelSpec(
        text,
        function=text,
        resolution=resolution,
        classes=classes,
        input_channels=input_channels,
        small_input=small_input,
    )


def _multiplier(name: str, text: str | None) -> float:
    try:
        value = float(text or 1)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise PynasError(f"model {name}: multiplier {text!r}; allowed are numbers above 0, as in {', '.join(RESNETS)}")
    return value


def _read_table(name: str, genome: str | Sequence[int] | None) -> tuple[Architecture, Recipe | None]:
    space = load_space(name)
    genes = [0] * len(space.variables) if genome is None else list(map(int, genome))
    return space.decode(np.array(genes, np.int64))
