"""A decoded genome: the concrete rows of a network (`Architecture`) and the concrete hyper-parameters (`Recipe`).

Both are plain frozen values that can be compared, printed, put into JSON and read back. `nets` builds them, `train`
runs them, tables and zoo files hold them in the row notation of Table 2 of the FBNetV3 paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pynas.errors import PynasError


@dataclass(frozen=True)
class Row:
    """One row of Table 2 with every choice made: `n` blocks, the first of which has stride `s`.

    `k` and `e` are (first block, remaining blocks); they are equal where the table does not tell them apart.
    A column that does not apply to the block is None (for instance `e` of a conv). A kernel of 0 leaves an mbconv out
    (FP-NAS, Table 2): in its place stands a skip, which is the identity where shapes allow.
    """

    block: str  # conv, mbconv, skip, mbpool or fc
    k: tuple[int, int] | None
    e: tuple[float, float] | None
    c: int
    n: int
    s: int
    se: bool | int  # False none, True squeeze-and-excite, 2 or 4 the splits of Split-Attention
    act: str
    pad: int | None = None  # padding of the (depthwise) convolution where it is not k // 2
    se_from: str = "in"  # whose quarter the hidden width of se is: "in", before the expansion, or "mid", after it
    bias: bool = True  # of a conv, beside its batch norm

    def __post_init__(self) -> None:
        object.__setattr__(self, "se", plain_se(self.se))

    def __repr__(self) -> str:
        return short_repr(self)

    def to_dict(self) -> dict[str, Any]:
        """The columns by name. What a later version added is left out where unset, as in `__repr__`: older studies
        recorded these values, and theirs are compared with ours.
        """
        return dict(set_columns(self))


def round_channels(channels: float) -> int:
    """A width as networks have it: a multiple of 8, half up, at least 8 and never more than 5% below `channels`."""
    from pynas.space.space import core

    try:
        return int(core().round_channels(channels))
    except ValueError as error:
        raise PynasError(str(error)) from None


def plain_se(value: Any) -> Any:
    """One value for each meaning of `se`: False for N and 0, True for Y and 1, the number of splits above that."""
    return bool(value) if type(value) is int and value in (0, 1) else value


def set_columns(row: Any) -> list[tuple[str, Any]]:
    """Names and values of a row's columns, without the newer ones that have their default."""
    newer = {"se_from": "in", "bias": True}
    values = [(field.name, getattr(row, field.name)) for field in fields(row)]
    return [(name, value) for name, value in values if name not in newer or value != newer[name]]


def short_repr(row: Any) -> str:
    """A dataclass's repr of `set_columns`. A space's fingerprint is made of it, hence must not gain unset columns."""
    return f"{type(row).__name__}({', '.join(f'{name}={value!r}' for name, value in set_columns(row))})"


@dataclass(frozen=True)
class Block:
    """One block with the widths and sizes that follow from its row, as the compiled core derives and counts them."""

    row: int
    kind: str
    kernel: int
    stride: int
    padding: int
    in_channels: int
    mid_channels: int  # width after the expansion; equal to in_channels where there is no expansion convolution
    channels: int
    se_channels: int  # hidden width of squeeze-and-excite, 0 for none
    act: str
    in_size: int  # height = width
    out_size: int
    flops: int  # published rule: MACs + inputs of every global average pool
    macs: int
    params: int  # convolution and linear weights only
    parameters: int  # all trainable parameters, biases and batch-norm included
    splits: int = 0  # 1 where se is squeeze-and-excite, 2 or 4 for Split-Attention, 0 for none
    bias: bool = True  # of a conv

    @property
    def residual(self) -> bool:
        return self.kind == "mbconv" and self._keeps_shape

    @property
    def identity(self) -> bool:
        """Whether this is a skip that does nothing."""
        return self.kind == "skip" and self._keeps_shape

    @property
    def _keeps_shape(self) -> bool:
        return self.stride == 1 and self.in_channels == self.channels


@dataclass(frozen=True)
class Architecture:
    """The rows of one network, its input resolution in pixels and its number of input channels."""

    rows: tuple[Row, ...]
    resolution: int
    input_channels: int = 3

    @property
    def classes(self) -> int:
        return self.rows[-1].c

    def blocks(self) -> tuple[Block, ...]:
        """Every block in order, head included, with its widths, sizes and costs (counted by the compiled core)."""
        from pynas.space.space import blocks_of

        return blocks_of(self)

    def cost(self) -> dict[str, int]:
        """Sums over all blocks: ``flops`` and ``params`` by the published rule, ``macs``, and true ``parameters``."""
        blocks = self.blocks()
        return {key: sum(getattr(block, key) for block in blocks) for key in ("flops", "macs", "params", "parameters")}

    def with_(
        self,
        *,
        resolution: int | None = None,
        classes: int | None = None,
        input_channels: int | None = None,
        padding: str | None = None,
        small_input: bool = False,
        stem_bias: bool | None = None,
    ) -> Architecture:
        """A copy with another input, another number of classes, ``padding="same"`` (every padding is k // 2), with or
        without the stem's bias or, for small images, with the second stride-two block at stride one (the CIFAR section
        of the FBNetV3 paper; the stem is the first). Raises PynasError saying what is allowed.
        """
        for name, value in (("resolution", resolution), ("classes", classes), ("input_channels", input_channels)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise PynasError(f"{name}: {value!r}; allowed: a whole number of at least 1")
        if padding not in (None, "same"):
            raise PynasError(f"padding: {padding!r}; allowed: same (k // 2 everywhere), or none for the network's own")
        rows = list(self.rows)
        if padding == "same":
            rows = [replace(row, pad=None) for row in rows]
        if small_input:
            strided = [i for i, row in enumerate(rows) if row.s == 2]
            if len(strided) < 2:
                raise PynasError(f"small_input: the network has {len(strided)} stride-two blocks; it needs at least 2")
            rows[strided[1]] = replace(rows[strided[1]], s=1)
        if stem_bias is not None:
            rows[0] = replace(rows[0], bias=stem_bias)
        if classes is not None:
            rows[-1] = replace(rows[-1], c=classes)
        return Architecture(tuple(rows), resolution or self.resolution, input_channels or self.input_channels)

    def to_dict(self) -> dict[str, Any]:
        rows = tuple(row.to_dict() for row in self.rows)
        return {"rows": rows, "resolution": self.resolution, "input_channels": self.input_channels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        def pair(value: Any) -> Any:
            return None if value is None else tuple(value)

        rows = tuple(Row(**{**row, "k": pair(row["k"]), "e": pair(row["e"])}) for row in values["rows"])
        return cls(rows, values["resolution"], values["input_channels"])

    def __str__(self) -> str:
        from pynas.space.table import format_rows

        size = f"input {self.input_channels} x {self.resolution} x {self.resolution}"
        return f"{size}\n{format_rows(self.rows)}"


@dataclass(frozen=True)
class Recipe:
    """A training recipe: the recipe variables of Table 2 under their full names."""

    lr: float  # initial learning rate as the optimizer gets it (the table's multiplier for SGD is already applied)
    optimizer: str  # "RMSProp" or "SGD"
    ema: bool  # evaluate the exponential moving average of the weights
    dropout: float  # p: probability, before the classifier
    stochastic_depth: float  # d: drop probability of the last block; earlier ones ramp up linearly from 0
    mixup: float  # m: parameter of the Beta(m, m) distribution, 0 for none
    weight_decay: float  # wd

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        return cls(**values)

    def __str__(self) -> str:
        def text(value: Any) -> str:
            return f"{value:.6g}" if isinstance(value, float) else str(value)

        return ", ".join(f"{field.name} {text(getattr(self, field.name))}" for field in fields(self))
