"""Typed sections of the user's files: one line for each mistake, with its key, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pynas.errors import PynasError
from pynas.space.table import UniqueKeyLoader

Section = TypeVar("Section", bound=BaseModel)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The YAML mapping in a file. Raises PynasError where it cannot be read or is something else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except OSError as error:
        raise PynasError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PynasError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise PynasError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise PynasError(f"{path}: {what}")
    return values


def checked(model: type[Section], values: Mapping[str, Any], where: str | Path) -> Section:
    """`model` of these values. Raises PynasError that begins with `where` and names every mistake."""
    try:
        return model(**values)
    except ValidationError as error:
        raise PynasError(f"{where}: {'; '.join(_explain(model, detail) for detail in error.errors())}") from None


def parse_settings(settings: list[str], option: str) -> dict[str, Any]:
    """``KEY=VALUE`` of the command line; values are read as YAML would. Raises PynasError for anything else."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PynasError(f"{option} {setting!r}: write {option} KEY=VALUE")
        if key in values:
            raise PynasError(f"{option} {setting!r}: {key} is given twice")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        values[key] = _number(text) if isinstance(value, str) else value
    return values


def _number(text: str) -> Any:
    """YAML reads 1e-3 as text; a finite number is meant."""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _explain(model: type[BaseModel], detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown key; allowed: {', '.join(_allowed(model, detail['loc'][:-1]))}"
    if detail["type"] == "missing":
        return f"{where}: is required"
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"] or message.startswith(f"{where}."):
        return message  # of a section as a whole, whose message names the key itself
    if detail["type"] == "value_error" and isinstance(detail["input"], Mapping):
        return f"{where}: {message}"  # of which the message names what is wrong
    return f"{where}: {detail['input']!r}: {message}"


def _allowed(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys of the section at `path`, read off its class."""
    section: Any = model
    for part in path:
        section = section.model_fields[part].annotation
        section = next((a for a in get_args(section) if a is not type(None)), section)
    if (fields := getattr(section, "model_fields", None)) is not None:
        return [field.alias or name for name, field in fields.items()]
    return list(section.__dataclass_fields__)
