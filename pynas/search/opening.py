"""Opening a study directory: what is kept there of its configuration and files, and how it is read back."""

from __future__ import annotations

from pathlib import Path

from pynas.errors import PynasError
from pynas.files import write_whole
from pynas.search.config import StudyConfig, check_unchanged, dump_config, read_config
from pynas.study.directory import StudyDirectory
from pynas.study.versions import record_versions


def settle(directory: StudyDirectory, config: StudyConfig, *, begun: bool) -> None:
    """Write configuration, tables and versions into a new study; check them against those of one that has `begun`.

    A study without a trial has not begun: what is wrong with it can still be put right. Raises PynasError where a
    study began with other settings or another table.
    """
    if begun:
        check_unchanged(config, open_config(directory), directory.path)
    for key, source in config.sources().items():
        kept = directory.kept(key)
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


def open_config(directory: StudyDirectory) -> StudyConfig:
    return read_config(directory.config)


def open_study(path: str | Path) -> tuple[StudyDirectory, StudyConfig]:
    """A study's directory and configuration, for reading. Raises PynasError where there is none."""
    directory = StudyDirectory.open(path)
    return directory, open_config(directory)
