"""Opening a study directory: what is kept there of its configuration and space, and how both are read back."""

from __future__ import annotations

from pathlib import Path

import yaml

from pynas.errors import PynasError
from pynas.nars.config import StudyConfig, check_unchanged, dump_config, read_config
from pynas.runtime.task import write_whole
from pynas.space.space import Space
from pynas.space.table import find_table, parse_table
from pynas.study.directory import StudyDirectory
from pynas.study.versions import record_versions


def settle(directory: StudyDirectory, config: StudyConfig) -> None:
    """Write configuration, tables and versions into a new study; check them against those of one that goes on.

    Raises PynasError where the study began with other settings or another table.
    """
    if directory.config.exists():
        check_unchanged(config, read_config(directory.config), directory.path)
    for kept, name in _tables(directory, config):
        source = find_table(name)
        text = source.read_text(encoding="utf-8")
        if not kept.exists():
            parse_table(text, str(source))
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
    return StudyConfig(**yaml.safe_load(directory.config.read_text(encoding="utf-8")))


def open_space(directory: StudyDirectory, config: StudyConfig) -> Space:
    """The space as the study keeps it, pinned as configured. Raises PynasError for a table without a recipe."""
    kept = [parse_table(path.read_text(encoding="utf-8"), str(path)) for path, _ in _tables(directory, config)]
    table = kept[0].with_architecture(kept[1]) if len(kept) == 2 else kept[0]
    if table.recipe is None:
        raise PynasError(f"{config.space}: has no recipe, so there is nothing to train with; add the key recipe")
    space = Space(table.pin(config.pin))
    if not space.variables:
        raise PynasError(f"{config.space}: nothing is left to search: every variable is pinned or has one choice")
    return space
