"""The shipped networks: every published digit, from the data files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_pynas

from pynas.errors import PynasError
from pynas.space.architecture import Architecture, round_channels
from pynas.space.space import load_architecture, load_design, table_of
from pynas.space.table import TABLES, ZOO, format_network, parse_table

# Input, then FLOPs and params by the published rule, MACs, and the true parameter count.
PUBLISHED = {
    "fbnetv2_f1": (128, 56_410_560, 5_999_408, 56_231_936, 6_024_744),
    "fbnetv2_f2": (160, 85_441_392, 5_999_408, 85_163_192, 6_024_744),
    "fbnetv2_f3": (192, 121_824_000, 6_899_504, 121_423_712, 6_924_840),
    "fbnetv2_f4": (224, 238_351_984, 6_994_824, 237_605_592, 7_022_880),
    "fbnetv2_l1": (224, 326_023_008, 8_496_520, 325_025_344, 8_538_792),
    "fbnetv2_l2": (256, 423_912_768, 8_496_520, 422_610_304, 8_538_792),
    "fbnetv3_a": (224, 356_598_280, 8_542_224, 355_514_328, 8_598_480),
    "fbnetv3_b": (248, 461_550_136, 8_542_224, 460_150_000, 8_598_480),
    "fbnetv3_c": (248, 556_969_904, 9_907_136, 555_578_368, 9_973_816),
    "fbnetv3_d": (248, 644_420_352, 10_237_552, 642_628_864, 10_306_296),
    "fbnetv3_e": (264, 762_046_336, 10_699_464, 759_952_160, 10_772_896),
    "fbnetv3_f": (272, 1_181_644_520, 13_803_072, 1_178_860_656, 13_896_160),
    "fbnetv3_g": (320, 2_129_656_384, 16_513_648, 2_125_187_200, 16_623_920),
}
MACS_AT_224_AND_256 = {
    "a": (355_514_328, 470_759_704),
    "b": (355_514_328, 470_759_704),
    "c": (428_145_032, 568_020_616),
    "d": (501_971_056, 653_862_016),
    "e": (542_047_656, 711_000_128),
    "f": (762_038_592, 1_003_844_928),
    "g": (1_045_075_744, 1_362_755_584),
}
MACS_WITH_SAME_PADDING = {
    "a": 407_508_576,
    "b": 520_022_232,
    "c": 633_963_128,
    "d": 642_628_864,
    "e": 858_534_728,
    "f": 1_269_864_240,
    "g": 2_125_187_200,
}
# timm's fbnetv3_b, _d and _g: parameters, MACs at 224 and at 256. Same padding, and no bias in the stem.
TIMM = {
    "b": (8_598_464, 407_508_576, 530_631_936),
    "d": (10_306_272, 501_971_056, 653_862_016),
    "g": (16_623_888, 1_045_075_744, 1_362_755_584),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_are_exact(name: str) -> None:
    architecture = load_architecture(name)
    cost = architecture.cost()
    counted = (architecture.resolution, cost["flops"], cost["params"], cost["macs"], cost["parameters"])
    assert counted == PUBLISHED[name]


@pytest.mark.parametrize("letter", MACS_AT_224_AND_256)
def test_macs_at_other_inputs(letter: str) -> None:
    macs = [load_architecture(f"fbnetv3_{letter}", resolution=size).cost()["macs"] for size in (224, 256)]
    assert tuple(macs) == MACS_AT_224_AND_256[letter]


@pytest.mark.parametrize("letter", MACS_WITH_SAME_PADDING)
def test_same_padding_is_the_other_published_column(letter: str) -> None:
    name = f"fbnetv3_{letter}"
    assert load_architecture(name, padding="same").cost()["macs"] == MACS_WITH_SAME_PADDING[letter]
    text = (ZOO / f"{name}.yaml").read_text()
    table = parse_table(f"padding: same\n{text}", "same")
    assert table.rows == table_of(load_architecture(name, padding="same")).rows


@pytest.mark.parametrize("letter", TIMM)
def test_timms_counts(letter: str) -> None:
    plain = load_architecture(f"fbnetv3_{letter}").with_(padding="same", stem_bias=False)
    macs = [plain.with_(resolution=size).cost()["macs"] for size in (224, 256)]
    assert (plain.cost()["parameters"], *macs) == TIMM[letter]


def test_the_network_of_the_recipe_only_search() -> None:
    """Table 10 of the appendix prints no counts; widths, blocks and strides are its own."""
    architecture = load_architecture("fbnetv2_l3")
    blocks = architecture.blocks()
    assert (architecture.resolution, len(blocks), sum(block.identity for block in blocks)) == (256, 34, 1)
    assert [block.channels for block in blocks if block.stride == 2] == [16, 24, 40, 72, 208]
    hidden = {(block.mid_channels, block.se_channels) for block in blocks if block.se_channels}
    assert (224, 56) in hidden  # 128 * 1.77; the rule of FBNetV3 would make it 32, a quarter of 128
    assert hidden == {(mid, round_channels(mid // 4)) for mid, _ in hidden}
    assert architecture.cost()["flops"] == 626_312_896


def test_shipped_networks_read_back_from_what_is_written() -> None:
    for path in ZOO.glob("*.yaml"):
        architecture = load_architecture(path.stem)
        written = parse_table(format_network(architecture, name=path.stem), path.name)
        assert written.rows == table_of(architecture).rows, path.stem
        assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_loading_with_another_input_and_head() -> None:
    base = load_architecture("fbnetv3_b")
    changed = load_architecture(ZOO / "fbnetv3_b.yaml", resolution=64, classes=10, input_channels=1)
    assert (changed.resolution, changed.classes, changed.input_channels) == (64, 10, 1)
    assert changed.rows[:-1] == base.rows[:-1]
    blocks = changed.blocks()
    assert (blocks[0].in_channels, blocks[-1].channels) == (1, 10)


def test_a_genome_of_a_space_is_a_network() -> None:
    indices = [0] * 36
    by_numbers, recipe = load_design("fbnetv3", indices)
    assert by_numbers == load_architecture("fbnetv3", genome=",".join(map(str, indices)))
    assert by_numbers.cost()["flops"] == 214_116_360
    assert recipe is not None
    assert recipe.lr == pytest.approx(0.02)
    assert load_design("fbnetv3_a")[1] is None


def test_a_fixed_network_with_a_recipe_to_search_has_no_recipe_yet(tmp_path: Path) -> None:
    zoo, space = (ZOO / "fbnetv3_a.yaml").read_text(), (TABLES / "fbnetv3.yaml").read_text()
    path = tmp_path / "open.yaml"
    path.write_text(zoo + space[space.index("recipe:") :])
    assert load_design(path) == (load_architecture("fbnetv3_a"), None)


def test_a_small_input_leaves_out_the_second_stride() -> None:
    base, small = load_architecture("fbnetv3_b"), load_architecture("fbnetv3_b", small_input=True)
    strides = [[row.s for row in architecture.rows] for architecture in (base, small)]
    assert [row for row, (before, after) in enumerate(zip(*strides, strict=True)) if before != after] == [2]
    assert (base.rows[2].s, small.rows[2].s) == (2, 1)
    sizes = [block.out_size for block in load_architecture("fbnetv3_b", small_input=True, resolution=32).blocks()]
    assert sizes[0] == sizes[3] == 16
    assert small.cost()["parameters"] == base.cost()["parameters"]
    one_stride = Architecture((small.rows[0], *(row for row in small.rows[1:] if row.s == 1)), 32)
    with pytest.raises(PynasError, match="small_input: the network has 1 stride-two blocks; it needs at least 2"):
        one_stride.with_(small_input=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fbnetv9"}, "no table 'fbnetv9': neither a file nor one of"),
        ({"name": "fbnetv3"}, "fbnetv3: is a space with 36 variables, not one network; name a network such as"),
        ({"genome": "0,x"}, "genome '0,x': write whole numbers with commas between"),
        ({"genome": [1]}, r"fbnetv3_b: a genome of shape \(1,\); allowed: \(0,\)"),
        ({"resolution": 0}, "resolution: 0; allowed: a whole number of at least 1"),
        ({"resolution": 12}, "a feature map of 2 x 2 with padding 1 is smaller than the kernel 5"),
        ({"classes": True}, "classes: True; allowed: a whole number of at least 1"),
        ({"input_channels": 1.5}, "input_channels: 1.5; allowed: a whole number"),
        ({"padding": "valid"}, "padding: 'valid'; allowed: same"),
    ],
)
def test_what_no_network_can_have_is_an_error(change: dict[str, object], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        load_architecture(**{"name": "fbnetv3_b", **change})  # type: ignore[arg-type]


def test_the_command_line_counts_with_every_option() -> None:
    options = ["--resolution", "256", "--padding", "same", "--classes", "10", "--input-channels", "1", "--small-input"]
    done = run_pynas("count", "fbnetv3_b", *options, "--json")
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    given = {"resolution": 256, "padding": "same", "classes": 10, "input_channels": 1, "small_input": True}
    expected = load_architecture("fbnetv3_b", **given)  # type: ignore[arg-type]
    assert {key: counted[key] for key in expected.cost()} == expected.cost()
    assert len(counted["blocks"]) == len(expected.blocks())


def test_the_zoo_needs_no_torch() -> None:
    code = (
        "import sys; from pynas.space.space import load_architecture; from pynas.nets.scale import scale_to\n"
        "scale_to(load_architecture('fbnetv2_l3'), flops=4e8); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == "False", done.stderr
