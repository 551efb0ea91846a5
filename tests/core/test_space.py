"""Declaring, counting, sampling and featurising a space."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from conftest import UNBOUNDED, Declaration, declare_table2, random_genomes, within
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pynas import _core

SUMS = slice(-len(_core.COSTS), None)


def div8(x: float) -> int:
    if x > 0 and x % 8 == 0:
        return int(x)
    rounded = max(math.floor(x / 8 + 0.5), 1) * 8
    return rounded + 8 if rounded < 0.95 * x else rounded


def count_by_hand(table: Declaration, resolution: tuple[int, float], genome: np.ndarray) -> tuple[int, int, int, int]:
    """The published rule once more, straight from its statement, in Python's unbounded integers."""

    def value(field: tuple[int, float]) -> float:
        return field[1] if field[0] < 0 else table.variables[field[0]]["values"][genome[field[0]]]

    macs = pooled = weights = others = 0
    size, width = int(value(resolution)), 3

    def layer(count: int, positions: int, biases: int, norm: int) -> None:
        nonlocal macs, weights, others
        macs, weights, others = macs + count * positions, weights + count, others + biases + 2 * norm

    for row in table.rows:
        channels = int(value(row["c"]))
        for repeat in range(int(value(row["n"]))):
            first = repeat == 0
            k, e = int(value(row["k" if first else "k_rest"])), value(row["e" if first else "e_rest"])
            pad = int(value(row["pad"]))
            stride = int(value(row["s"])) if first else 1
            out = (size + 2 * (k // 2 if pad < 0 else pad) - k) // stride + 1
            mid = div8(width * e)
            if row["block"] == "skip" or (row["block"] == "mbconv" and k == 0):
                out = -(-size // stride)
                if stride > 1 or width != channels:
                    layer(width * channels, out * out, 0, channels)
            elif row["block"] == "conv":
                layer(k * k * width * channels, out * out, channels if row["bias"] else 0, channels)
            elif row["block"] == "mbconv":
                if mid != width:
                    layer(width * mid, size * size, 0, mid)
                splits = int(value(row["se"]))
                maps = mid * max(splits, 1)
                layer(k * k * maps, out * out, 0, maps)
                if splits:
                    hidden = div8(int(mid * 0.25 / e)) if row["se_from"] == "in" else div8(int(0.25 * mid))
                    pooled += mid * out * out
                    layer(mid * hidden + hidden * maps, 1, hidden + maps, 0)
                layer(mid * channels, out * out, 0, channels)
            elif row["block"] == "mbpool":
                layer(width * mid, size * size, 0, mid)
                pooled, out = pooled + mid * size * size, 1
                layer(mid * channels, 1, 0, 0)
            else:
                pooled, out = pooled + width * size * size, 1
                layer(width * channels, 1, channels, 0)
            size, width = out, channels
    return macs + pooled, macs, weights, weights + others


def test_table2_costs_against_the_rule_by_hand(table2):
    table, resolution = declare_table2()
    genomes = random_genomes(table2, 300, seed=5)
    expected = [count_by_hand(table, resolution, genome) for genome in genomes]
    assert table2.costs(genomes, 1).tolist() == [list(costs) for costs in expected]


numbers = st.sampled_from


@st.composite
def declarations(draw):
    """Small networks with variables anywhere: even kernels and none, odd paddings, fractional expansions, ties."""
    table = Declaration()
    tied = table.variable("tied", draw(numbers([[3, 5], [2, 3], [1, 4]])))
    kernels = numbers([3, 5, [3, 5], [2, 5, 4], tied])
    bypassed = numbers([3, 0, [3, 5], [0, 3, 5], [0, 4]])
    expansions = numbers([1, 0.75, 1.79, 5.46, [1, 2.5], range(2, 5), tied])
    for _ in range(draw(st.integers(1, 4))):
        block = draw(numbers(["conv", "mbconv", "mbconv", "skip"]))
        if block == "skip":
            strides = numbers([1, 1, 2, [1, 2]])
            table.row("skip", c=draw(numbers([16, 24, range(16, 25, 4), [8, 40]])), s=draw(strides))
            continue
        ks = kernels if block == "conv" else numbers([draw(kernels), draw(bypassed)])
        fields = {"k": draw(ks), "c": draw(numbers([12, range(16, 25, 4), [8, 40]])), "s": draw(numbers([1, 2]))}
        fields |= {"n": draw(numbers([1, 3, range(1, 4)])), "pad": draw(numbers([-1, -1, 1, 2, [-1, 1]]))}
        fields |= {"k_rest": draw(ks), "se": draw(numbers([0, 1, 2, 4, [0, 1], [0, 1, 2, 4]]))}
        fields |= {"se_from": draw(numbers(["in", "mid"])), "bias": draw(st.booleans())}
        table.row(block, **fields, e=draw(expansions), e_rest=draw(expansions))
    if draw(st.booleans()):
        table.row("mbpool", e=draw(numbers([6, [2, 3]])), c=draw(numbers([64, [32, 48]])))
    table.row("fc", c=10)
    return table, table.field("resolution", draw(numbers([48, range(40, 50), [33, 64]])))


@settings(max_examples=60, deadline=None)
@given(declarations(), st.integers(0, 2**32))
def test_tables_equal_blocks_and_the_rule_by_hand(declared, seed):
    table, resolution = declared
    try:
        space = table.compile(resolution)
    except ValueError as error:
        assume("smaller than the kernel" not in str(error))
        assume("too many joint choices" not in str(error))
        raise
    genomes = random_genomes(space, 20, seed=seed)
    costs = space.costs(genomes, 1)
    for genome, cost in zip(genomes, costs):
        assert space.blocks(genome)[:, SUMS].sum(0).tolist() == cost.tolist()
        assert count_by_hand(table, resolution, genome) == tuple(cost)
    lowest, highest = space.cost_range().T
    assert (lowest <= highest).all()


def test_a_skip_costs_nothing_where_it_is_the_identity():
    table = Declaration()
    table.row("conv", c=16)
    table.row("skip", c=[16, 24], s=[1, 2])
    table.row("skip", c=16)
    table.row("fc", c=10)
    space = table.compile(9)
    column = {name: i for i, name in enumerate(_core.BLOCK_COLUMNS)}
    for wider, strided in product(range(2), range(2)):
        blocks = space.blocks(np.array([wider, strided], np.uint8))
        first, second = blocks[1], blocks[2]
        width, out = (24 if wider else 16), (5 if strided else 9)
        assert first[column["out_size"]] == second[column["out_size"]] == out
        assert first[column["kernel"]] == 1
        assert first[column["padding"]] == 0
        weights = 16 * width if wider or strided else 0
        norms = 2 * width if wider or strided else 0
        assert first[SUMS].tolist() == [weights * out * out] * 2 + [weights, weights + norms]
        assert second[SUMS].any() == wider


def test_an_mbconv_with_kernel_0_is_a_skip_whatever_else_is_chosen():
    table = Declaration()
    table.row("conv", c=16)
    fields = {"c": [16, 24], "s": [1, 2], "n": 2, "e": [2, 6], "se": [0, 1, 4], "pad": 0}
    table.row("mbconv", k=[0, 3], k_rest=[0, 3], e_rest=2, **fields)
    table.row("fc", c=10)
    space = table.compile(33)
    other = Declaration()
    other.row("conv", c=16)
    other.row("skip", c=[16, 24], s=[1, 2])
    other.row("fc", c=10)
    kinds, kernel = _core.BLOCK_COLUMNS.index("kind"), _core.BLOCK_COLUMNS.index("kernel")
    names = [variable["name"] for variable in table.variables]
    for genome in random_genomes(space, 100, seed=2):
        genome[[names.index(name) for name in ("k1", "k_rest1")]] = 0
        blocks = space.blocks(genome)
        chosen = dict(zip(names, genome))
        skips = other.compile(33).blocks(np.array([chosen["c1"], chosen["s1"]], np.uint8))
        assert blocks[1][1:].tolist() == skips[1][1:].tolist()
        assert blocks[1][kernel] == 1
        assert blocks[2][SUMS].tolist() == [0] * len(_core.COSTS)
        assert blocks[2][kinds] == skips[1][kinds]
    conv = Declaration()
    conv.row("conv", k=[0, 3], c=8)
    with pytest.raises(ValueError, match=r"row 0 \(conv\): k can be 0; allowed are whole numbers from 1"):
        conv.compile(9)


def test_split_attention_of_one_split_is_squeeze_and_excite_and_more_splits_add_their_kernels():
    def block(se, se_from="in"):
        table = Declaration()
        table.row("mbconv", c=16, e=6, k=5, s=2, se=se, se_from=se_from)
        return table.compile(14, input_channels=16).blocks(np.zeros(0, np.uint8))[0]

    none, one, two, four = (block(se)[SUMS] for se in (0, 1, 2, 4))
    mid, hidden, area = 96, 8, 49
    assert (one - none).tolist() == [
        *(2 * mid * hidden + mid * area, 2 * mid * hidden),
        *(2 * mid * hidden, 2 * mid * hidden + mid + hidden),
    ]
    kernels, logits = 25 * mid, hidden * mid
    step = [kernels * area + logits] * 2 + [kernels + logits, kernels + logits + 2 * mid + mid]
    assert (two - one).tolist() == step
    assert (four - two).tolist() == [2 * value for value in step]
    hidden_of = _core.BLOCK_COLUMNS.index("se_channels")
    assert (block(2)[hidden_of], block(2, "mid")[hidden_of]) == (8, 24)


def test_round_channels_is_the_papers_rounding():
    for tenths in range(4000):
        assert _core.round_channels(tenths / 10) == div8(tenths / 10)
    for wrong in (-1, math.nan, math.inf, 1e16):
        with pytest.raises(ValueError, match=r"channels is .*; allowed are 0 to 1e\+15"):
            _core.round_channels(wrong)


def test_costs_need_64_bits():
    table = Declaration()
    table.row("conv", k=7, c=4096)
    table.row("conv", k=7, c=4096)
    costs = table.compile(2048).costs(np.zeros((1, 0), np.uint8), 1)[0]
    assert costs[1] == 2048 * 2048 * 49 * (3 * 4096 + 4096 * 4096)
    assert costs[1] > 2**51


def test_costs_do_not_wrap():
    table = Declaration()
    for _ in range(3):
        table.row("conv", k=255, c=65536, n=100)
    with pytest.raises(ValueError, match="64 bits"):
        table.compile(16384)


def test_cost_range_is_exact_on_a_small_space():
    table = Declaration()
    table.row("conv", c=[8, 16, 24], k=[3, 5], s=2)
    table.row("mbconv", c=range(8, 33, 8), e=[1, 3, 6], n=range(1, 4), se=[0, 1])
    table.row("fc", c=10)
    space = table.compile(range(32, 65, 16))
    every = np.array(list(product(*(range(len(v["values"])) for v in table.variables))), np.uint8)
    costs = space.costs(every, 2)
    assert space.cost_range().tolist() == np.stack([costs.min(0), costs.max(0)], 1).tolist()


def test_features_by_hand():
    table = Declaration()
    table.variable("kernel", [3, 5, 7])
    table.variable("width", range(16, 33, 8))
    table.variable("pair", [0, 1])
    table.variables.append({"name": "uneven", "kind": "range", "group": "recipe", "values": [1.0, 2.0, 5.0]})
    space = table.compile()
    features = space.features(np.array([[0, 0, 0, 0], [2, 1, 1, 1], [1, 2, 0, 2]], np.uint8))
    assert features.dtype == np.float32
    assert features.tolist() == [
        [1, 0, 0, 0.0, 1, 0, 0.00],
        [0, 0, 1, 0.5, 0, 1, 0.25],
        [0, 1, 0, 1.0, 1, 0, 1.00],
    ]


@pytest.mark.parametrize(("ema", "width"), [(False, 43), (True, 45)])
def test_table2_features(ema, width):
    table, resolution = declare_table2(ema)
    space = table.compile(resolution)
    features = space.features(random_genomes(space, 100))
    assert features.shape == (100, width)
    assert features.min() == 0
    assert features.max() == 1


def test_sampling_is_uniform():
    table = Declaration()
    table.variable("three", [0, 1, 2])
    table.variable("seven", range(7))
    table.variable("two", [0, 1])
    genomes = random_genomes(table.compile(), 84_000)
    codes = genomes @ np.array([14, 2, 1])
    counts = np.bincount(codes, minlength=42)
    assert len(counts) == 42
    # Chi-squared with 41 degrees of freedom: 95 is beyond a probability of 1e-5.
    assert ((counts - 2000) ** 2 / 2000).sum() < 95


def test_sampling_within_bounds_is_uniform_among_them():
    table = Declaration()
    table.row("conv", c=range(8, 25, 8), k=[3, 5])
    table.row("fc", c=10)
    space = table.compile(16)
    every = np.array(list(product(range(2), range(3))), np.uint8)
    flops = space.costs(every, 1)[:, 0]
    lower, upper = within({"flops": int(np.sort(flops)[1])}, {"flops": int(np.sort(flops)[4])})
    inside = (flops >= lower[0]) & (flops <= upper[0])
    assert inside.sum() == 4
    counts = np.bincount(space.sample(40_000, 3, lower, upper, 1) @ np.array([3, 1]), minlength=6)
    assert (counts[~inside] == 0).all()
    assert ((counts[inside] - 10_000) ** 2 / 10_000).sum() < 30


def test_samples_are_within_bounds_and_the_same_for_any_threads(table2):
    lower, upper = within({"flops": 400_000_000, "params": 8_000_000}, {"flops": 800_000_000})
    genomes = table2.sample(5000, 1, lower, upper, 1)
    costs = table2.costs(genomes, 2)
    assert genomes.shape == (5000, 35)
    assert ((costs >= lower) & (costs <= upper)).all()
    for threads in (2, 8):
        assert (table2.sample(5000, 1, lower, upper, threads) == genomes).all()
    assert (table2.sample(100, 1, lower, upper, 1) == genomes[:100]).all()
    assert (table2.sample(100, 2, lower, upper, 1) != genomes[:100]).any()


def test_hardly_reachable_bounds_are_met_by_repair(table2):
    lower, upper = within({}, {"flops": 230_000_000})  # hit by fewer than one in a million uniform draws
    genomes = table2.sample(200, 1, lower, upper, 2)
    assert (table2.costs(genomes, 1)[:, 0] <= 230_000_000).all()
    assert len(np.unique(genomes, axis=0)) == 200
    assert (table2.sample(200, 1, lower, upper, 1) == genomes).all()


@pytest.mark.parametrize(
    ("lower", "upper", "told"),
    [
        ({}, {"flops": 1000}, ["flops of at most 1000", "214116360 to"]),
        ({"params": 10**9}, {}, ["params of at least 1000000000", "6647488 to"]),
        ({}, {"flops": 1000, "macs": 2000}, ["flops of at most 1000", "macs of at most 2000"]),
        (
            {"flops": 5 * 10**8},
            {"flops": 4 * 10**8},
            ["at least 500000000 and at most 400000000", "exclude each other"],
        ),
        ({"flops": 22 * 10**8}, {"params": 7 * 10**6}, ["together", "flops from 2200000000", "to 7000000"]),
    ],
)
def test_unreachable_bounds_are_named(table2, lower, upper, told):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        table2.sample(10, 0, *within(lower, upper), 1)
    for part in told:
        assert part in str(error.value)
    assert str(2**63)[:-1] not in str(error.value)  # a bound that nobody gave


def test_from_unit(table2):
    choices = [len(variable["values"]) for variable in declare_table2()[0].variables]
    points = np.random.default_rng(0).random((500, 35))
    points[0], points[1] = 0, np.nextafter(1, 0)
    genomes = table2.from_unit(points)
    assert (genomes == np.floor(points * choices)).all()
    for wrong in (1.0, -0.1, np.nan):
        points[7, 3] = wrong
        with pytest.raises(ValueError, match="row 7, variable 3"):
            table2.from_unit(points)


def variables(**change):
    base = {"name": "width", "kind": "range", "group": "architecture", "values": [8.0, 16.0]}
    return [{**base, **change}]


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        (variables(values=[1.0]), "1 choices; allowed are 2 to 256"),
        (variables(values=[float(i) for i in range(257)]), "257 choices"),
        (variables(values=[1.0, 1.0]), "same value twice"),
        (variables(values=[1.0, math.inf]), "finite"),
        (variables(kind="set"), 'allowed are "range" and "list"'),
        (variables(group="other"), 'allowed are "architecture" and "recipe"'),
        (variables(values="ab"), "wrong type"),
        (variables() * 2, 'two variables are named "width"'),
        (variables(group="recipe") + variables(name="later"), "architecture variables come first"),
        ([{"name": "width"}], 'lacks "kind"'),
    ],
)
def test_wrong_variables(declared, told):
    with pytest.raises(ValueError, match=told):
        _core.Space(declared, [], (-1, 0.0), 3)


@pytest.mark.parametrize(
    ("block", "fields", "told"),
    [
        ("pool", {}, 'block is "pool"; allowed are conv, mbconv, mbpool, fc and skip'),
        ("conv", {"c": (5, 0.0)}, "refers to variable 5; there are 1 variables"),
        ("conv", {"c": (0, 0.0)}, "only architecture variables"),
        ("conv", {"k": 2.5}, "k can be 2.5; allowed are whole numbers"),
        ("conv", {"n": 0}, "n can be 0"),
        ("mbconv", {"se": [0, 5]}, "se can be 5; allowed are whole numbers from 0 to 4"),
        ("mbconv", {"se": [0, 3]}, "se can be 3; allowed are 0, 1, 2 and 4"),
        ("mbconv", {"se_from": "out"}, '"se_from" is "out"; allowed are "in" and "mid"'),
        ("conv", {"bias": "yes"}, "\"bias\" is 'yes', which is of the wrong type"),
        ("skip", {"n": 2}, "n can be 2; allowed are whole numbers from 1 to 1"),
        ("skip", {"s": 0}, "s can be 0"),
        ("mbconv", {"e": 0}, "e can be 0"),
        ("fc", {"n": 2}, "n can be 2; allowed are whole numbers from 1 to 1"),
        ("conv", {"k": [3, 9], "pad": 0}, "8 x 8 with padding 0 is smaller than the kernel 9"),
    ],
)
def test_wrong_rows(block, fields, told):
    table = Declaration()
    table.row(block, **fields)
    table.variables.append({"name": "lr", "kind": "range", "group": "recipe", "values": [1.0, 2.0]})
    with pytest.raises(ValueError, match=told):
        table.compile(8)


def test_too_large_a_cost_term_is_refused():
    table = Declaration()
    many = range(1, 201)
    table.row("mbconv", c=many, n=many, s=many, k=[3, 5])
    with pytest.raises(ValueError, match=r"too many joint choices .* n0"):
        table.compile(64)


GENOME_CALLS = {
    "costs": lambda space, genomes: space.costs(genomes, 1),
    "features": lambda space, genomes: space.features(genomes),
    "blocks": lambda space, genomes: space.blocks(genomes[0]),
}


@pytest.mark.parametrize("name", GENOME_CALLS)
def test_wrong_genomes(table2, name):
    call = GENOME_CALLS[name]
    genomes = random_genomes(table2, 1 if name == "blocks" else 9)
    kept = genomes.copy()
    call(table2, genomes)
    assert (genomes == kept).all()
    genomes[-1, 2] = 2
    with pytest.raises(ValueError, match=rf'row {len(genomes) - 1}, variable 2 \("k1"\) is 2; allowed are 0 to 1'):
        call(table2, genomes)
    genomes[-1, 2] = 0
    with pytest.raises(ValueError, match=r"has dtype int64; expected .* dtype uint8"):
        call(table2, genomes.astype(np.int64))
    with pytest.raises(ValueError, match=r"has shape .*34"):
        call(table2, genomes[:, 1:].copy())
    with pytest.raises(ValueError, match="not C-contiguous"):
        call(table2, np.repeat(genomes, 2, axis=1)[:, ::2])
    if name != "blocks":
        with pytest.raises(ValueError, match="is a list; expected"):
            call(table2, genomes.tolist())


def test_wrong_sampling_arguments(table2):
    lower, upper = UNBOUNDED
    with pytest.raises(ValueError, match="threads is 0"):
        table2.sample(1, 0, lower, upper, 0)
    with pytest.raises(ValueError, match="n is -1"):
        table2.sample(-1, 0, lower, upper, 1)
    with pytest.raises(ValueError, match=r"upper has dtype float64"):
        table2.sample(1, 0, lower, upper.astype(float), 1)
    with pytest.raises(ValueError, match=r"lower has shape \(3,\)"):
        table2.sample(1, 0, lower[:3], upper, 1)
    assert table2.sample(0, 0, lower, upper, 1).shape == (0, 35)
