"""The compiled core: counting, sampling, scoring and evolutionary search over genomes.

Arrays must have the dtype and shape given here and be C-contiguous; nothing is cast or copied silently, and arguments
are never modified. Whatever is wrong with an argument is a ValueError that says what came and what is allowed. All
functions release the GIL while they compute, and their results do not depend on `threads`.

A genome is one uint8 choice index per variable; V is the number of variables, F that of features (a list variable of c
choices is c one-hot features, a range variable is one, min-max normalised by value).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

COSTS: tuple[str, str, str, str]
"""Columns of costs and of bounds: flops, macs, params, parameters."""
BLOCK_COLUMNS: tuple[str, ...]
"""Columns of `Space.blocks`: row, kind (index into BLOCK_KINDS), kernel, stride, ..., then COSTS."""
BLOCK_KINDS: tuple[str, ...]
"""conv, mbconv, mbpool, fc, skip."""

Field = tuple[int, float]
"""(variable index, 0.0), or (-1, constant)."""

class Evolution(TypedDict):
    genomes: NDArray[np.uint8]
    scores: NDArray[np.float32]
    history: dict[str, NDArray[Any]]
    """Columns restart, generation, evaluations (int64), best and mean of the members (float64), one row per restart and
    generation; generation 0 is the initial population."""
    evaluations: int
    proposals: int

class Space:
    def __init__(
        self,
        variables: Sequence[Mapping[str, Any]],
        rows: Sequence[Mapping[str, Any]],
        resolution: Field,
        input_channels: int,
    ) -> None:
        """Compile a declared space: variables, and the rows of a network whose fields refer to them.

        variables: dicts with "name", "kind" ("range" or "list"), "group" ("architecture" or "recipe", in that order)
        and "values" (2 to 256 floats). rows: dicts with "block" (one of BLOCK_KINDS) and the fields "k", "k_rest",
        "e", "e_rest", "c", "n", "s", "se" (splits: 0, 1 for squeeze-and-excite, 2 or 4 for Split-Attention) and "pad"
        (-1: k // 2); fields that the block has no use for are not read. Two columns are plain values: "se_from" ("in"
        or "mid": the hidden width of se is a quarter of the width before the expansion, or after it) and "bias" (bool,
        of a conv). No rows at all is a space without a network, all of whose costs are 0.

        Refused: fields out of range, a genome whose feature map becomes smaller than a kernel, costs beyond 64 bits,
        and a block whose cost depends on more than 4 194 304 joint choices.
        """

    def sample(
        self, n: int, seed: int, lower: NDArray[np.int64], upper: NDArray[np.int64], threads: int
    ) -> NDArray[np.uint8]:
        """(n, V) genomes, uniform among those whose costs are within the inclusive bounds of shape (4,).

        Where fewer than one uniform draw in 10 000 is within, the genomes are random ones repaired gene by gene: within
        the bounds, no longer uniform. A ValueError names bounds that cannot be met and what the space has. The first
        genomes of a larger n are those of a smaller one.
        """

    def from_unit(self, points: NDArray[np.float64]) -> NDArray[np.uint8]:
        """(n, V) genomes from points of [0, 1)^V, for instance a Sobol sequence: equal parts for all choices."""

    def costs(self, genomes: NDArray[np.uint8], threads: int) -> NDArray[np.int64]:
        """(n, 4) costs of (n, V) genomes, columns as in COSTS."""

    def features(self, genomes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, F) features of (n, V) genomes, in the order of the variables."""

    def blocks(self, genome: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(blocks, len(BLOCK_COLUMNS)) of one (V,) genome, in the order of the network; costs sum up to `costs`."""

    def cost_range(self) -> NDArray[np.int64]:
        """(4, 2) lowest and highest of each cost, found by coordinate descent: nearly always the true extremes."""

class Predictor:
    def __init__(
        self,
        space: Space,
        statistics: Sequence[str],
        embedding_weight: NDArray[np.float32],
        embedding_bias: NDArray[np.float32],
        hidden_weight: NDArray[np.float32],
        hidden_bias: NDArray[np.float32],
        output_weight: NDArray[np.float32],
        output_bias: float | NDArray[np.float32],
        mean: float | NDArray[np.float32],
        scale: float | NDArray[np.float32],
    ) -> None:
        """score = (output_weight . hidden + output_bias) * scale + mean, where
        hidden = relu(hidden_weight @ [embedding, recipe features] + hidden_bias) and
        embedding = relu(embedding_weight @ [architecture features, statistics] + embedding_bias).

        statistics: names out of COSTS, each at most once, or none at all; the inputs are log(max(cost, 1)) of these,
        natural logarithms that the core counts and takes itself. Their standardisation belongs into the weights: what
        floats lose at the size of the logarithms is made up for inside.

        Shapes: (E, architecture features + len(statistics)), (E,), (H, E + recipe features), (H,), (H,); E and either
        kind of features may be 0. The last three are numbers or arrays of shape (1,). Weights must be finite.
        """

    def score(self, genomes: NDArray[np.uint8], threads: int, instruction_set: str) -> NDArray[np.float32]:
        """(n,) scores of (n, V) genomes; "auto" or one of `instruction_sets()`, all of which give the same bits."""

def round_channels(channels: float) -> int:
    """A width as networks have it: a multiple of 8, half up, at least 8 and never more than 5% below `channels`."""

def instruction_sets() -> list[str]:
    """What this build has and this processor can run, plainest first: "baseline", "avx2", "avx512"."""

def evolve(
    space: Space,
    predictor: Predictor,
    initial: NDArray[np.uint8],
    lower: NDArray[np.int64],
    upper: NDArray[np.int64],
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> Evolution:
    """Stage 3 of NARS: the best genomes within the bounds, by an adaptive genetic algorithm on the predictor's scores.

    initial: (n, V) inherited genomes; n may be 0. settings (every key is required, no other allowed):
        mode             "default", or "paper" for Algorithm 1 to the letter (with patience 1, mutation_floor 0)
        children         proposed per member and generation
        keep             members kept after a generation, and returned (K)
        random           random genomes within the bounds added to the initial ones, in each restart anew
        patience         generations in a row that gain no more than `epsilon` and end a restart
        epsilon          see patience
        max_evaluations  children scored per restart (the initial members are not counted)
        restarts         independent runs, whose best are merged; they are what `threads` share
        k1, k2, k3, k4, mutation_floor   see `adaptive_probabilities`

    Result: at most K genomes, best first, and their scores; in default mode all are within the bounds and distinct.
    `evaluations` counts scored children, `proposals` also those dropped as known or outside the bounds.
    """

def adaptive_probabilities(
    fitness: NDArray[np.float64], k1: float, k2: float, k3: float, k4: float, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Crossover and mutation probabilities of Srinivas & Patnaik (1994) for each individual of (n,) fitness.

    p_c[i] = k1 (max - f_i) / (max - mean) where f_i >= mean, else k3: for a pair whose fitter member is i.
    p_m[i] = the same with k2 and k4, at least `floor`. All equal: k3 and k4. Probabilities must be within [0, 1].
    """

def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the min(k, n) best of (n,) scores, best first, equal ones by index. NaN is refused."""

def pareto_front(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ascending indices of the rows of (n, d) that no row dominates, every column minimised; equal rows all stay."""
