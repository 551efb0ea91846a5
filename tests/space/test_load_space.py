"""Spaces: sizes, round trips, ties and costs, on the shipped tables and the compiled core."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynas
from pynas.errors import PynasError
from pynas.space.space import Space, table_of
from pynas.space.table import TABLES, parse_table

SPACES = {name: pynas.load_space(name) for name in ("fbnetv3", "fbnetv3_28", "fbnetv2_f_28", "fbnetv2_fpp")}

# FBNetV3 as released: published FLOPs and params, MACs, true parameter count.
PUBLISHED = {
    "fbnetv3_a": (356_598_280, 8_542_224, 355_514_328, 8_598_480),
    "fbnetv3_b": (461_550_136, 8_542_224, 460_150_000, 8_598_480),
    "fbnetv3_c": (556_969_904, 9_907_136, 555_578_368, 9_973_816),
    "fbnetv3_d": (644_420_352, 10_237_552, 642_628_864, 10_306_296),
    "fbnetv3_e": (762_046_336, 10_699_464, 759_952_160, 10_772_896),
    "fbnetv3_f": (1_181_644_520, 13_803_072, 1_178_860_656, 13_896_160),
    "fbnetv3_g": (2_129_656_384, 16_513_648, 2_125_187_200, 16_623_920),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_networks_count_to_the_last_digit(name: str) -> None:
    cost = pynas.load_space(name).decode(np.zeros(0, np.uint8))[0].cost()
    assert (cost["flops"], cost["params"], cost["macs"], cost["parameters"]) == PUBLISHED[name]


def test_the_papers_space_has_the_papers_size() -> None:
    space = SPACES["fbnetv3"]
    assert space.size == {"architectures": 175_878_910_771_200_000, "resolutions": 7, "recipes": 18_905_040}
    assert len(space.variables) == 36
    assert space.architecture_features + space.recipe_features == 45
    # The joint search of section 4.2 always uses EMA.
    pinned = pynas.load_space("fbnetv3", pin={"ema": True})
    assert len(pinned.variables) == 35
    assert pinned.architecture_features + pinned.recipe_features == 43
    assert pinned.size["recipes"] == 9_452_520


def test_the_spaces_of_fp_nas_have_the_sizes_of_their_tables() -> None:
    # Channel choices of the ten rows of Table 1; kernel, activation and squeeze-and-excite by Table 2; six expansions.
    channels = (2, 3, 3, 4, 4, 5, 5, 6, 10, 10)
    repeats = (1, 1, 2, 1, 2, 1, 2, 3, 1, 3)
    rows = [3 * 2 * 2 * c * (1 if i == 0 else 6) for i, c in enumerate(channels)]
    size = {
        name: pynas.load_space(name).size["architectures"] for name in ("fbnetv2_f", "fbnetv2_f_fine", "fbnetv2_fpp")
    }
    assert size["fbnetv2_f"] == math.prod(rows)
    assert size["fbnetv2_f_fine"] == math.prod(row**n for row, n in zip(rows, repeats, strict=True))
    assert size["fbnetv2_fpp"] == math.prod(2 * row for row in rows)
    # Table 3: architectures, blocks, median FLOPs. The rows are this project's.
    for name, architectures, blocks, median in (
        ("fpnas_l0", 2e32, 27, 0.39e9),
        ("fpnas_l1", 1e36, 32, 0.9e9),
        ("fpnas_l2", 1e36, 32, 1.1e9),
    ):
        space = pynas.load_space(name)
        assert space.size["architectures"] == pytest.approx(architectures, rel=0.2)
        assert sum(row.n for row in space.table.rows if row.block == "mbconv") == blocks
        assert np.median(space.costs(space.sample(4000, seed=0))["flops"]) == pytest.approx(median, rel=0.05)


def test_kernel_0_and_the_activation_are_choices_like_others() -> None:
    space = SPACES["fbnetv2_f_28"]
    values = {variable.name: variable.values for variable in space.variables}
    assert values["stage3.k"] == (0, 3, 5)
    assert values["stage3.act"] == ("relu", "swish")
    names = list(values)
    genome = np.zeros(len(names), np.uint8)  # kernel 0 in every row
    genome[names.index("stage5.k")] = 2
    genome[names.index("stage5.act")] = 1
    architecture, _ = space.decode(genome)
    assert architecture.rows[5].act == "swish"
    blocks = architecture.blocks()[1:-2]
    assert [(block.kind, block.act) for block in blocks if block.row == 5] == [("mbconv", "swish")] * 2
    assert {(block.kind, block.act, block.splits) for block in blocks if block.row != 5} == {("skip", "relu", 0)}
    assert pynas.load_space("fbnetv2_f_28", pin={"stage3.act": "swish"}).table.rows[3].act == "swish"


genomes = st.sampled_from(sorted(SPACES)).flatmap(
    lambda name: st.tuples(
        st.just(SPACES[name]),
        st.tuples(*(st.integers(0, len(variable.values) - 1) for variable in SPACES[name].variables)),
    )
)


@given(genomes)
@settings(max_examples=200, deadline=None)
def test_decoding_and_encoding_are_inverse(case: tuple[Space, tuple[int, ...]]) -> None:
    space, genes = case
    genome = np.array(genes, np.uint8)
    architecture, recipe = space.decode(genome)
    assert np.array_equal(space.encode(architecture, recipe), genome)
    assert type(architecture).from_dict(architecture.to_dict()) == architecture
    assert (recipe is None) == (space.table.recipe is None)
    if recipe is not None:
        assert type(recipe).from_dict(recipe.to_dict()) == recipe


@given(genomes)
@settings(max_examples=60, deadline=None)
def test_costs_in_batch_are_the_sums_over_blocks(case: tuple[Space, tuple[int, ...]]) -> None:
    space, genes = case
    genome = np.array([genes], np.uint8)
    architecture, _ = space.decode(genome[0])
    batch = {name: int(values[0]) for name, values in space.costs(genome).items()}
    assert batch == architecture.cost()


def test_costs_beyond_32_bits_are_exact() -> None:
    text = (TABLES / "fbnetv3.yaml").read_text().replace("(224, 272, 8)", "[2240, 4480]")
    space = Space(parse_table(text, "large.yaml"))
    genomes = space.sample(70, seed=0)
    costs = space.costs(genomes)
    assert costs["flops"].max() > 2**36
    for i, genome in enumerate(genomes):
        assert {name: int(values[i]) for name, values in costs.items()} == space.decode(genome)[0].cost()


@given(genomes)
@settings(max_examples=60, deadline=None)
def test_a_network_reads_back_from_the_text_it_prints(case: tuple[Space, tuple[int, ...]]) -> None:
    space, genes = case
    architecture, _ = space.decode(np.array(genes, np.uint8))
    rows = "\n".join("  " + line for line in str(architecture).splitlines()[1:])
    text = f"name: x\ninput_channels: {architecture.input_channels}\nresolution: {architecture.resolution}\n"
    table = parse_table(f"{text}stages: |\n{rows}\n", "printed")
    assert table.rows == table_of(architecture).rows


def test_tied_variables_are_one_gene() -> None:
    space = SPACES["fbnetv3"]
    for genome in space.sample(100, seed=1):
        rows = space.decode(genome)[0].rows
        assert rows[4].e == rows[5].e


def test_the_learning_rate_is_four_times_as_high_with_sgd() -> None:
    space = SPACES["fbnetv3"]
    for genome in space.sample(50, seed=2):
        recipe = space.decode(genome)[1]
        assert recipe is not None
        low, high = (0.08, 0.12) if recipe.optimizer == "SGD" else (0.02, 0.03)
        assert low - 1e-12 <= recipe.lr <= high + 1e-12


def test_samples_lie_within_the_budget_and_depend_on_the_seed_alone() -> None:
    space = SPACES["fbnetv3"]
    budget = pynas.Budget(flops=(400e6, 550e6), params=(None, 9e6))
    first = space.sample(2000, budget=budget, seed=3, threads=1)
    assert first.dtype == np.uint8
    assert first.shape == (2000, 36)
    for threads in (2, 8):
        assert np.array_equal(first, space.sample(2000, budget=budget, seed=3, threads=threads))
    assert not np.array_equal(first, space.sample(2000, budget=budget, seed=4))
    costs = space.costs(first)
    assert costs["flops"].min() >= 400e6
    assert costs["flops"].max() <= 550e6
    assert costs["params"].max() <= 9e6


def test_a_budget_nothing_meets_says_what_there_is() -> None:
    with pytest.raises(PynasError, match=r"flops of at most 100000000; genomes of this space have 214116360 to"):
        SPACES["fbnetv3"].sample(10, budget=pynas.Budget(flops=(None, 100e6)))


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"flop": 1}, "unknown cost 'flop'; allowed: flops, macs, params, parameters"),
        ({"flops": (2e6, 1e6)}, "budget flops: the lower bound 2e.06 is above the upper bound 1e.06"),
        ({"flops": "12Q"}, "'12Q' is not an amount"),
        ({"flops": (1, 2, 3)}, r"allowed: \(low, high\)"),
        ({"flops": float("nan")}, "is not a finite cost"),
        ({"flops": "x"}, "'x' is not an amount"),
        ({"flops": True}, "True is not a number"),
        ({"flops": "1e999:"}, "is not a finite cost"),
        ({"flops": ":9.3e18"}, "is not a finite cost"),
    ],
)
def test_a_wrong_budget_is_an_error(costs: dict[str, object], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        pynas.Budget(**costs)


def test_budgets_read_units_and_open_ends() -> None:
    assert pynas.Budget.parse("flops=400M:550M", "params=:9M") == pynas.Budget(flops=(400e6, 550e6), params=(None, 9e6))
    assert pynas.Budget.parse("flops=1.5G") == pynas.Budget(flops=1.5e9)
    assert str(pynas.Budget.parse("flops=400M:")) == "flops=400M:"
    for text in ("flops", "flops=", "=400M"):
        with pytest.raises(PynasError):
            pynas.Budget.parse(text)


def test_encode_names_what_the_space_does_not_hold() -> None:
    small, large = SPACES["fbnetv3_28"], SPACES["fbnetv3"]
    architecture, recipe = large.decode(large.sample(1, seed=0)[0])
    with pytest.raises(PynasError, match=r"fbnetv3_28: 10 rows; the space has 8"):
        small.encode(architecture, recipe)
    wide = type(architecture)(architecture.rows, 999, architecture.input_channels)
    with pytest.raises(PynasError, match=r"resolution is 999; the space allows \[224, 232"):
        large.encode(wide, recipe)


def test_slices_are_counted_and_wrong_arrays_are_one_error() -> None:
    space = SPACES["fbnetv3_28"]
    genomes = space.sample(20, seed=0)
    assert np.array_equal(space.costs(genomes[::2])["flops"], space.costs(genomes)["flops"][::2])
    with pytest.raises(PynasError, match=r"fbnetv3_28: genomes has dtype int64"):
        space.costs(genomes.astype(np.int64))
    with pytest.raises(PynasError, match=r"seed -1; allowed: whole numbers from 0"):
        space.sample(3, seed=-1)
    with pytest.raises(PynasError, match=r"a genome of dtype float64; allowed: whole numbers"):
        space.decode(genomes[0] + 0.7)
    with pytest.raises(PynasError, match=r"pin ema: 1; allowed: True, False"):
        pynas.load_space("fbnetv3", pin={"ema": 1})
    assert len(pynas.load_space("fbnetv3", pin={"lr": 26 * 1e-3}).variables) == 35


def test_the_core_never_changes_its_arguments() -> None:
    space = SPACES["fbnetv3_28"]
    genomes = space.sample(64, seed=5)
    before = genomes.copy()
    genomes.flags.writeable = False
    space.costs(genomes)
    space.features(genomes)
    assert np.array_equal(genomes, before)
