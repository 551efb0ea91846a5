"""Opening a study directory: what is kept there of its configuration and space, and how both are read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pynas.errors import PynasError
from pynas.files import write_whole
from pynas.nars.config import StudyConfig, check_unchanged, dump_config, read_config
from pynas.space.space import Space, load_space
from pynas.space.table import find_table, read_table
from pynas.study.directory import StudyDirectory
from pynas.study.versions import record_versions

if TYPE_CHECKING:
    from pynas.nets.load import ModelSpec


def settle(directory: StudyDirectory, config: StudyConfig, *, begun: bool) -> None:
    """Write configuration, tables and versions into a new study; check them against those of one that has `begun`.

    A study without a trial has not begun: what is wrong with it can still be put right. Raises PynasError where a
    study began with other settings or another table.
    """
    if begun:
        check_unchanged(config, open_config(directory), directory.path)
    for kept, name in _tables(directory, config):
        source = find_table(name)
        text = source.read_text(encoding="utf-8")
        if not begun:
            write_whole(kept, text)
        elif kept.read_text(encoding="utf-8") != text:
            raise PynasError(
                f"{directory.path}: this study began with another {source} than there is now (kept at {kept}). "
                "Name another directory with --dir to start anew, or put the table back"
            )
    write_whole(directory.config, dump_config(config))
    record_versions(directory.versions)


def _tables(directory: StudyDirectory, config: StudyConfig) -> list[tuple[Path, str]]:
    tables = [(directory.space, config.space)]
    if config.architecture is not None:
        tables.append((directory.architecture, config.architecture))
    return tables


def open_config(directory: StudyDirectory) -> StudyConfig:
    return read_config(directory.config)


def open_space(directory: StudyDirectory, config: StudyConfig) -> Space:
    """The space as the study keeps it, pinned as configured. Raises PynasError where it cannot be read."""
    return _space(config, directory.space, directory.architecture if config.architecture else None)


def _space(config: StudyConfig, table: str | Path, architecture: str | Path | None) -> Space:
    if config.model is None:
        return load_space(table, pin=config.pin, architecture=architecture)
    pinned = read_table(table).pin(config.pin)
    return Space(replace(pinned, name=f"{pinned.name}+{config.model}", rows=(), resolution=1))


def fixed_model(config: StudyConfig) -> ModelSpec | None:
    """The model of a recipe-only search on one that no table describes, as wide as the data ask; None without one."""
    if config.model is None:
        return None
    from pynas.train.models import model_for_data

    return model_for_data(config.model, config.data, resolution=config.resolution)


def new_space(config: StudyConfig) -> Space:
    """The space that a configuration asks for. Raises PynasError for one that cannot be searched."""
    space = _space(config, config.space, config.architecture)
    if space.table.recipe is None:
        raise PynasError(f"{config.space}: has no recipe, so there is nothing to train with; add the key recipe")
    if not space.variables:
        raise PynasError(f"{config.space}: nothing is left to search: every variable is pinned or has one choice")
    return space
