"""Models from a user's function, named ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pynas.errors import PynasError
from pynas.nets.load import add_working_directory

# What we call a keyword, and what a function may call it; the first that its signature has is given.
KEYWORDS = {
    "classes": ("classes", "num_classes"),
    "input_channels": ("input_channels", "in_channels", "in_chans"),
    "dropout": ("dropout", "drop_rate"),
    "stochastic_depth": ("stochastic_depth", "drop_path_rate"),
    "small_input": ("small_input",),
}


def call(spec: str, values: Mapping[str, Any], seed: int) -> nn.Module:
    """The module that the function ``package.module:function`` returns.

    The working directory is importable, as under ``python -m``. The function gets those of `values` (by the names in
    KEYWORDS; None: not asked for) that its signature names. One that is asked for and not taken is warned about, except
    `classes`, and `input_channels` where the first convolution has that many. Torch's global CPU generator is seeded
    with `seed` for the call and put back afterwards.

    Raises PynasError, with the cause, where the import or the function fails or what it returns is no nn.Module.
    """
    function = _find(spec)
    taken = _parameters(function)
    given: dict[str, Any] = {}
    refused: dict[str, Any] = {}
    for key, value in values.items():
        name = next((name for name in KEYWORDS[key] if name in taken), None)
        if value is not None and name is not None:
            given[name] = value
        elif value and key != "classes":
            refused[key] = value
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        module = function(**given)
    except (Exception, SystemExit) as error:
        raise PynasError(f"model {spec}: {_call_text(given)} failed: {_line(error)}") from error
    finally:
        torch.set_rng_state(state)
    if not isinstance(module, nn.Module):
        raise PynasError(f"model {spec}: must return a torch.nn.Module, got {type(module).__name__}")
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and refused.get("input_channels") == first.in_channels:
        del refused["input_channels"]
    for key, value in refused.items():
        names = " or ".join(KEYWORDS[key])
        warnings.warn(f"model {spec}: takes no {names}, so {key} {value} has no effect", stacklevel=2)
    return module


def _find(spec: str) -> Callable[..., Any]:
    module_name, _, path = spec.partition(":")
    add_working_directory()
    importlib.invalidate_caches()  # the file may have been written since the folder was first looked into
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PynasError(f"model {spec}: importing {module_name} failed: {_line(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PynasError(f"model {spec}: {module_name} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise PynasError(
            f"model {spec}: {path} is a {type(found).__name__}; a function that returns a module is needed"
        )
    return found


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some compiled functions do not tell
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _call_text(given: Mapping[str, Any]) -> str:
    return f"calling it with {', '.join(f'{name}={value!r}' for name, value in given.items()) or 'no arguments'}"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
