"""What a NARS study searches: the table's space, its recipes on one network, or those of any torch model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pynas.errors import PynasError
from pynas.nars.config import NARSConfig
from pynas.space.space import Space, load_space
from pynas.space.table import read_table
from pynas.study.directory import StudyDirectory

if TYPE_CHECKING:
    from pynas.nets.load import ModelSpec


def open_space(directory: StudyDirectory, config: NARSConfig) -> Space:
    """The space as the study keeps it, pinned as configured. Raises PynasError where it cannot be read."""
    return _space(config, directory.space, directory.kept("architecture") if config.architecture else None)


def _space(config: NARSConfig, table: str | Path, architecture: str | Path | None) -> Space:
    if config.model is None:
        return load_space(table, pin=config.pin, architecture=architecture)
    pinned = read_table(table).pin(config.pin)
    return Space(replace(pinned, name=f"{pinned.name}+{config.model}", rows=(), resolution=1))


def fixed_model(config: NARSConfig) -> ModelSpec | None:
    """The model of a recipe-only search on one that no table describes, as wide as the data ask; None without one."""
    if config.model is None:
        return None
    from pynas.train.models import model_for_data

    return model_for_data(config.model, config.data, resolution=config.resolution)


def new_space(config: NARSConfig) -> Space:
    """The space that a configuration asks for. Raises PynasError for one that cannot be searched."""
    space = _space(config, config.space, config.architecture)
    if space.table.recipe is None:
        raise PynasError(f"{config.space}: has no recipe, so there is nothing to train with; add the key recipe")
    if not space.variables:
        raise PynasError(f"{config.space}: nothing is left to search: every variable is pinned or has one choice")
    return space
