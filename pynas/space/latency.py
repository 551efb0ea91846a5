"""Latency of a space's networks on one device, from a linear model of what their blocks do.

Tables of every block that a space can hold would be too large where neighbouring widths vary; what a block does is a
few sums (operations, elements moved, how many layers are called), and latency is nearly linear in them. A model is
fitted to networks measured whole (`pynas.nets.latency`, the command ``pynas latency``) and kept with them in a file.

K genomes, F features, N measured networks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.errors import PynasError
from pynas.files import write_whole
from pynas.space.space import Space, core
from pynas.space.table import BLOCKS, TableRow, Variable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Genomes = NDArray[np.uint8]
    Numbers = NDArray[np.float64]

LEAST = 10
"""Networks that a model can be fitted to: a fifth of them are held out, and two of those have an order."""

_ACTS = ("hswish", "relu", "swish")
_PENALTIES = 10.0 ** np.arange(-6, 2.1, 0.5)  # ridge's penalties to choose from, a network; features have variance one


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds that the networks of one space take on one device.

    `setting` tells what was measured, as plain values: ``device``, ``threads``, ``batch_size``, ``dtype``, ``rounds``.
    `coefficients` are milliseconds a unit of a feature, `constant` milliseconds. `held_out` holds the errors on every
    fifth network of a fit without those: ``networks``, ``median_error`` (relative, absolute) and ``kendall_tau``.
    `genomes` (N, variables) uint8 and `measured` (N,) milliseconds are what it was fitted to.
    """

    space: Space
    setting: Mapping[str, Any]
    constant: float
    coefficients: Mapping[str, float]
    held_out: Mapping[str, float]
    genomes: Genomes
    measured: Numbers

    @classmethod
    def fit(cls, space: Space, genomes: Genomes, measured: Numbers, setting: Mapping[str, Any]) -> LatencyModel:
        """The model of measured networks: genomes (N, variables), milliseconds (N,).

        Raises PynasError for fewer than ten networks, and for times that are not finite and above 0.
        """
        measured = np.asarray(measured, np.float64)
        if len(genomes) != len(measured) or len(measured) < LEAST:
            raise PynasError(
                f"latency: {len(genomes)} genomes, {len(measured)} times; allowed: {LEAST} or more of each"
            )
        if not (np.isfinite(measured) & (measured > 0)).all():
            raise PynasError("latency: a measured time is not finite and above 0 ms")
        inputs = block_sums(space, genomes)
        out = np.arange(len(measured)) % 5 == 4
        constant, weights = _ridge(inputs[~out], measured[~out])
        predicted = constant + inputs[out] @ weights
        held_out = {
            "networks": int(out.sum()),
            "median_error": float(np.median(np.abs(predicted / measured[out] - 1))),
            "kendall_tau": _kendall_tau(predicted, measured[out]),
        }
        constant, weights = _ridge(inputs, measured)
        coefficients = dict(zip(FEATURES, weights.tolist(), strict=True))
        return cls(space, dict(setting), constant, coefficients, held_out, np.array(genomes, np.uint8), measured)

    def predict(self, genomes: Genomes) -> Numbers:
        """Milliseconds of each genome: (K, variables) uint8 to float64 (K,). A millisecond or two for a step's genomes.

        Raises PynasError for what are no genomes of the space.
        """
        weights = np.array([self.coefficients[name] for name in FEATURES])
        # Not a matrix product: BLAS sums in another order for another K, and an architecture's cost would differ.
        return self.constant + (block_sums(self.space, genomes) * weights).sum(1)

    @cached_property
    def least(self) -> float:
        """The lowest prediction that coordinate descent from the best three of 1000 genomes finds, in milliseconds."""
        genomes = self.space.sample(1000, seed=0)
        return min(self._descend(genome) for genome in genomes[np.argsort(self.predict(genomes))[:3]])

    def _descend(self, genome: Genomes) -> float:
        found, before = float(self.predict(genome[None])[0]), math.inf
        while found < before:
            before = found
            for i, variable in enumerate(self.space.variables):
                others = np.repeat(genome[None], len(variable.values), axis=0)
                others[:, i] = np.arange(len(others))
                predicted = self.predict(others)
                if predicted.min() < found:
                    genome, found = others[predicted.argmin()], float(predicted.min())
        return found

    def of(self, space: Space) -> LatencyModel:
        """The same model for a space of other variables, such as its own with some of them pinned: what it knows of
        blocks holds there too.
        """
        return replace(self, space=space)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that the model holds: what a search with its predictions depends on."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    # file -----------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what `save` writes."""
        return {
            "space": {"name": self.space.name, "fingerprint": self.space.fingerprint},
            "setting": dict(self.setting),
            "held_out": dict(self.held_out),
            "constant": self.constant,
            "coefficients": dict(self.coefficients),
            "genomes": [",".join(map(str, genome.tolist())) for genome in self.genomes],  # as `pynas count` takes them
            "measured": self.measured.tolist(),
        }

    def save(self, path: str | Path) -> None:
        """Write the model as JSON, whole. Raises PynasError where the folder does not take the file."""
        write_whole(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, space: Space) -> LatencyModel:
        """Read what `save` wrote. Raises PynasError for a file that cannot be read, is no latency model, or is one of
        another space.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PynasError(f"{path}: cannot be read: {error.strerror}; pynas latency writes such a file") from None
        except ValueError as error:
            raise PynasError(
                f"{path}: not a latency model ({error}); allowed: a file that pynas latency wrote"
            ) from None
        try:
            made_for = values["space"]["fingerprint"]
            if made_for != space.fingerprint:
                raise PynasError(
                    f"{path}: a latency model of space {values['space']['name']} with fingerprint {made_for}; allowed: "
                    f"one of {space.name} with {space.fingerprint}"
                )
            coefficients = {name: float(value) for name, value in values["coefficients"].items()}
            constant, held_out, setting = float(values["constant"]), dict(values["held_out"]), dict(values["setting"])
            genomes = np.array([[int(gene) for gene in text.split(",")] for text in values["genomes"]], np.uint8)
            measured = np.array(values["measured"], np.float64)
            if genomes.shape != (len(measured), len(space.variables)):
                raise ValueError(f"genomes {genomes.shape}, measured {measured.shape}")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise PynasError(
                f"{path}: not a latency model ({what}); allowed: a file that pynas latency wrote"
            ) from None
        if set(coefficients) != set(FEATURES):
            names = ", ".join(sorted(set(coefficients) ^ set(FEATURES)))
            raise PynasError(f"{path}: coefficients of other features than this pynas has ({names}); measure anew")
        if not all(map(math.isfinite, (constant, *coefficients.values()))):
            raise PynasError(f"{path}: a coefficient is not finite; allowed: a file that pynas latency wrote")
        return cls(space, setting, constant, coefficients, held_out, genomes, measured)


FEATURES = (
    *("mbconvs", "expansions", "residuals", "attentions", "splits", "skips"),  # how many there are
    *("expansion_macs", "expansion_outputs"),
    *("depthwise_macs", "depthwise_inputs", "depthwise_outputs"),
    *("projection_macs", "projection_outputs", "residual_outputs"),
    *("attention_inputs", "attention_weights"),
    *("skip_macs", "skip_outputs"),
    *(f"{act}{what}" for act in _ACTS for what in ("_mbconvs", "_outputs")),
    *("macs", "parameters"),  # of all blocks, stem and head too
)


def block_sums(space: Space, genomes: Genomes) -> Numbers:
    """The features of each genome, sums over its blocks: (K, variables) uint8 to float64 (K, F).

    Inputs and outputs are elements of activations of one image. Raises PynasError for what are no genomes of the space.
    """
    tables = [space.block_table(genome) for genome in genomes]
    starts = np.cumsum([0, *map(len, tables)])
    if not tables:
        return np.zeros((0, len(FEATURES)))
    b = dict(zip(core().BLOCK_COLUMNS, np.concatenate(tables).T.astype(np.float64), strict=True))
    genome, row = np.repeat(np.arange(len(tables)), np.diff(starts)), b["row"].astype(np.intp)
    mbconv, skip = (b["kind"] == BLOCKS.index(kind) for kind in ("mbconv", "skip"))
    splits, act = (_chosen(space, genomes, column)[genome, row] for column in ("se", "act"))
    before, after = b["in_size"] ** 2, b["out_size"] ** 2
    same = (b["stride"] == 1) & (b["in_channels"] == b["channels"])
    expansion = mbconv & (b["mid_channels"] != b["in_channels"])
    attention, convolution = mbconv & (b["se_channels"] > 0), skip & ~same
    expanded = expansion * before * b["mid_channels"]
    maps = b["mid_channels"] * np.maximum(splits, 1)  # Split-Attention has as many kernels a channel as splits
    depthwise = mbconv * after * maps
    projected = mbconv * after * b["channels"]
    convolved = convolution * after * b["channels"]
    values: list[Any] = [mbconv, expansion, mbconv & same, attention, mbconv & (splits > 1), convolution]
    values += [expanded * b["in_channels"], expanded]
    values += [depthwise * b["kernel"] ** 2, mbconv * before * b["mid_channels"], depthwise]
    values += [projected * b["mid_channels"], projected, projected * same]
    values += [attention * depthwise, attention * b["se_channels"] * (b["mid_channels"] + maps)]
    values += [convolved * b["in_channels"], convolved]
    for i in range(len(_ACTS)):
        values += [mbconv & (act == i), (act == i) * (expanded + depthwise)]
    values += [b["macs"], b["parameters"]]
    # All are whole numbers below 2**53: the sums are exact, whatever their order.
    return np.add.reduceat(np.stack(values, 1).astype(np.float64), starts[:-1], axis=0)


def _chosen(space: Space, genomes: Genomes, column: str) -> Numbers:
    """What each row of the table has in `column`, (K, rows): of `se` the splits, of `act` the place in _ACTS."""

    def number(value: Any) -> int:
        return int(value) if column == "se" else _ACTS.index(value) if value in _ACTS else -1

    place = {variable: i for i, variable in enumerate(space.variables)}
    found = np.empty((len(genomes), len(space.table.rows)))
    for i, row in enumerate(space.table.rows):
        field = getattr(row, column)
        values = np.array([number(value) for value in TableRow.values(field)])
        found[:, i] = values[genomes[:, place[field]]] if isinstance(field, Variable) else values[0]
    return found


def _ridge(inputs: Numbers, measured: Numbers) -> tuple[float, Numbers]:
    """The constant and the weights (F,) of ridge regression of measured (N,) on inputs (N, F), by relative error.

    Features are standardised; the penalty is the one of least squared leave-one-out error, which ridge has in closed
    form. A feature that does not vary has no weight.
    """
    trust = 1 / measured**2
    trust /= trust.mean()
    centre, level = np.average(inputs, axis=0, weights=trust), float(np.average(measured, weights=trust))
    spread = np.sqrt(np.average((inputs - centre) ** 2, axis=0, weights=trust))
    varies = spread > 1e-9 * np.abs(centre)
    spread = np.where(varies, spread, 1.0)
    scaled = np.where(varies, (inputs - centre) / spread, 0.0)
    u, s, v = np.linalg.svd(np.sqrt(trust)[:, None] * scaled, full_matrices=False)
    wanted = np.sqrt(trust) * (measured - level)
    best, chosen = math.inf, np.zeros(inputs.shape[1])
    for penalty in _PENALTIES * len(measured):
        kept = s**2 / (s**2 + penalty)
        leverage = (u**2 * kept).sum(1) + trust / trust.sum()
        error = float(np.mean(((wanted - u @ (kept * (u.T @ wanted))) / (1 - leverage)) ** 2))
        if error < best:
            best, chosen = error, np.where(varies, v.T @ (s / (s**2 + penalty) * (u.T @ wanted)) / spread, 0.0)
    return level - float(centre @ chosen), chosen


def _kendall_tau(one: Numbers, other: Numbers) -> float:
    """Kendall's tau-a: of all pairs, those in the same order less those in the opposite one."""
    i, j = np.triu_indices(len(one), 1)
    return float(np.mean(np.sign(one[i] - one[j]) * np.sign(other[i] - other[j])))
