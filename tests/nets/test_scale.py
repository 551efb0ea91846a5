"""Compound scaling: what the multipliers do, and how near a target comes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import run_pynas

from pynas.errors import PynasError
from pynas.nets.scale import CLOSE, Scaled, compound_scale, scale_to
from pynas.space.architecture import Recipe, round_channels
from pynas.space.space import load_architecture, load_design

B, E, L2 = (load_architecture(name) for name in ("fbnetv3_b", "fbnetv3_e", "fbnetv2_l2"))
RECIPE = Recipe(0.026, "RMSProp", True, 0.17, 0.09, 0.19, 7e-6)


def test_a_multiplier_of_one_changes_nothing() -> None:
    space_row = replace(B.rows[1], c=20)  # a width of the search space that is no multiple of 8
    odd = replace(B, rows=(B.rows[0], space_row, *B.rows[2:]), resolution=250)
    scaled = compound_scale(odd, RECIPE)
    assert (scaled.architecture, scaled.recipe) == (odd, RECIPE)


def test_width_scales_channels_to_multiples_of_8_and_leaves_the_head() -> None:
    scaled = compound_scale(L2, width=1.1).architecture
    for before, after in zip(L2.rows[:-2], scaled.rows[:-2], strict=True):
        assert after == replace(before, c=round_channels(before.c * 1.1))
        assert after.c % 8 == 0
        assert after.c >= 0.95 * 1.1 * before.c
    assert scaled.rows[-2:] == L2.rows[-2:]
    assert {row.c for row in scaled.rows} > {72, 120, 200}  # of 64, 112 and 184


def test_depth_scales_the_blocks_of_stages_rounded_up() -> None:
    def repeats(depth: float) -> list[int]:
        return [row.n for row in compound_scale(B, depth=depth).architecture.rows]

    # Stages of B: 2, 1 + 3, 1 + 4, 1 + 4, 1 + 5, 1 + 5 and 1 blocks. The longest row of each takes the new ones.
    assert repeats(1.0) == [1, 2, 1, 3, 1, 4, 1, 4, 1, 5, 1, 5, 1, 1, 1]
    assert repeats(1.2) == [1, 3, 1, 4, 1, 5, 1, 5, 1, 7, 1, 7, 2, 1, 1]
    assert repeats(2.0) == [1, 4, 1, 7, 1, 9, 1, 9, 1, 11, 1, 11, 2, 1, 1]
    assert repeats(0.5) == [1, 1, 1, 1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1]
    assert repeats(0.01) == [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    fifty = replace(B, rows=(B.rows[0], replace(B.rows[1], n=50), *B.rows[2:]))
    assert compound_scale(fifty, depth=1.1).architecture.rows[1].n == 55  # although 50 * 1.1 is a little more


def test_rows_of_equal_length_give_the_last_blocks_first() -> None:
    rows = compound_scale(L2, depth=1.3).architecture.rows
    assert [row.n for row in rows[2:6]] == [1, 1, 1, 3]  # one stage of four rows: 4 * 1.3 is above 5
    assert [row.n for row in rows if row.block == "skip"] == [1, 1]


def test_a_stride_begins_a_stage_even_where_the_width_stays() -> None:
    rows = (*B.rows[:3], replace(B.rows[2], n=2), *B.rows[4:])
    assert [row.n for row in compound_scale(replace(B, rows=rows), depth=1.2).architecture.rows[2:4]] == [2, 3]
    plain = (*B.rows[:3], replace(B.rows[2], n=2, s=1), *B.rows[4:])
    assert [row.n for row in compound_scale(replace(B, rows=plain), depth=1.2).architecture.rows[2:4]] == [1, 3]


def test_resolution_is_rounded_to_a_multiple_of_8() -> None:
    sizes = [compound_scale(B, resolution=factor).architecture.resolution for factor in (1.15, 0.9, 224 / 248, 2)]
    assert sizes == [288, 224, 224, 496]


def test_the_recipe_changes_only_on_the_way_up() -> None:
    assert scale_to(B, RECIPE, flops=350e6).recipe == RECIPE
    assert scale_to(E, RECIPE, flops=1.18e9).recipe == replace(RECIPE, stochastic_depth=0.2)
    strong = replace(RECIPE, stochastic_depth=0.3)
    assert scale_to(E, strong, flops=1.18e9).recipe == strong
    assert scale_to(E, flops=1.18e9).recipe is None


@pytest.mark.parametrize(
    ("base", "flops"), [(B, 356_598_280), (E, 1_181_644_520), (E, 2_129_656_384), (L2, 120e6), (E, 20e9)]
)
def test_targets_of_the_paper_and_further_ones_are_reached(base: object, flops: float) -> None:
    assert isinstance(base, type(B))
    scaled = scale_to(base, flops=flops)
    assert abs(scaled.error) < 0.03
    assert scaled.flops == scaled.architecture.cost()["flops"]
    assert scaled.error == pytest.approx(scaled.flops / flops - 1)
    assert scaled.phi is not None
    assert (scaled.phi > 0) == (flops > base.cost()["flops"])
    assert (scaled.depth, scaled.width, scaled.resolution) == pytest.approx(
        (1.2**scaled.phi, 1.1**scaled.phi, 1.15**scaled.phi)
    )
    again = compound_scale(base, depth=scaled.depth, width=scaled.width, resolution=scaled.resolution)
    assert again.architecture == scaled.architecture


def test_the_answer_is_the_nearer_side_of_the_step_that_passes_the_target() -> None:
    for target in (360e6, 500e6, 900e6, 1.5e9):
        found = scale_to(B, flops=target)
        assert found.phi is not None
        for step in range(-200, 201):
            phi = found.phi + step * 2e-3
            other = compound_scale(B, depth=1.2**phi, width=1.1**phi, resolution=1.15**phi)
            assert abs(other.flops - target) >= abs(found.flops - target)


def test_the_own_flops_are_reached_exactly() -> None:
    scaled = scale_to(B, RECIPE, flops=461_550_136)
    assert (scaled.architecture, scaled.recipe, scaled.phi, scaled.error) == (B, RECIPE, 0.0, 0.0)


def test_one_direction_alone() -> None:
    deeper = scale_to(B, flops=800e6, beta=1, gamma=1)
    assert (deeper.width, deeper.resolution) == (1, 1)
    assert deeper.architecture.resolution == 248
    assert abs(deeper.error) < CLOSE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flops": 1e6}, r"flops: 1M cannot be reached; the smallest network of this scaling has 4\.\d+M \(phi -1"),
        ({"flops": 1e21}, r"flops: 1e\+09T cannot be reached; the largest network of this scaling has \d"),
        ({"flops": 0}, "flops: 0; allowed: a number above 0"),
        ({"flops": math.nan}, "flops: nan; allowed"),
        ({"flops": 1e9, "alpha": 0.9}, "alpha: 0.9; allowed: a number of at least 1"),
        ({"flops": 1e9, "alpha": 1, "beta": 1, "gamma": 1}, "alpha, beta and gamma are all 1"),
    ],
)
def test_targets_that_cannot_be_met(settings: dict[str, float], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        scale_to(B, **settings)


@pytest.mark.parametrize("settings", [{"depth": 0}, {"width": -1}, {"resolution": math.inf}, {"depth": 1e9}])
def test_multipliers_that_give_no_network(settings: dict[str, float]) -> None:
    with pytest.raises(PynasError):
        compound_scale(B, **settings)


def test_the_command_line_writes_a_network_that_counts_and_keeps_its_recipe(tmp_path: Path) -> None:
    from pynas.space.table import format_network

    source, target = tmp_path / "winner.yaml", tmp_path / "larger.yaml"
    source.write_text(format_network(E, RECIPE, name="winner"))
    arguments = ["scale", str(source), "--flops", "1200M", "--out", str(target), "--json"]
    done = run_pynas(*arguments)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    architecture, recipe = load_design(target)
    assert architecture == scale_to(E, flops=1.2e9).architecture
    assert architecture.cost()["flops"] == told["flops"]
    assert told["target"] == 1.2e9
    assert recipe == replace(RECIPE, stochastic_depth=0.2)


def test_the_command_line_says_what_it_reached(tmp_path: Path) -> None:
    far = run_pynas("scale", "fbnetv3_e", "--flops", "840M")  # between E and E with one more block a stage
    assert far.returncode == 0
    assert "from the target of 840M" in far.stdout
    assert "no network of this scaling is nearer" in far.stdout
    for arguments, message in (
        (["fbnetv3_e", "--flops", "1"], "flops: 1 cannot be reached; the smallest network of this scaling has"),
        (
            ["fbnetv3_e", "--flops", "1200M", "--out", str(tmp_path / "no" / "f.yaml")],
            "cannot be written: there is no folder",
        ),
    ):
        done = run_pynas("scale", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_a_scaled_network_as_plain_values() -> None:
    values = compound_scale(B, RECIPE, width=1.2).to_dict()
    assert json.loads(json.dumps(values))["recipe"]["stochastic_depth"] == 0.2
    assert set(values) == {*Scaled.__dataclass_fields__, "error"}
