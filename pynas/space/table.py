"""The search space as a table: reads, checks and writes the YAML files under `tables/` and a user's own.

A file has the stages as the rows of Table 2 of the FBNetV3 paper (see `cells.py` for what a cell may say), the input's
resolution and channels, and the recipe's variables. A file without choices is one network: winners and zoo files are
such tables.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pynas.errors import PynasError
from pynas.space.architecture import Architecture, Recipe, Row, plain_se, short_repr
from pynas.space.cells import CellError, Choices, parse_cell

COLUMNS = ("block", "k", "e", "c", "n", "s", "se", "act")
OPTIONAL_COLUMNS = ("pad", "se_from", "bias")
MAX_CHANNELS = 1_000_000
BLOCKS = ("conv", "mbconv", "mbpool", "fc", "skip")  # in the core's order
ACTIVATIONS = ("hswish", "relu", "swish")
OPTIMIZERS = ("RMSProp", "SGD")
RECIPE_KEYS = tuple(Recipe.__dataclass_fields__)
TOP_KEYS = ("name", "input_channels", "resolution", "padding", "stages", "recipe", "notes")
REQUIRED_KEYS = ("name", "input_channels", "resolution", "stages")
TABLES = Path(__file__).parent / "tables"
ZOO = Path(__file__).parent.parent / "nets" / "zoo"

# Which columns a block needs, and which it may leave at "-" for their default; the others must be "-".
_NEEDED = {
    "conv": ("k", "c", "n", "s", "act"),
    "mbconv": ("k", "e", "c", "n", "s", "se", "act"),
    "mbpool": ("e", "c", "n", "act"),
    "fc": ("c", "n"),
    "skip": ("c", "act"),
}
_LEFT_OUT = {"conv": ("pad", "bias"), "mbconv": ("pad", "se_from"), "skip": ("n", "s")}
_SPLIT = ("k", "e")  # columns in which the first block may differ from the rest


@dataclass(frozen=True)
class Variable:
    """One gene: its name, its values in order and how the predictor sees it (range: min-max, list: one-hot)."""

    name: str
    kind: str  # "range" or "list"
    group: str  # "architecture" or "recipe"
    values: tuple[Any, ...]

    @property
    def features(self) -> int:
        return len(self.values) if self.kind == "list" else 1


# A field of a row is either a Variable or a plain value.
Field = Any


@dataclass(frozen=True)
class TableRow:
    """One row; `k` and `e` are (first block, remaining blocks), None where the block does not use the column."""

    block: str
    k: tuple[Field, Field] | None
    e: tuple[Field, Field] | None
    c: Field
    n: Field
    s: Field
    se: Field
    act: Field
    pad: int | None = None
    se_from: str = "in"
    bias: bool = True

    @property
    def fields(self) -> tuple[Field, ...]:
        """What may be a variable, from left to right."""
        return (*(self.k or ()), *(self.e or ()), self.c, self.n, self.s, self.se, self.act)

    @staticmethod
    def values(field: Field) -> tuple[Any, ...]:
        """Every value that a field can take."""
        return field.values if isinstance(field, Variable) else (field,)

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True)
class Table:
    """A checked table: what `Space` compiles."""

    name: str
    source: str
    input_channels: int
    resolution: Field
    rows: tuple[TableRow, ...]
    recipe: tuple[tuple[str, Field], ...] | None
    lr_multiplier: tuple[tuple[str, float], ...] = ()

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Every variable once: stages from top to bottom, resolution, then the recipe's."""
        fields: list[Field] = []
        for row in self.rows:
            fields += row.fields
        fields.append(self.resolution)
        fields += [value for _, value in self.recipe or ()]
        return tuple(dict.fromkeys(field for field in fields if isinstance(field, Variable)))

    def pin(self, values: Mapping[str, Any]) -> Table:
        """The table with some variables fixed. Raises PynasError for an unknown name or a value it cannot take."""
        variables = {variable.name: variable for variable in self.variables}
        values = {name: plain_se(value) if name.endswith(".se") else value for name, value in values.items()}
        for name, value in values.items():
            if name not in variables:
                raise PynasError(f"{self.source}: pin: {_unknown('variable', name, variables)}")
            if not any(same_value(choice, value) for choice in variables[name].values):
                raise PynasError(f"{self.source}: pin {name}: {value!r}; allowed: {_listing(variables[name].values)}")

        def fix(field: Field) -> Field:
            if isinstance(field, Variable) and field.name in values:
                return next(choice for choice in field.values if same_value(choice, values[field.name]))
            return field

        def pair(fields: tuple[Field, Field] | None) -> tuple[Field, Field] | None:
            return fields and (fix(fields[0]), fix(fields[1]))

        def fixed(row: TableRow) -> TableRow:
            whole = {"c": fix(row.c), "n": fix(row.n), "s": fix(row.s), "se": fix(row.se), "act": fix(row.act)}
            return replace(row, k=pair(row.k), e=pair(row.e), **whole)

        rows = tuple(fixed(row) for row in self.rows)
        recipe = self.recipe and tuple((key, fix(field)) for key, field in self.recipe)
        return replace(self, rows=rows, recipe=recipe, resolution=fix(self.resolution))

    def with_architecture(self, other: Table) -> Table:
        """The recipe of this table on the stages of another: recipe-only search on a fixed network."""
        architecture = {"rows": other.rows, "resolution": other.resolution, "input_channels": other.input_channels}
        return replace(self, name=f"{self.name}+{other.name}", **architecture)


def read_table(name_or_path: str | Path) -> Table:
    """A shipped table or network by name, or a user's file by path. Raises PynasError naming file, key and value."""
    path = find_table(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PynasError(f"{path}: cannot be read: {error}") from None
    return parse_table(text, str(path))


def find_table(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    for folder in (TABLES, ZOO):
        if (shipped := folder / f"{text}.yaml").is_file() and "/" not in text:
            return shipped
    with contextlib.suppress(OSError):  # a name too long for the file system is no file
        if Path(text).is_file():
            return Path(text)
    names = [path.stem for folder in (TABLES, ZOO) for path in sorted(folder.glob("*.yaml"))]
    raise PynasError(f"no table {text!r}: neither a file nor one of {', '.join(names)}")


def parse_table(text: str, source: str) -> Table:
    """Parse and check a table's text; `source` is the file's name for error messages."""
    return _Parser(source).table(text)


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.ties: dict[str, tuple[Variable | Any, Choices, str]] = {}

    def fail(self, where: str, message: str) -> PynasError:
        return PynasError(f"{self.source}: {where}: {message}")

    def table(self, text: str) -> Table:
        values = self.mapping(text)
        self.keys("the file", values, TOP_KEYS, REQUIRED_KEYS)
        if not isinstance(values["name"], str):
            raise self.fail("name", f"{values['name']!r}; allowed: text")
        channels = values["input_channels"]
        if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
            raise self.fail("input_channels", f"{channels!r}; allowed: a whole number of at least 1")
        rows = self.rows(values["stages"])
        if "padding" in values:
            if values["padding"] != "same":
                raise self.fail("padding", f"{values['padding']!r}; allowed: same, or no such key")
            rows = tuple(replace(row, pad=None) for row in rows)
        resolution = self.field("resolution", values["resolution"], "architecture", "resolution", _positive_int)
        recipe, multiplier = self.recipe(values["recipe"]) if values.get("recipe") is not None else (None, ())
        return Table(values["name"], self.source, channels, resolution, rows, recipe, multiplier)

    def mapping(self, text: str) -> dict[str, Any]:
        try:
            values = yaml.load(text, Loader=UniqueKeyLoader)
        except yaml.YAMLError as error:
            raise PynasError(f"{self.source}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise PynasError(f"{self.source}: a table is a mapping with the keys {', '.join(TOP_KEYS)}")
        return values

    def keys(self, where: str, values: Iterable[Any], allowed: Sequence[str], required: Sequence[str]) -> None:
        for key in values:
            if key not in allowed:
                raise self.fail(where, _unknown("key", key, allowed))
        if missing := [key for key in required if key not in values]:
            raise self.fail(where, f"lacks {', '.join(missing)}; required: {', '.join(required)}")

    # stages -----------------------------------------------------------------------------------------------------

    def rows(self, text: Any) -> tuple[TableRow, ...]:
        if not isinstance(text, str) or not text.strip():
            raise self.fail("stages", "must be a block of text (stages: |) whose lines are | cell | cell | ... |")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        header, *body = cells
        for column in header:
            if column not in COLUMNS + OPTIONAL_COLUMNS:
                raise self.fail("stages", _unknown("column", column, COLUMNS + OPTIONAL_COLUMNS))
        if missing := [column for column in COLUMNS if column not in header]:
            raise self.fail("stages", f"lacks the column {', '.join(missing)}; required: {', '.join(COLUMNS)}")
        if repeated := [column for column in header if header.count(column) > 1]:
            raise self.fail("stages", f"names the column {repeated[0]} twice")
        rows = []
        for index, row in enumerate(body):
            if len(row) != len(header):
                where = f"stages, row {index} ({' | '.join(row)})"
                raise self.fail(where, f"{len(row)} cells; the header has {len(header)}: {', '.join(header)}")
            rows.append(self.row(index, dict(zip(header, row, strict=True))))
        self.structure([row.block for row in rows])
        return tuple(rows)

    def structure(self, blocks: list[str]) -> None:
        found = f"found {', '.join(blocks)}" if blocks else "found no rows"
        if blocks[-2:] != ["mbpool", "fc"]:
            raise self.fail("stages", f"no head: the last two rows must be mbpool and fc; {found}")
        if blocks[0] != "conv":
            raise self.fail("stages", f"no stem: the first row must be a conv; {found}")
        if misplaced := [block for block in blocks[1:-2] if block not in ("mbconv", "skip")]:
            raise self.fail("stages", f"{misplaced[0]} between stem and head; allowed there: mbconv and skip")

    def row(self, index: int, cells: dict[str, str]) -> TableRow:
        block = cells["block"]
        where = f"stages, row {index} ({block})"
        if block not in BLOCKS:
            raise self.fail(where, _unknown("block", block, BLOCKS))
        needed = _NEEDED[block]
        used = needed + _LEFT_OUT.get(block, ())
        for column, text in cells.items():
            if column == "block":
                continue
            if column not in used and text not in ("-", ""):
                raise self.fail(f"{where}, {column}", f"{text!r}; {block} does not use it, so the cell must be '-'")
            if column in needed and text in ("-", ""):
                raise self.fail(f"{where}, {column}", f"is empty; {block} needs {', '.join(needed)}")

        def read(column: str) -> Any:
            if column not in used or cells.get(column, "-") in ("-", ""):
                return None
            return self.pair(f"{where}, {column}", cells[column], f"stage{index}.{column}", _CHECKS[column])

        def one(column: str, default: Any) -> Any:
            fields = read(column)
            if fields is None:
                return default
            if fields[0] is not fields[1] and column not in _SPLIT:
                raise self.fail(
                    f"{where}, {column}", f"{cells[column]!r}; first / rest is for {', '.join(_SPLIT)} only"
                )
            return fields[0]

        kernel, pad, act = read("k"), one("pad", None), one("act", "")
        fixed = {"pad": pad, "se_from": one("se_from", "in"), "bias": one("bias", True)}
        n = one("n", 1)
        if block == "conv" and any(0 in TableRow.values(field) for field in kernel or ()):
            raise self.fail(f"{where}, k", f"{cells['k']!r}; 0, which leaves a block out, is for mbconv")
        if choices := [column for column, field in fixed.items() if isinstance(field, Variable)]:
            raise self.fail(f"{where}, {choices[0]}", f"{cells[choices[0]]!r}; takes one value, not a choice")
        if pad is not None and any(isinstance(field, Variable) for field in kernel or ()):
            raise self.fail(f"{where}, pad", f"{pad}; a row with a choice of kernels cannot fix the padding")
        if block != "mbconv" and n != 1:
            raise self.fail(f"{where}, n", f"{cells['n']!r}; {block} stands once, so n must be 1")
        return TableRow(block, kernel, read("e"), one("c", None), n, one("s", 1), one("se", False), act, **fixed)

    def pair(self, where: str, cell: Any, name: str, check: Any) -> tuple[Field, Field]:
        try:
            parsed = parse_cell(cell)
        except CellError as error:
            raise self.fail(where, f"{cell!r}: {error}") from None
        if parsed is None:
            raise self.fail(where, "is empty")
        first, rest = parsed
        if rest is None:
            field = self.variable(where, cell, name, first, "architecture", check)
            return field, field
        return (
            self.variable(where, cell, f"{name}.first", first, "architecture", check),
            self.variable(where, cell, f"{name}.rest", rest, "architecture", check),
        )

    def field(self, where: str, cell: Any, group: str, name: str, check: Any) -> Field:
        try:
            parsed = parse_cell(cell)
        except CellError as error:
            raise self.fail(where, f"{cell!r}: {error}") from None
        if parsed is None or parsed[1] is not None:
            raise self.fail(where, f"{cell!r}; allowed: one value, a [list] or a (low, high) range")
        return self.variable(where, cell, name, parsed[0], group, check)

    def variable(self, where: str, cell: Any, name: str, choices: Choices, group: str, check: Any) -> Field:
        if check is _attention:
            choices = replace(choices, values=tuple(plain_se(value) for value in choices.values))
        for value in choices.values:
            if complaint := check(value):
                raise self.fail(where, f"{cell!r}: {value!r} {complaint}")
        values = choices.values
        field = values[0] if choices.constant else Variable(name, choices.kind, group, values)
        if choices.tie is None:
            return field
        if choices.tie not in self.ties:
            self.ties[choices.tie] = (field, choices, where)
        tied, other, place = self.ties[choices.tie]
        if (other.kind, other.values) != (choices.kind, values):
            unequal = f"{_listing(values)} here, {_listing(other.values)} in {place}"
            raise self.fail(
                where, f"{cell!r}: tied by ^{choices.tie} to unequal choices: {unequal}; they must be equal"
            )
        return tied

    # recipe -----------------------------------------------------------------------------------------------------

    def recipe(self, values: Any) -> tuple[tuple[tuple[str, Field], ...], tuple[tuple[str, float], ...]]:
        if not isinstance(values, dict):
            raise self.fail("recipe", f"{values!r}; must be a mapping with the keys {', '.join(RECIPE_KEYS)}")
        self.keys("recipe", values, (*RECIPE_KEYS, "lr_multiplier"), RECIPE_KEYS)
        fields = tuple(
            (key, self.field(f"recipe, {key}", values[key], "recipe", key, _RECIPE_CHECKS[key])) for key in RECIPE_KEYS
        )
        multiplier = values.get("lr_multiplier", {})
        if not isinstance(multiplier, dict):
            raise self.fail("recipe, lr_multiplier", f"{multiplier!r}; write for instance {{SGD: 4}}")
        for optimizer, factor in multiplier.items():
            if optimizer not in OPTIMIZERS:
                raise self.fail("recipe, lr_multiplier", _unknown("optimizer", optimizer, OPTIMIZERS))
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
                raise self.fail(f"recipe, lr_multiplier, {optimizer}", f"{factor!r}; allowed: a number above 0")
        return fields, tuple(sorted(multiplier.items()))


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; our files must not. Keys are words."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def same_value(choice: Any, value: Any) -> bool:
    """Whether a value given from outside is that choice: numbers to within rounding, true and 1 kept apart."""
    if isinstance(choice, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return math.isclose(choice, value, rel_tol=1e-9)
    return type(choice) is type(value) and bool(choice == value)


# Checks of a value: None where it is allowed, else what is allowed.


def _integer(value: Any, low: int) -> bool:
    return type(value) is int and value >= low


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive_int(value: Any) -> str | None:
    return None if _integer(value, 1) else "is not allowed; allowed: whole numbers of at least 1"


def _probability(value: Any) -> str | None:
    return None if _number(value) and 0 <= value < 1 else "is not allowed; allowed: from 0 to below 1"


def _at_least_zero(value: Any) -> str | None:
    return None if _number(value) and value >= 0 else "is not allowed; allowed: numbers of at least 0"


def _one_of(*allowed: Any) -> Callable[[Any], str | None]:
    names = ", ".join({True: "Y (true)", False: "N (false)"}.get(value, str(value)) for value in allowed)

    def check(value: Any) -> str | None:
        found = any(type(value) is type(other) and value == other for other in allowed)
        return None if found else f"is not allowed; allowed: {names}"

    return check


_SPLITS = (False, True, 2, 4)


def _attention(value: Any) -> str | None:
    found = any(type(value) is type(other) and value == other for other in _SPLITS)
    return None if found else "is not allowed; allowed: N or 0, Y or 1, 2, 4"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "k": lambda v: (
        None
        if _integer(v, 0) and (v == 0 or v % 2)
        else "is not allowed; allowed: odd whole numbers (1, 3, 5, 7, ...), and 0 to leave an mbconv out"
    ),
    "e": lambda v: None if _number(v) and v > 0 else "is not allowed; allowed: numbers above 0",
    "c": _positive_int,
    "n": _positive_int,
    "s": lambda v: None if _integer(v, 1) and v <= 2 else "is not allowed; allowed: 1 or 2",
    "se": _attention,
    "act": _one_of(*ACTIVATIONS),
    "pad": lambda v: None if _integer(v, 0) else "is not allowed; allowed: whole numbers of at least 0",
    "se_from": _one_of("in", "mid"),
    "bias": _one_of(True, False),
}
_RECIPE_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "lr": lambda v: None if _number(v) and v > 0 else "is not allowed; allowed: numbers above 0",
    "optimizer": _one_of(*OPTIMIZERS),
    "ema": _one_of(True, False),
    "dropout": _probability,
    "stochastic_depth": _probability,
    "mixup": _at_least_zero,
    "weight_decay": _at_least_zero,
}


def _unknown(what: str, name: Any, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown {what} {name!r}{hint}; allowed: {', '.join(allowed) or 'none'}"


def _listing(values: Sequence[Any]) -> str:
    if len(values) > 8:
        return f"{values[0]}, {values[1]}, ... {values[-1]}"
    return ", ".join(str(value) for value in values)


# Writing ---------------------------------------------------------------------------------------------------------


def format_rows(rows: Sequence[Row]) -> str:
    """Concrete rows in the notation of the tables, columns aligned. What it writes reads back equal."""

    def split(values: tuple[Any, Any] | None) -> str:
        if values is None:
            return "-"
        return " / ".join(_text(value) for value in dict.fromkeys(values))

    def optional(row: Row) -> dict[str, str]:
        pad = "-" if row.pad is None else str(row.pad)
        return {"pad": pad, "se_from": "-" if row.se_from == "in" else row.se_from, "bias": "-" if row.bias else "N"}

    extra = [column for column in OPTIONAL_COLUMNS if any(optional(row)[column] != "-" for row in rows)]
    lines = [[*COLUMNS, *extra]]
    for row in rows:
        needed = _NEEDED[row.block]
        cells = {"block": row.block, "k": split(row.k), "e": split(row.e), "c": str(row.c), "act": row.act or "-"}
        cells["n"] = str(row.n) if "n" in needed else "-"
        cells["s"] = str(row.s) if "s" in needed or row.s != 1 else "-"
        cells["se"] = ({0: "N", 1: "Y"}.get(row.se) or str(row.se)) if "se" in needed else "-"
        cells |= optional(row)
        lines.append([cells[column] for column in lines[0]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def format_network(
    architecture: Architecture, recipe: Recipe | None = None, *, name: str, notes: Mapping[str, Any] | None = None
) -> str:
    """The text of a table without choices: a file that reads back as this network and recipe."""
    head = {"name": name, "input_channels": architecture.input_channels, "resolution": architecture.resolution}
    rows = "\n".join(f"  {line}" for line in format_rows(architecture.rows).splitlines())
    tail: dict[str, Any] = {"recipe": recipe.to_dict()} if recipe else {}
    tail |= {"notes": dict(notes)} if notes else {}
    text = f"{yaml.safe_dump(head, sort_keys=False)}stages: |\n{rows}\n"
    return text + (yaml.safe_dump(tail, sort_keys=False) if tail else "")


def _text(value: float) -> str:
    """The shortest text that reads back as this number: 4 for 4.0, 5.4566 for 5.4566."""
    return str(int(value)) if value == int(value) else repr(value)
