"""Which plan a block follows: by its shape, or as it is told."""

from __future__ import annotations

import pytest

from pynas.errors import PynasError
from pynas.ops import mbconv_plan
from pynas.ops.mbconv_plan import BlockShape, plan_for, saved_activations, traffic


def shape(channels: int, size: int, expansion: int, kernel: int, out: int | None = None, stride: int = 1) -> BlockShape:
    mid = channels * expansion
    return BlockShape(256, channels, mid, mid, out or channels, size, size, kernel, stride, kernel // 2, 2)


BLOCKS = [shape(16, 112, 4, 3), shape(16, 112, 4, 5, 24, 2), shape(24, 56, 4, 5), shape(40, 28, 5, 5)]
BLOCKS += [shape(72, 14, 5, 3), shape(128, 14, 6, 5), shape(208, 7, 6, 5)]


def test_the_expansion_is_made_anew_where_images_are_large_and_channels_few() -> None:
    assert [plan_for(block) for block in BLOCKS] == ["recomputed"] * 5 + ["stored"] * 2
    assert plan_for(shape(16, 112, 4, 3)._replace(expanded=0)) == "stored"


def test_without_the_expanded_tensor_less_is_kept_and_moved() -> None:
    for block in BLOCKS:
        x, h, d, o = block.sizes()
        assert saved_activations(block, "stored") == x + h + d + o
        assert saved_activations(block, "recomputed") == x + d + o
        assert traffic(block, "recomputed") < traffic(block, "stored")
    large, small = 256 * 112**2 * 2, 256 * 56**2 * 2
    assert BLOCKS[1].sizes() == (large * 16, large * 64, small * 64, small * 24)


def test_either_can_be_forced_for_a_while_or_for_good() -> None:
    with mbconv_plan.using("recomputed"):
        assert {plan_for(block) for block in BLOCKS} == {"recomputed"}
        with mbconv_plan.using("stored"):
            assert {plan_for(block) for block in BLOCKS} == {"stored"}
        assert plan_for(BLOCKS[-1]) == "recomputed"
    assert plan_for(BLOCKS[-1]) == "stored"
    with pytest.raises(PynasError, match=r"mbconv_plan\.use: got 'both', allowed are stored, recomputed and None"):
        mbconv_plan.use("both")  # type: ignore[arg-type]
