"""The activations of the tables, by the tables' names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pynas.errors import PynasError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"hswish": nn.Hardswish, "relu": nn.ReLU, "swish": nn.SiLU}


def activation(name: str) -> nn.Module:
    """The activation a table calls `name`; PynasError for one that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise PynasError(f"act: got {name!r}, allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
