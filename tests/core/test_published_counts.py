"""The counting rule against the published FBNetV3 models: every digit of FLOPs, weights, MACs and parameters."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Declaration, declare_table2, random_genomes

from pynas import _core

# (k, c, s, n, e, se) and optionally the padding of the depthwise convolution, row by row from the stem to stage 5.
ROWS_AB = [
    (3, 16, 1, 2, 1, 0), (5, 24, 2, 1, 4, 0), (5, 24, 1, 3, 2, 0), (5, 40, 2, 1, 5, 1), (5, 40, 1, 4, 3, 1),
    (5, 72, 2, 1, 5, 0, 1), (3, 72, 1, 4, 3, 0), (3, 120, 1, 1, 5, 1), (5, 120, 1, 5, 3, 1),
    (3, 184, 2, 1, 6, 1, 0), (5, 184, 1, 5, 4, 1), (5, 224, 1, 1, 6, 1),
]  # fmt: skip
ROWS_C = [
    (3, 16, 1, 2, 1, 0), (5, 24, 2, 1, 5, 0), (3, 24, 1, 4, 3, 0), (5, 48, 2, 1, 5, 1), (5, 48, 1, 4, 2, 1),
    (5, 88, 2, 1, 4, 0, 1), (3, 88, 1, 4, 3, 0), (3, 120, 1, 1, 4, 1), (5, 120, 1, 5, 3, 1),
    (5, 216, 2, 1, 5, 1, 1), (5, 216, 1, 5, 5, 1), (5, 216, 1, 1, 6, 1),
]  # fmt: skip
ROWS_D = [
    (3, 16, 1, 2, 1, 0), (3, 24, 2, 1, 5, 0), (3, 24, 1, 5, 2, 0), (5, 40, 2, 1, 4, 1), (3, 40, 1, 4, 3, 1),
    (3, 72, 2, 1, 5, 0), (3, 72, 1, 4, 3, 0), (3, 128, 1, 1, 5, 1), (5, 128, 1, 6, 3, 1),
    (3, 208, 2, 1, 6, 1), (5, 208, 1, 5, 5, 1), (5, 240, 1, 1, 6, 1),
]  # fmt: skip
ROWS_E = [
    (3, 16, 1, 3, 1, 0), (5, 24, 2, 1, 4, 0), (5, 24, 1, 4, 2, 0), (5, 48, 2, 1, 4, 1), (5, 48, 1, 4, 3, 1),
    (5, 80, 2, 1, 5, 0, 1), (3, 80, 1, 4, 3, 0), (3, 128, 1, 1, 5, 1), (5, 128, 1, 7, 3, 1),
    (3, 216, 2, 1, 6, 1), (5, 216, 1, 5, 5, 1), (5, 240, 1, 1, 6, 1),
]  # fmt: skip
ROWS_F = [
    (3, 24, 1, 3, 1, 0), (5, 32, 2, 1, 4, 0), (5, 32, 1, 4, 2, 0), (5, 56, 2, 1, 4, 1), (5, 56, 1, 4, 3, 1),
    (5, 88, 2, 1, 5, 0), (3, 88, 1, 4, 3, 0), (3, 144, 1, 1, 5, 1), (5, 144, 1, 8, 3, 1),
    (3, 248, 2, 1, 6, 1, 0), (5, 248, 1, 6, 5, 1), (5, 272, 1, 1, 6, 1),
]  # fmt: skip
ROWS_G = [
    (3, 24, 1, 3, 1, 0), (5, 40, 2, 1, 4, 0), (5, 40, 1, 4, 2, 0), (5, 56, 2, 1, 4, 1), (5, 56, 1, 4, 3, 1),
    (5, 104, 2, 1, 5, 0), (3, 104, 1, 4, 3, 0), (3, 160, 1, 1, 5, 1), (5, 160, 1, 8, 3, 1),
    (3, 264, 2, 1, 6, 1), (5, 264, 1, 6, 5, 1), (5, 288, 1, 2, 6, 1),
]  # fmt: skip

# name: (stem width, rows, input, (flops, macs, params, parameters))
PUBLISHED = {
    "A": (16, ROWS_AB, 224, (356_598_280, 355_514_328, 8_542_224, 8_598_480)),
    "B": (16, ROWS_AB, 248, (461_550_136, 460_150_000, 8_542_224, 8_598_480)),
    "C": (16, ROWS_C, 248, (556_969_904, 555_578_368, 9_907_136, 9_973_816)),
    "D": (24, ROWS_D, 248, (644_420_352, 642_628_864, 10_237_552, 10_306_296)),
    "E": (24, ROWS_E, 264, (762_046_336, 759_952_160, 10_699_464, 10_772_896)),
    "F": (24, ROWS_F, 272, (1_181_644_520, 1_178_860_656, 13_803_072, 13_896_160)),
    "G": (32, ROWS_G, 320, (2_129_656_384, 2_125_187_200, 16_513_648, 16_623_920)),
}
MACS = {
    ("A", 256): 470_759_704, ("C", 224): 428_145_032, ("C", 256): 568_020_616, ("D", 224): 501_971_056,
    ("D", 256): 653_862_016, ("E", 224): 542_047_656, ("E", 256): 711_000_128, ("F", 224): 762_038_592,
    ("F", 256): 1_003_844_928, ("G", 224): 1_045_075_744, ("G", 256): 1_362_755_584,
}  # fmt: skip
MACS_SYMMETRIC = {
    ("A", 224): 407_508_576, ("B", 248): 520_022_232, ("B", 256): 530_631_936, ("C", 248): 633_963_128,
    ("D", 248): 642_628_864, ("E", 264): 858_534_728, ("F", 272): 1_269_864_240, ("G", 320): 2_125_187_200,
}  # fmt: skip
SIZES = {  # feature sizes after each stride
    "A": [112, 56, 28, 13, 6], "B": [124, 62, 31, 15, 7], "C": [124, 62, 31, 15, 7], "D": [124, 62, 31, 16, 8],
    "E": [132, 66, 33, 16, 8], "F": [136, 68, 34, 17, 8], "G": [160, 80, 40, 20, 10],
}  # fmt: skip


def compile_model(name: str, resolution: int, symmetric: bool = False):
    stem, rows, _, _ = PUBLISHED[name]
    model = Declaration()
    model.row("conv", c=stem, s=2)
    for k, c, s, n, e, se, *pad in rows:
        model.row("mbconv", k=k, c=c, s=s, n=n, e=e, se=se, pad=-1 if symmetric or not pad else pad[0])
    model.row("mbpool", e=6, c=1984)
    model.row("fc", c=1000)
    return model.compile(resolution)


EMPTY = np.zeros((1, 0), np.uint8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_costs(name):
    *_, resolution, expected = PUBLISHED[name]
    assert tuple(compile_model(name, resolution).costs(EMPTY, 1)[0]) == expected


@pytest.mark.parametrize(("name", "resolution"), MACS)
def test_macs_at_other_inputs(name, resolution):
    assert compile_model(name, resolution).costs(EMPTY, 1)[0, 1] == MACS[name, resolution]


@pytest.mark.parametrize(("name", "resolution"), MACS_SYMMETRIC)
def test_macs_with_symmetric_padding(name, resolution):
    assert compile_model(name, resolution, symmetric=True).costs(EMPTY, 1)[0, 1] == MACS_SYMMETRIC[name, resolution]


@pytest.mark.parametrize("name", SIZES)
def test_feature_sizes(name):
    blocks = compile_model(name, PUBLISHED[name][2]).blocks(EMPTY[0])
    stride, size = (blocks[:, _core.BLOCK_COLUMNS.index(column)] for column in ("stride", "out_size"))
    assert list(size[stride == 2]) == SIZES[name]


def test_blocks_of_b_by_hand():
    blocks = compile_model("B", 248).blocks(EMPTY[0])
    column = {name: blocks[:, i] for i, name in enumerate(_core.BLOCK_COLUMNS)}
    assert len(blocks) == 1 + 2 + 4 + 5 + 5 + 6 + 6 + 1 + 2
    assert [_core.BLOCK_KINDS[kind] for kind in column["kind"][[0, 1, -2, -1]]] == ["conv", "mbconv", "mbpool", "fc"]
    # About a quarter of the channels before the expansion: 24 -> 8, 40 -> 16, 72 -> 24 (no SE before), 120, 184.
    squeezed = {(int(c), int(se)) for c, se in zip(column["in_channels"], column["se_channels"]) if se}
    assert squeezed == {(24, 8), (40, 16), (72, 24), (120, 32), (184, 48)}
    # Stage 1 has no expansion: depthwise 3 x 3 and a projection on 124 x 124, batch norm after both.
    assert column["mid_channels"][1] == 16
    assert column["macs"][1] == 124 * 124 * (9 * 16 + 16 * 16)
    assert column["parameters"][1] == 9 * 16 + 16 * 16 + 4 * 16
    # The classifier: one pool of 1984 elements, weights and biases.
    assert list(blocks[-1, -4:]) == [1984 * 1000 + 1984, 1984 * 1000, 1984 * 1000, 1984 * 1000 + 1000]


def test_table2_distribution_and_corners(table2):
    """200 000 uniform samples under the published rule, whose widths are multiples of 8 after every expansion."""
    flops, _, params, _ = table2.costs(random_genomes(table2, 200_000), 1).T
    assert np.percentile(flops / 1e6, [5, 50, 95]) == pytest.approx([560, 819, 1177], abs=4)
    assert 270e6 < flops.min() < 350e6
    assert 1750e6 < flops.max() < 2000e6
    assert np.mean((flops >= 400e6) & (flops <= 800e6)) == pytest.approx(0.459, abs=0.005)
    assert np.median(params) == pytest.approx(10.3e6, abs=0.05e6)
    first, last = np.zeros((1, 35), np.uint8), np.array([[len(v["values"]) - 1 for v in declare_table2()[0].variables]])
    corners = np.concatenate([table2.costs(first, 1), table2.costs(last.astype(np.uint8), 1)])
    assert corners[:, 0].tolist() == [214_116_360, 2_321_534_344]
    assert corners[0, 1] == 213_440_920
    lowest, highest = table2.cost_range().T
    assert (lowest <= corners.min(0)).all()
    assert (highest >= corners.max(0)).all()
    assert highest[0] > 2**31


def test_table2_size_is_the_paper_s():
    choices = [len(variable["values"]) for variable in declare_table2()[0].variables]
    assert len(choices) == 35
    assert np.prod([float(c) for c in choices[1:29]]) == pytest.approx(175_878_910_771_200_000)
    assert np.prod(choices[29:]) == 9_452_520
    assert np.prod([len(v["values"]) for v in declare_table2(ema=True)[0].variables[29:]]) == 18_905_040
