"""pynas: joint architecture-recipe search (NARS, FBNetV3) with a compiled search core.

The names below are the front door. Each is imported when it is first used, so that ``import pynas`` is quick and needs
no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynas.errors import PynasError, SearchStopped
    from pynas.nars.evolve import EvolutionResult, evolve
    from pynas.nets.load import load_model
    from pynas.nets.weights import save_model
    from pynas.predict.models import fit_predictor
    from pynas.predict.predictor import Predictor
    from pynas.space.architecture import Architecture, Recipe
    from pynas.space.budget import Budget
    from pynas.space.space import Space, load_space

__version__ = "0.1.0"

_HOME = {
    "Architecture": "pynas.space.architecture",
    "Budget": "pynas.space.budget",
    "EvolutionResult": "pynas.nars.evolve",
    "Predictor": "pynas.predict.predictor",
    "PynasError": "pynas.errors",
    "Recipe": "pynas.space.architecture",
    "SearchStopped": "pynas.errors",
    "Space": "pynas.space.space",
    "evolve": "pynas.nars.evolve",
    "fit_predictor": "pynas.predict.models",
    "load_model": "pynas.nets.load",
    "load_space": "pynas.space.space",
    "save_model": "pynas.nets.weights",
}

__all__ = [
    "Architecture",
    "Budget",
    "EvolutionResult",
    "Predictor",
    "PynasError",
    "Recipe",
    "SearchStopped",
    "Space",
    "evolve",
    "fit_predictor",
    "load_model",
    "load_space",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pynas' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
