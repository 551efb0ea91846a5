"""The cells of a search-space table: what `3`, `[3, 5]`, `(4, 7)`, `(16, 24, 2)`, `A / B` and `X^1` mean.

The notation is that of Table 2 of the FBNetV3 paper: square brackets list the choices, parentheses give a range from
lowest to highest (both included) with a step of 1 unless a third number says otherwise, a slash separates the first
block of a stage from the rest, and equal superscripts tie variables together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_CHOICES = 256  # a gene is one uint8

_RANGE = re.compile(r"^\((?P<numbers>[^()]*)\)\s*(?:\*\s*(?P<scale>\S+))?$")
_LIST = re.compile(r"^\[(?P<items>[^\[\]]*)\]$")
_WORD = re.compile(r"^[A-Za-z_][\w.-]*$")


class CellError(ValueError):
    """What is wrong with one cell; the table adds the file and the key."""


@dataclass(frozen=True)
class Choices:
    """The values a cell may take, in order. `kind` decides the encoding: one-hot for a list, min-max for a range."""

    kind: str  # "range" or "list"; a constant is a range of one
    values: tuple[Any, ...]
    tie: str | None = None  # the superscript

    @property
    def constant(self) -> bool:
        return len(self.values) == 1


def parse_value(text: str) -> Any:
    """A plain value: an int, a float, a truth value (true, false, Y, N) or a word."""
    text = text.strip()
    if text in ("true", "Y"):
        return True
    if text in ("false", "N"):
        return False
    if _WORD.match(text):
        return text
    return _plain(_number(text))


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise CellError(f"{text.strip()!r} is not a number") from None
    if not number.is_finite():
        raise CellError(f"{text.strip()!r} is not a finite number")
    if number and not -20 <= number.adjusted() <= 18:
        raise CellError(f"{text.strip()!r} is out of range; allowed: sizes from 1e-20 to below 1e19, and 0")
    return number


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)


def _parse_range(numbers: str, scale: str | None) -> tuple[Any, ...]:
    parts = [_number(part) for part in numbers.split(",")]
    if len(parts) not in (2, 3):
        raise CellError(f"a range has (low, high) or (low, high, step), not {len(parts)} numbers")
    low, high, step = (*parts, Decimal(1))[:3]
    if low > high:
        raise CellError(f"low {low} is above high {high}; a range is (low, high) or (low, high, step)")
    if step <= 0:
        raise CellError(f"step {step} must be above 0")
    count, left = divmod(high - low, step)
    if left:
        raise CellError(f"step {step} does not divide {high} - {low}; {high - left} or {high - left + step} would do")
    if count >= MAX_CHOICES:
        raise CellError(f"{int(count) + 1} choices; at most {MAX_CHOICES} are allowed (a gene is one byte)")
    factor = _number(scale) if scale else Decimal(1)
    if factor <= 0:
        raise CellError(f"scale {scale} must be above 0")
    # Decimal keeps 26 * 1e-3 at the float that 0.026 reads as.
    return tuple(_plain((low + i * step) * factor) for i in range(int(count) + 1))


def parse_choices(text: str) -> Choices:
    """Parse one side of a cell. Raises CellError saying what is wrong."""
    text = text.strip()
    body, _, tie = text.partition("^")
    body, tie = body.strip(), tie.strip()
    if "^" in text and not re.fullmatch(r"\w+", tie):
        raise CellError(f"{text!r}: a superscript is a number or a name, as in (4, 7)^1")
    if match := _RANGE.match(body):
        return Choices("range", _parse_range(match["numbers"], match["scale"]), tie or None)
    if match := _LIST.match(body):
        values = tuple(parse_value(item) for item in match["items"].split(",")) if match["items"].strip() else ()
        return list_choices(values, tie or None)
    return Choices("range", (parse_value(body),), tie or None)


def list_choices(values: tuple[Any, ...], tie: str | None = None) -> Choices:
    for value in values:
        _check_scalar(value)
    if not values:
        raise CellError("an empty list leaves nothing to choose; name at least one value")
    if len(set(values)) != len(values):
        raise CellError(f"{list(values)} names a value twice")
    if len(values) > MAX_CHOICES:
        raise CellError(f"{len(values)} choices; at most {MAX_CHOICES} are allowed (a gene is one byte)")
    return Choices("list", values, tie)


def _check_scalar(value: Any) -> None:
    """Raise CellError for what YAML read as something else than a word, a truth value or a finite number."""
    if not isinstance(value, bool | int | float | str):
        raise CellError(f"{value!r} is not a value; allowed: numbers, words, true and false")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _number(str(value))


def parse_cell(cell: Any) -> tuple[Choices, Choices | None] | None:
    """A cell as (first block, remaining blocks or None where it does not tell them apart); None for ``-``.

    `cell` is text, or a value that YAML has already read (a number, a truth value, a list).
    """
    if isinstance(cell, list):
        return list_choices(tuple(cell)), None
    if isinstance(cell, bool | int | float):
        _check_scalar(cell)
        return Choices("range", (cell,)), None
    if cell is None or str(cell).strip() in ("", "-"):
        return None
    sides = str(cell).split("/")
    if len(sides) > 2:
        raise CellError(f"{cell!r}: at most one slash, first / rest")
    first = parse_choices(sides[0])
    return first, parse_choices(sides[1]) if len(sides) == 2 else None
