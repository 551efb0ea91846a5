"""Space: a table compiled. Samples, counts, encodes and decodes batches of genomes in the C++ core."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.cores import thread_count
from pynas.errors import PynasError
from pynas.space.architecture import Architecture, Block, Recipe, Row
from pynas.space.budget import COSTS, Budget
from pynas.space.table import BLOCKS, RECIPE_KEYS, Field, Table, TableRow, Variable, read_table, same_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Genomes = NDArray[np.uint8]


def core() -> Any:
    """The compiled core; where it is not built, an ImportError that says how to build it."""
    try:
        from pynas import _core
    except ImportError as error:
        raise ImportError(
            f"the compiled search core is not built ({error}); build it with: pip install --no-build-isolation -e ."
        ) from None
    return _core


def load_space(
    name: str | Path, *, pin: Mapping[str, Any] | None = None, architecture: str | Path | None = None
) -> Space:
    """The space of a shipped table (``"fbnetv3"``, ``"fbnetv3_28"``) or of a user's YAML file.

    `pin` fixes variables by name (``{"ema": True}``). `architecture` names a table or network whose stages replace the
    space's own, which leaves the recipe to be searched. Raises PynasError naming file, key, value and what is allowed.
    """
    table = read_table(name)
    if architecture is not None:
        table = table.with_architecture(read_table(architecture))
    return Space(table.pin(pin or {}))


def load_architecture(
    name: str | Path,
    *,
    genome: str | Sequence[int] | None = None,
    resolution: int | None = None,
    classes: int | None = None,
    input_channels: int | None = None,
    padding: str | None = None,
    small_input: bool = False,
) -> Architecture:
    """A network by name (``"fbnetv3_a"``), by the path of a table without choices, or by a genome of a table with some.

    `genome` holds one choice index a variable, in the order of the space's variables, as numbers or as text
    (``"0,1,3"``). The others change the network: see `Architecture.with_`. Raises PynasError for a table whose choices
    are left open, for an unknown name and for what no network can have.
    """
    architecture, _ = load_design(name, genome)
    changed = architecture.with_(
        resolution=resolution,
        classes=classes,
        input_channels=input_channels,
        padding=padding,
        small_input=small_input,
    )
    if changed != architecture:
        changed.blocks()  # refuses, for instance, a resolution that ends in a feature map smaller than a kernel
    return changed


def load_design(name: str | Path, genome: str | Sequence[int] | None = None) -> tuple[Architecture, Recipe | None]:
    """The network that `load_architecture` names, and the recipe of its table or genome (None without one)."""
    space = load_space(name)
    if genome is not None:
        return space.decode(_genes(genome))
    if any(variable.group == "architecture" for variable in space.variables):
        raise PynasError(
            f"{name}: is a space with {len(space.variables)} variables, not one network; name a network such as "
            "fbnetv3_a, or choose with --genome (one index a variable; pynas space lists them)"
        )
    architecture, recipe = space.decode(np.zeros(len(space.variables), np.uint8))
    return architecture, None if space.variables else recipe


def _genes(genome: str | Sequence[int]) -> NDArray[Any]:
    if not isinstance(genome, str):
        return np.asarray(genome)
    try:
        return np.array([int(gene) for gene in genome.split(",")])
    except ValueError:
        raise PynasError(f"genome {genome!r}: write whole numbers with commas between, for instance 0,1,3") from None


class Space:
    """A search space: its variables, genome layout, encoding and counting.

    A genome is one uint8 choice index per variable, in the order of `variables`: architecture first, then recipe.
    Batches are C-contiguous ``(n, variables)`` arrays.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name = table.name
        self.variables: tuple[Variable, ...] = table.variables
        self._index = {variable: i for i, variable in enumerate(self.variables)}
        try:
            self.core = core().Space(
                [
                    {
                        "name": variable.name,
                        "kind": variable.kind,
                        "group": variable.group,
                        "values": _numeric(variable),
                    }
                    for variable in self.variables
                ],
                [self._core_row(row) for row in table.rows],
                self._core_field(table.resolution),
                table.input_channels,
            )
        except ValueError as error:
            raise PynasError(f"{table.source}: {error}") from None

    def _core_field(self, field: Field) -> tuple[int, float]:
        return (self._index[field], 0.0) if isinstance(field, Variable) else (-1, float(field))

    def _core_row(self, row: TableRow) -> dict[str, Any]:
        k, k_rest = row.k or (1, 1)
        e, e_rest = row.e or (1, 1)
        pad = -1 if row.pad is None else row.pad
        fields = {"k": k, "k_rest": k_rest, "e": e, "e_rest": e_rest, "c": row.c, "n": row.n, "s": row.s}
        fields |= {"se": row.se, "pad": pad}
        fixed = {"block": row.block, "se_from": row.se_from, "bias": row.bias}
        return fixed | {key: self._core_field(field) for key, field in fields.items()}

    # size -----------------------------------------------------------------------------------------------------------

    @cached_property
    def size(self) -> dict[str, int]:
        """How many ``architectures`` (without resolution), ``resolutions`` and ``recipes`` there are."""

        def product(variables: Sequence[Variable]) -> int:
            return math.prod(len(variable.values) for variable in variables)

        architecture = [v for v in self.variables if v.group == "architecture" and v.name != "resolution"]
        return {
            "architectures": product(architecture),
            "resolutions": product([v for v in self.variables if v.name == "resolution"]),
            "recipes": product([v for v in self.variables if v.group == "recipe"]),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Digest of variables and rows, by which a predictor knows the space it was made for."""
        rows = [repr(row) for row in self.table.rows]
        description = [repr(self.variables), rows, repr(self.table.resolution), self.table.input_channels]
        description += [repr(self.table.recipe), repr(self.table.lr_multiplier)]
        return hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]

    @property
    def architecture_features(self) -> int:
        return sum(v.features for v in self.variables if v.group == "architecture")

    @property
    def recipe_features(self) -> int:
        return sum(v.features for v in self.variables if v.group == "recipe")

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the core; what it finds wrong with an argument becomes a PynasError."""
        try:
            return function(*arguments)
        except ValueError as error:
            raise PynasError(f"{self.name}: {error}") from None
        except TypeError as error:
            raise PynasError(f"{self.name}: wrong kind of argument: {str(error).splitlines()[0]}") from None

    # batches of genomes ---------------------------------------------------------------------------------------------

    def sample(
        self, n: int, *, budget: Budget | Mapping[str, Any] | None = None, seed: int = 0, threads: int = 0
    ) -> Genomes:
        """`n` genomes, uniform among those within the budget: ``(n, variables)`` uint8.

        The same seed gives the same genomes on any number of threads (0: all cores). Raises PynasError where the budget
        cannot be met, with the range of costs in the space.
        """
        lower, upper = Budget.of(budget).arrays()
        return self._call(self.core.sample, n, check_seed(seed), lower, upper, thread_count(threads))

    def costs(self, genomes: Genomes, *, threads: int = 0) -> dict[str, NDArray[np.int64]]:
        """Costs of every genome, int64 ``(n,)`` each: ``flops``, ``macs``, ``params``, ``parameters``."""
        table = self._call(self.core.costs, contiguous(genomes), thread_count(threads))
        return {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(COSTS)}

    def features(self, genomes: Genomes) -> NDArray[np.float32]:
        """The predictor's inputs (paper, section 3.1): one-hot for lists, min-max for ranges; ``(n, features)``."""
        return self._call(self.core.features, contiguous(genomes))

    def feasible(self, genomes: Genomes, budget: Budget) -> NDArray[np.bool_]:
        """Which genomes lie within the budget: bool ``(n,)``."""
        lower, upper = budget.arrays()
        costs = self._call(self.core.costs, contiguous(genomes), thread_count(0))
        return np.all((costs >= lower) & (costs <= upper), axis=1)

    def block_table(self, genome: Genomes) -> NDArray[np.int64]:
        """The blocks of one network, widths, sizes and costs: int64 (blocks, columns) in the core's BLOCK_COLUMNS."""
        return self._call(self.core.blocks, contiguous(genome))

    def cost_range(self) -> dict[str, tuple[int, int]]:
        """The lowest and highest of each cost that coordinate descent finds in the space."""
        ends = self.core.cost_range()
        return {name: (int(ends[i, 0]), int(ends[i, 1])) for i, name in enumerate(COSTS)}

    # one genome -----------------------------------------------------------------------------------------------------

    def values(self, genome: Genomes) -> dict[str, Any]:
        """The chosen value of every variable, by name, as it stands in the table."""
        return {v.name: v.values[gene] for v, gene in zip(self.variables, self._one(genome), strict=True)}

    def decode(self, genome: Genomes) -> tuple[Architecture, Recipe | None]:
        """The network and the recipe that a genome stands for; the recipe is None where the table has none."""
        chosen = dict(zip(self.variables, self._one(genome), strict=True))

        def value(field: Field) -> Any:
            return field.values[chosen[field]] if isinstance(field, Variable) else field

        def pair(fields: tuple[Field, Field] | None) -> Any:
            return fields and (value(fields[0]), value(fields[1]))

        rows = tuple(
            Row(
                *(r.block, pair(r.k), pair(r.e), value(r.c), value(r.n), value(r.s), value(r.se), value(r.act), r.pad),
                se_from=r.se_from,
                bias=r.bias,
            )
            for r in self.table.rows
        )
        architecture = Architecture(rows, value(self.table.resolution), self.table.input_channels)
        if self.table.recipe is None:
            return architecture, None
        recipe = {key: value(field) for key, field in self.table.recipe}
        recipe["lr"] = recipe["lr"] * self._multiplier(recipe["optimizer"])
        return architecture, Recipe(**recipe)

    def encode(self, architecture: Architecture, recipe: Recipe | None = None) -> Genomes:
        """The genome of a network and recipe: uint8 ``(variables,)``; the inverse of `decode`.

        Raises PynasError naming the first row or recipe value that the space does not hold.
        """
        found: dict[Variable, int] = {}

        def match(where: str, field: Field, value: Any) -> None:
            allowed = field.values if isinstance(field, Variable) else (field,)
            if isinstance(field, Variable) and field in found:
                allowed = (field.values[found[field]],)
            index = next((i for i, choice in enumerate(allowed) if same_value(choice, value)), None)
            if index is None:
                raise PynasError(f"{self.name}: {where} is {value!r}; the space allows {list(allowed)}")
            if isinstance(field, Variable):
                found.setdefault(field, index)

        if len(architecture.rows) != len(self.table.rows):
            raise PynasError(f"{self.name}: {len(architecture.rows)} rows; the space has {len(self.table.rows)}")
        match("input_channels", self.table.input_channels, architecture.input_channels)
        match("resolution", self.table.resolution, architecture.resolution)
        for i, (mine, theirs) in enumerate(zip(self.table.rows, architecture.rows, strict=True)):
            for column in ("block", "k", "e", "c", "n", "s", "se", "act", "pad", "se_from", "bias"):
                field, value = getattr(mine, column), getattr(theirs, column)
                if isinstance(field, tuple) and isinstance(value, tuple):
                    match(f"row {i}, {column} (first)", field[0], value[0])
                    match(f"row {i}, {column} (rest)", field[1], value[1])
                else:
                    match(f"row {i}, {column}", field, value)
        if self.table.recipe is not None:
            if recipe is None:
                raise PynasError(f"{self.name}: the space searches recipes too; encode needs one")
            values = recipe.to_dict()
            values["lr"] = values["lr"] / self._multiplier(values["optimizer"])
            for key, field in self.table.recipe:
                match(f"recipe, {key}", field, values[key])
        return np.array([found[variable] for variable in self.variables], np.uint8)

    def _multiplier(self, optimizer: str) -> float:
        return dict(self.table.lr_multiplier).get(optimizer, 1)

    def _one(self, genome: Genomes) -> list[int]:
        genes = np.asarray(genome)
        if not np.issubdtype(genes.dtype, np.integer):
            raise PynasError(f"{self.name}: a genome of dtype {genes.dtype}; allowed: whole numbers (uint8)")
        if genes.shape != (len(self.variables),):
            raise PynasError(f"{self.name}: a genome of shape {genes.shape}; allowed: ({len(self.variables)},)")
        for variable, gene in zip(self.variables, genes, strict=True):
            if not 0 <= gene < len(variable.values):
                raise PynasError(f"{self.name}: {variable.name} = {gene}; allowed: 0 to {len(variable.values) - 1}")
        return [int(gene) for gene in genes]

    def __deepcopy__(self, memo: dict[int, Any]) -> Space:
        return self  # it never changes

    def __repr__(self) -> str:
        size = self.size
        return f"Space({self.name}: {size['architectures']} architectures x {size['recipes']} recipes)"


def contiguous(genomes: Any) -> Any:
    """A slice of a batch as the core wants it; dtype and shape are the core's to check."""
    return np.ascontiguousarray(genomes) if isinstance(genomes, np.ndarray) else genomes


def check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise PynasError(f"seed {seed!r}; allowed: whole numbers from 0 to below 2**64")
    return int(seed)


def _numeric(variable: Variable) -> list[float]:
    """Values for the core, which counts with numbers; words (optimizers) become their index."""
    return [float(i if isinstance(value, str) else value) for i, value in enumerate(variable.values)]


def table_of(architecture: Architecture, recipe: Recipe | None = None, name: str = "network") -> Table:
    """The table without choices that describes one network."""
    rows = tuple(
        TableRow(r.block, r.k, r.e, r.c, r.n, r.s, r.se, r.act, r.pad, r.se_from, r.bias) for r in architecture.rows
    )
    fields = None if recipe is None else tuple((key, getattr(recipe, key)) for key in RECIPE_KEYS)
    return Table(name, name, architecture.input_channels, architecture.resolution, rows, fields)


@lru_cache(maxsize=256)
def blocks_of(architecture: Architecture) -> tuple[Block, ...]:
    """The blocks of a network with widths, sizes and costs; see `Architecture.blocks`."""
    columns = core().BLOCK_COLUMNS
    table = Space(table_of(architecture)).core.blocks(np.zeros(0, np.uint8))
    rows = [dict(zip(columns, map(int, line), strict=True)) for line in table]
    blocks = []
    for values in rows:
        row = architecture.rows[values["row"]]
        kind = BLOCKS[values["kind"]]
        left_out = kind == "skip" and row.block == "mbconv"  # by kernel 0; the skips of the released networks have ReLU
        splits = 0 if left_out else int(row.se)
        words = {"kind": kind, "act": "relu" if left_out else row.act, "splits": splits, "bias": row.bias}
        blocks.append(Block(**{**values, **words}))
    return tuple(blocks)
