"""Tables: what they say, and that a wrong one is one error naming file, key, value and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pynas.errors import PynasError
from pynas.space.architecture import Architecture, Row
from pynas.space.space import Space, table_of
from pynas.space.table import COLUMNS, ZOO, Variable, format_network, format_rows, parse_table, read_table

GOOD = """\
name: mine
input_channels: 1
resolution: (20, 28, 4)
stages: |
  | block  | k      | e                   | c           | n      | s | se | act    |
  | conv   | 3      | -                   | (8, 16, 4)  | 1      | 2 | -  | hswish |
  | mbconv | [3, 5] | (3, 6)^1 / (2, 4)^2 | (16, 32, 4) | (1, 3) | 2 | N  | hswish |
  | mbconv | [3, 5] | (3, 6)^1 / (2, 4)^2 | (24, 48, 4) | (1, 3) | 1 | Y  | hswish |
  | mbpool | -      | 6                   | 256         | 1      | - | -  | hswish |
  | fc     | -      | -                   | 10          | 1      | - | -  | -      |
recipe:
  lr: (20, 30) * 1e-3
  lr_multiplier: {SGD: 4}
  optimizer: [RMSProp, SGD]
  ema: [true, false]
  dropout: (1, 31) * 1e-2
  stochastic_depth: (10, 31) * 1e-2
  mixup: (0, 41) * 1e-2
  weight_decay: (7, 21) * 1e-6
"""


def test_variables_are_named_after_row_and_column_and_ties_count_once() -> None:
    table = parse_table(GOOD, "good.yaml")
    assert [variable.name for variable in table.variables] == [
        "stage0.c",
        *("stage1.k", "stage1.e.first", "stage1.e.rest", "stage1.c", "stage1.n"),
        *("stage2.k", "stage2.c", "stage2.n"),
        "resolution",
        *("lr", "optimizer", "ema", "dropout", "stochastic_depth", "mixup", "weight_decay"),
    ]
    assert table.rows[2].e == table.rows[1].e


def test_ranges_include_both_ends_and_read_as_the_decimals_they_print() -> None:
    lr = next(v for v in parse_table(GOOD, "good.yaml").variables if v.name == "lr")
    assert lr.values == (0.02, 0.021, 0.022, 0.023, 0.024, 0.025, 0.026, 0.027, 0.028, 0.029, 0.03)
    assert lr.kind == "range"


def test_the_first_block_may_have_its_own_kernel() -> None:
    table = parse_table(GOOD.replace("| mbconv | [3, 5] |", "| mbconv | [3, 5] / [3, 7] |", 1), "good.yaml")
    first, rest = table.rows[1].k or (None, None)
    assert isinstance(first, Variable)
    assert isinstance(rest, Variable)
    assert (first.values, rest.values) == ((3, 5), (3, 7))


WRONG = {
    "unknown key": ("name: mine", "nome: mine", "the file: unknown key 'nome' (did you mean name?); allowed: name, "),
    "key twice": ("name: mine", "name: mine\nname: yours", "key 'name' is given twice"),
    "missing key": ("resolution: (20, 28, 4)\n", "", "the file: lacks resolution; required: name, "),
    "unknown column": (
        "| se | act",
        "| see | act",
        "stages: unknown column 'see' (did you mean se?); allowed: block, k",
    ),
    "low above high": ("(8, 16, 4)", "(16, 8, 4)", "row 0 (conv), c: '(16, 8, 4)': low 16 is above high 8; a range is"),
    "step": ("(8, 16, 4)", "(8, 16, 3)", "c: '(8, 16, 3)': step 3 does not divide 16 - 8; 14 or 17 would do"),
    "zero step": ("(8, 16, 4)", "(8, 16, 0)", "'(8, 16, 0)': step 0 must be above 0"),
    "unequal tie": (
        "(3, 6)^1 / (2, 4)^2 | (24",
        "(3, 5)^1 / (2, 4)^2 | (24",
        "row 2 (mbconv), e: '(3, 5)^1 / (2, 4)^2': tied by ^1 to unequal choices: 3, 4, 5 here, 3, 4, 5, 6 in stages, "
        "row 1 (mbconv), e; they must be equal",
    ),
    "even kernel": ("[3, 5] ", "[3, 4] ", "row 1 (mbconv), k: '[3, 4]': 4 is not allowed; allowed: odd whole numbers"),
    "stride of 0": ("| 2 | N", "| 0 | N", "row 1 (mbconv), s: '0': 0 is not allowed; allowed: 1 or 2"),
    "no head": (
        "  | mbpool | -      | 6                   | 256         | 1      | - | -  | hswish |\n",
        "",
        "stages: no head: the last two rows must be mbpool and fc; found conv, mbconv, mbconv, fc",
    ),
    "unknown block": ("| conv   |", "| konv   |", "row 0 (konv): unknown block 'konv' (did you mean conv?); allowed:"),
    "cells": ("| 256         |", "|", "row 3 (mbpool | - | 6 | 1 | - | - | hswish): 7 cells"),
    "unused column": (
        "| fc     | -",
        "| fc     | 3",
        "row 4 (fc), k: '3'; fc does not use it, so the cell must be '-'",
    ),
    "empty cell": ("| 2 | N", "| - | N", "row 1 (mbconv), s: is empty; mbconv needs k, e, c, n, s, se, act"),
    "splits": (
        "| N  | hswish",
        "| 3  | hswish",
        "row 1 (mbconv), se: '3': 3 is not allowed; allowed: N or 0, Y or 1, 2, 4",
    ),
    "splits twice": (
        "| N  | hswish",
        "| [N, 0] | hswish",
        "row 1 (mbconv), se: '[N, 0]': [False, 0] names a value twice",
    ),
    "choice of activation": (
        "| N  | hswish",
        "| N  | [hswish, gelu]",
        "row 1 (mbconv), act: '[hswish, gelu]': 'gelu' is not allowed; allowed: hswish, relu, swish",
    ),
    "kernel 0": ("| conv   | 3", "| conv   | 0", "row 0 (conv), k: '0'; 0, which leaves a block out, is for mbconv"),
    "padding": ("name: mine", "name: mine\npadding: valid", "padding: 'valid'; allowed: same, or no such key"),
    "activation": ("| N  | hswish", "| N  | gelu", "act: 'gelu': 'gelu' is not allowed; allowed: hswish, relu, swish"),
    "no number": ("(16, 32, 4)", "(16, x, 4)", "row 1 (mbconv), c: '(16, x, 4)': 'x' is not a number"),
    "twice in a list": ("[3, 5] ", "[3, 3] ", "[3, 3] names a value twice"),
    "too many choices": ("(16, 32, 4)", "(16, 900)", "885 choices; at most 256 are allowed (a gene is one byte)"),
    "unknown optimizer": ("[RMSProp, SGD]", "[RMSProp, Adam]", "recipe, optimizer: ['RMSProp', 'Adam']: 'Adam' is not"),
    "unknown recipe key": ("dropout:", "dropuot:", "recipe: unknown key 'dropuot' (did you mean dropout?)"),
    "probability": ("(1, 31) * 1e-2", "(1, 31) * 1e-1", "dropout: '(1, 31) * 1e-1': 1 is not allowed; allowed: from 0"),
    "multiplier": ("{SGD: 4}", "{SGD: 0}", "recipe, lr_multiplier, SGD: 0; allowed: a number above 0"),
    "nested list": (
        "(20, 28, 4)",
        "[[20], 28]",
        "resolution: [[20], 28]: [20] is not a value; allowed: numbers, words",
    ),
    "huge number": ("(8, 16, 4)", "1e10000000", "c: '1e10000000': '1e10000000' is out of range; allowed: sizes from"),
    "tiny step": ("(8, 16, 4)", "(8, 16, 1e-30)", "'1e-30' is out of range"),
    "huge scale": ("* 1e-3", "* 1e400", "'1e400' is out of range"),
    "zero scale": ("* 1e-3", "* 0", "scale 0 must be above 0"),
    "infinite": ("lr: (20, 30) * 1e-3", "lr: .inf", "recipe, lr: inf: 'inf' is not a finite number"),
    "falsy multiplier": ("{SGD: 4}", "0", "recipe, lr_multiplier: 0; write for instance {SGD: 4}"),
    "list as key": ("name: mine", "? [a]\n: mine", "not valid YAML"),
    "wide input": (
        "input_channels: 1",
        "input_channels: 100000000000000000000",
        "input_channels: 100000000000000000000;",
    ),
    "not YAML": ("name: mine", "name: [mine", "not valid YAML"),
    "channels": ("input_channels: 1", "input_channels: 0", "input_channels: 0; allowed: a whole number of at least 1"),
}


@pytest.mark.parametrize(("old", "new", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_table_is_one_clear_error(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = tmp_path / "wrong.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(PynasError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(PynasError, match=r"no table 'fbnetv9': neither a file nor one of .*fbnetv3, fbnetv3_28"):
        read_table("fbnetv9")


ROWS = """\
name: rows
input_channels: 3
resolution: 32
stages: |
  | block  | k      | e      | c            | n | s      | se           | act    | bias | se_from | pad |
  | conv   | 3      | -      | 16           | 1 | 2      | -            | relu   | N    | -       | 0   |
  | skip   | -      | -      | 16           | - | -      | -            | relu   | -    | -       | -   |
  | mbconv | 3      | 5.4566 | 24           | 2 | 2      | [N, Y, 2, 4] | swish  | -    | mid     | 0   |
  | skip   | -      | -      | [24, 32, 40] | 1 | [1, 2] | -            | hswish | -    | -       | -   |
  | mbconv | [3, 5] | 4.5070 | 40           | 1 | 1      | 4            | swish  | -    | in      | -   |
  | mbconv | 3      | 4      | 40           | 1 | 1      | 1            | swish  | -    | -       | -   |
  | mbconv | 3      | 4      | 40           | 1 | 1      | 0            | swish  | -    | -       | -   |
  | mbpool | -      | 6      | 64           | 1 | -      | -            | hswish | -    | -       | -   |
  | fc     | -      | -      | 10           | 1 | -      | -            | -      | -    | -       | -   |
"""


def test_rows_of_fbnetv2_and_fp_nas() -> None:
    table = parse_table(ROWS, "rows.yaml")
    assert [v.name for v in table.variables] == ["stage2.se", "stage3.c", "stage3.s", "stage4.k"]
    stem, identity, first, skip, second, third, fourth = table.rows[:7]
    assert (stem.bias, first.bias) == (False, True)
    assert (identity.c, identity.n, identity.s) == (16, 1, 1)
    assert (first.se_from, second.se_from, third.se_from) == ("mid", "in", "in")
    assert repr((first.se.values, second.se, third.se, fourth.se)) == "((False, True, 2, 4), 4, True, False)"
    assert (skip.c.values, skip.s.values) == ((24, 32, 40), (1, 2))
    assert (stem.pad, first.pad) == (0, 0)
    assert [row.pad for row in parse_table(f"padding: same\n{ROWS}", "rows.yaml").rows] == [None] * 9


def test_what_rows_say_reads_back() -> None:
    space = Space(parse_table(ROWS, "rows.yaml"))
    for genome in np.ndindex(4, 3, 2, 2):
        architecture, _ = space.decode(np.array(genome, np.uint8))
        written = parse_table(format_network(architecture, name="written"), "written")
        assert Space(written).decode(np.zeros(0, np.uint8))[0] == architecture
        assert space.encode(architecture).tolist() == list(genome)
        assert {name: int(c[0]) for name, c in space.costs(np.array([genome], np.uint8)).items()} == architecture.cost()
        head = format_network(architecture, name="written").splitlines()[4]
        assert [column.strip() for column in head.strip(" |").split("|")][-3:] == ["pad", "se_from", "bias"]


@given(st.floats(1, 64) | st.floats(1, 64).map(lambda e: round(e, 4)) | st.integers(1, 64))
def test_every_expansion_reads_back_equal(e: float) -> None:
    row = Row("mbconv", (3, 3), (e, 6), 24, 1, 1, True, "relu", se_from="mid")
    plain = Architecture((Row("conv", (3, 3), None, 8, 1, 2, False, "relu"), row, *HEAD), 32)
    written = parse_table(format_network(plain, name="written"), "written")
    assert written.rows == table_of(plain).rows


HEAD = (Row("mbpool", None, (6, 6), 64, 1, 1, False, "relu"), Row("fc", None, None, 10, 1, 1, False, ""))


def test_columns_are_written_only_where_they_say_something() -> None:
    rows = (Row("conv", (3, 3), None, 8, 1, 2, False, "relu"), Row("skip", None, None, 8, 1, 2, False, "relu"), *HEAD)
    header, stem, skip = format_rows(rows).splitlines()[:3]
    assert header.split() == ["|", *" | ".join(COLUMNS).split(), "|"]
    assert stem.split()[1:-1:2] == ["conv", "3", "-", "8", "1", "2", "-", "relu"]
    assert skip.split()[1:-1:2] == ["skip", "-", "-", "8", "-", "2", "-", "relu"]


def test_zero_and_one_are_no_and_yes_everywhere() -> None:
    one, yes = (Row("mbconv", (3, 3), (4, 4), 24, 1, 1, se, "relu") for se in (1, True))
    assert repr(one) == repr(yes)
    ones, letters = (parse_table(GOOD.replace("| 2 | N", f"| 2 | {se}"), "se.yaml") for se in ("[0, 1]", "[N, Y]"))
    assert Space(ones).fingerprint == Space(letters).fingerprint
    for value in (1, True):
        assert ones.pin({"stage1.se": value}).rows[1].se is True
    numbers = ones.pin({"ema": True})
    assert len(numbers.variables) == len(ones.variables) - 1


WRONG_ROWS = {
    "skip with a kernel": ("| skip   | - ", "| skip   | 3 ", "row 1 (skip), k: '3'; skip does not use it"),
    "skip twice": (
        "| 16           | - |",
        "| 16           | 2 |",
        "row 1 (skip), n: '2'; skip stands once, so n must be 1",
    ),
    "skip without width": (
        "| 16           | - |",
        "| -            | - |",
        "row 1 (skip), c: is empty; skip needs c, act",
    ),
    "skip's stride": ("| [1, 2] |", "| [1, 3] |", "row 3 (skip), s: '[1, 3]': 3 is not allowed; allowed: 1 or 2"),
    "bias of an mbconv": (
        "swish  | -    | mid",
        "swish  | Y    | mid",
        "row 2 (mbconv), bias: 'Y'; mbconv does not use it",
    ),
    "bias": ("| N    |", "| 2    |", "row 0 (conv), bias: '2': 2 is not allowed; allowed: Y (true), N (false)"),
    "width rule": ("| mid ", "| out ", "row 2 (mbconv), se_from: 'out': 'out' is not allowed; allowed: in, mid"),
    "choice of width rules": ("| mid     |", "| [in, mid] |", "se_from: '[in, mid]'; takes one value, not a choice"),
    "skip as stem": (
        ROWS[ROWS.index("  | conv") : ROWS.index("  | skip")],
        "",
        "no stem: the first row must be a conv",
    ),
    "conv inside": (
        "  | skip   | -      | -      | 16",
        "  | conv   | 3 | - | 16 | 1 | 1 | - | relu | - | - | - |\n  | skip   | -      | -      | 16",
        "stages: conv between stem and head; allowed there: mbconv and skip",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), WRONG_ROWS.values(), ids=list(WRONG_ROWS))
def test_a_wrong_row_is_one_clear_error(old: str, new: str, message: str) -> None:
    assert old in ROWS
    with pytest.raises(PynasError) as caught:
        parse_table(ROWS.replace(old, new, 1), "rows.yaml")
    assert str(caught.value).startswith("rows.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# As of version 0.1.0: studies and predictors made then must find their space again.
FINGERPRINTS = {
    "fbnetv3": "25cd39b0c2840de2",
    "fbnetv3_28": "6d271ff0c7c062f6",
    "fbnetv2_f": "83eb545b633c7acd",
    "fbnetv2_f_fine": "15bb40a65b9f4e3d",
    "fbnetv2_fpp": "0d4b555d78bd4150",
    "fpnas_l0": "f13b1ec9fc3af981",
    "fpnas_l1": "44a87396bf81595b",
    "fpnas_l2": "cda7b79c3c111a0c",
    "fbnetv3_a": "d55e18b83ad58fc3",
    "fbnetv3_g": "8e192f541c82b9e1",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_spaces_keep_their_fingerprints(name: str) -> None:
    space = Space(read_table(name))
    assert space.fingerprint == FINGERPRINTS[name]
    recorded = {
        "block": "conv",
        "k": (3, 3),
        "e": None,
        "c": 16,
        "n": 1,
        "s": 2,
        "se": False,
        "act": "hswish",
        "pad": None,
    }
    stem = space.decode(np.zeros(len(space.variables), np.uint8))[0].to_dict()["rows"][0]
    assert list(stem) == list(recorded)  # tasks recorded before compare equal


def test_what_is_new_in_a_row_changes_the_fingerprint() -> None:
    table = parse_table(ROWS, "rows.yaml")
    kinds = [ROWS, ROWS.replace("| N    |", "| Y    |"), ROWS.replace("| mid ", "| in  ")]
    assert len({Space(parse_table(text, "rows.yaml")).fingerprint for text in kinds}) == 3
    assert "se_from='mid'" in repr(table.rows[2])
    assert "se_from" not in repr(table.rows[4])
    space = Space(table)
    architecture, _ = space.decode(np.zeros(4, np.uint8))
    with pytest.raises(PynasError, match=r"rows: row 0, bias is True; the space allows \[False\]"):
        space.encode(architecture.with_(stem_bias=True))
    other = replace(architecture.rows[4], se_from="mid")
    with pytest.raises(PynasError, match=r"rows: row 4, se_from is 'mid'; the space allows \['in'\]"):
        space.encode(replace(architecture, rows=(*architecture.rows[:4], other, *architecture.rows[5:])))


def test_pinning_takes_a_variable_out_and_refuses_what_is_not_there() -> None:
    table = parse_table(GOOD, "good.yaml")
    assert len(table.pin({"ema": True, "stage1.k": 5}).variables) == len(table.variables) - 2
    with pytest.raises(PynasError, match=r"pin: unknown variable 'emma' \(did you mean ema\?\); allowed: stage0.c, "):
        table.pin({"emma": True})
    with pytest.raises(PynasError, match=r"pin stage1.k: 4; allowed: 3, 5"):
        table.pin({"stage1.k": 4})


def test_every_shipped_network_leaves_no_choice() -> None:
    names = sorted(path.stem for path in ZOO.glob("*.yaml"))
    fbnetv2 = [f"fbnetv2_{network}" for network in ("f1", "f2", "f3", "f4", "l1", "l2", "l3")]
    assert names == fbnetv2 + [f"fbnetv3_{letter}" for letter in "abcdefg"]
    assert not any(read_table(name).variables for name in names)


def test_yaml_reads_amounts_in_budgets_as_text() -> None:
    """YAML 1.1 turns some a:b into base 60; the form the docs show must not be among them."""
    assert yaml.safe_load("{flops: 400M:550M}") == {"flops": "400M:550M"}
