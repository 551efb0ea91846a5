"""Models by name: what a name stands for, users' functions, and errors that say what came and what is allowed."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from net_examples import small
from torch import nn

import pynas
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec, load_model, read_model
from pynas.space.table import format_rows

TABLE = """name: tiny
input_channels: 1
resolution: 16
stages: |
"""
RECIPE = {"lr": 0.1, "optimizer": "SGD", "ema": True, "dropout": 0.1, "stochastic_depth": 0.2}
RECIPE |= {"mixup": 0.2, "weight_decay": 1e-5}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A winner's file: a table without choices, with a recipe."""
    rows = (*small().rows[:-1], replace(small().rows[-1], act=""))
    text = "\n".join(f"  {line}" for line in format_rows(rows).splitlines())
    path = tmp_path / "winner.yaml"
    path.write_text(f"{TABLE}{text}\n{yaml.safe_dump({'recipe': RECIPE})}")
    return path


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's package, entered."""
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").write_text("")
    (tmp_path / "mynets" / "cnn.py").write_text(
        """
import torch
from torch import nn

def make(num_classes=10, in_chans=1, drop_rate=0.5, *, width=4):
    layers = [nn.Conv2d(in_chans, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate)]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))

def fixed():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))

def greedy(**keywords):
    assert not keywords, keywords
    return fixed()

def dense(classes=10):
    return nn.Linear(5, classes)

def raises():
    raise RuntimeError("no\\nluck")

def leaves():
    raise SystemExit(3)

def text():
    return "a network"

number = 3
"""
    )
    (tmp_path / "mynets" / "broken.py").write_text("import absent_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mynets"):
            del sys.modules[name]


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_network_of_the_zoo_has_the_published_number_of_parameters() -> None:
    network = pynas.load_model("fbnetv3_a")
    assert sum(p.numel() for p in network.parameters()) == 8_598_480
    assert network.training


def test_keywords_change_the_network(table: Path) -> None:
    network = load_model(table, classes=3, input_channels=2, dropout=0.25, stochastic_depth=0.3)
    assert network(torch.zeros(2, 2, 16, 16)).shape == (2, 3)
    assert network.blocks[-1].dropout.p == 0.25
    assert network.blocks[-3].drop.rate == pytest.approx(0.3)
    spec = read_model(table, resolution=20, classes=3)
    assert (spec.resolution, spec.classes, spec.input_channels) == (20, 3, 1)
    assert spec.recipe is not None
    assert spec.recipe.to_dict() == RECIPE
    strides = [block.stride for block in read_model(table, small_input=True).architecture.blocks()]
    assert strides.count(2) == 1  # of two


def test_a_genome_chooses_from_a_table() -> None:
    space = pynas.load_space("fbnetv3_28")
    genome = space.sample(1, seed=3)[0]
    architecture, recipe = space.decode(genome)
    for given in (genome.tolist(), ",".join(map(str, genome))):
        spec = read_model("fbnetv3_28", genome=given)
        assert (spec.architecture, spec.recipe) == (architecture, recipe)
    network = load_model("fbnetv3_28", genome=genome.tolist())
    assert sum(p.numel() for p in network.parameters()) == architecture.cost()["parameters"]


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone(table: Path, user: Path) -> None:
    for name in (str(table), "resnet18", "mynets.cnn:make"):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = load_model(name, seed=1, classes=4)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        assert equal(first, load_model(name, seed=1, classes=4))
        assert not equal(first, load_model(name, seed=2, classes=4))


@pytest.mark.parametrize("name", ["table", "resnet18_1.4x_width", "mynets.cnn:make"])
def test_a_spec_goes_through_json_and_builds_the_same_module(name: str, table: Path, user: Path) -> None:
    spec = read_model(table if name == "table" else name, classes=4, input_channels=1, small_input=name != "table")
    text = json.dumps(spec.to_dict())
    table.unlink()
    again = ModelSpec.from_dict(json.loads(text))
    assert again == spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert equal(again.build(seed=3), spec.build(seed=3))


def test_a_spec_that_is_none_is_refused() -> None:
    for values in ({}, {"name": "x"}, {"name": "x", "architecture": {"rows": 3}}, {"name": "x", "colour": 1}):
        with pytest.raises(PynasError, match=r"not the description of a model|exactly one of"):
            ModelSpec.from_dict(values)


def test_reading_a_model_needs_no_torch(table: Path) -> None:
    code = "import sys; from pynas.nets.load import read_model\n"
    code += f"for name in ({str(table)!r}, 'resnet18', 'absent.package:make'): read_model(name, classes=3)\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


# users' functions ----------------------------------------------------------------------------------------------------


def test_a_function_gets_what_its_signature_names(user: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_model("mynets.cnn:make", classes=3, input_channels=2, dropout=0.25)
        assert load_model("mynets.cnn:greedy")(torch.zeros(1, 3, 8, 8)).shape == (1, 7)
    assert network(torch.zeros(2, 2, 8, 8)).shape == (2, 3)
    assert network[3].p == 0.25
    assert load_model("torch.nn:Identity")(torch.ones(1)) == 1  # a class does too
    assert read_model("mynets.cnn:make").resolution is None


def test_what_a_function_does_not_take_is_warned_about(user: Path) -> None:
    with pytest.warns(UserWarning, match=r"model mynets.cnn:fixed: takes no dropout or drop_rate, so dropout 0.3 has"):
        load_model("mynets.cnn:fixed", dropout=0.3)
    with pytest.warns(UserWarning, match="takes no input_channels or in_channels or in_chans, so input_channels 1"):
        load_model("mynets.cnn:fixed", input_channels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("mynets.cnn:fixed", input_channels=3, classes=7)  # as it is


WRONG_FUNCTIONS = {
    "absent.package:make": "importing absent.package failed: ModuleNotFoundError: No module named 'absent'",
    "mynets.broken:make": "importing mynets.broken failed: ModuleNotFoundError: No module named 'absent_package'",
    "mynets.cnn:absent": "mynets.cnn has no absent",
    "mynets.cnn:number": "number is a int; a function that returns a module is needed",
    "mynets.cnn:raises": "calling it with no arguments failed: RuntimeError: no luck",
    "mynets.cnn:leaves": "calling it with no arguments failed: SystemExit: 3",
    "mynets.cnn:text": r"must return a torch.nn.Module, got str",
}


@pytest.mark.parametrize(("name", "message"), WRONG_FUNCTIONS.items(), ids=list(WRONG_FUNCTIONS))
def test_what_is_wrong_with_a_function_is_one_line_that_names_it(name: str, message: str, user: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(PynasError, match=message) as caught:
        load_model(name)
    assert str(caught.value).startswith(f"model {name}: ")
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)
    if "failed" in message:
        assert caught.value.__cause__ is not None


# errors --------------------------------------------------------------------------------------------------------------


def test_errors_say_what_came_and_what_is_allowed(table: Path, user: Path) -> None:
    wrong = [
        (("fbnetv3_z",), {}, "no table 'fbnetv3_z'.*also allowed as a model: resnet18, .*package.module:function"),
        (("fbnetv3",), {}, "is a space with .* variables, not one network"),
        (("fbnetv3_28",), {"genome": "1,x"}, "genome '1,x': write whole numbers"),
        ((table,), {"classes": 0}, "classes: 0; allowed: a whole number of at least 1"),
        ((table,), {"padding": "valid"}, "padding: 'valid'; allowed: same"),
        ((table,), {"dropout": 2.0}, "dropout: got 2.0, allowed is a probability"),
        ((table,), {"dropout": "much"}, "dropout: got 'much', allowed is a probability"),
        ((table,), {"seed": 2**64}, "seed 18446744073709551616; allowed: whole numbers"),
        ((table,), {"out_strides": [4]}, "out_strides is for features_only"),
        (("resnet18",), {"genome": "0"}, "model resnet18: genome: got '0', which is for tables only"),
        (("resnet18",), {"classes": -1}, "model resnet18: classes: -1; allowed"),
        (("resnet18_0x_width",), {}, "multiplier '0'; allowed are numbers above 0"),
        (("resnet18_1.2.3x_width",), {}, "multiplier '1.2.3'; allowed are numbers above 0"),
        (("mynets.cnn:make",), {"padding": "same"}, "padding: got 'same', which is for tables only"),
        (("mynets.cnn:make",), {"classes": True}, "classes: True; allowed"),
        (("mynets.cnn:make",), {"features_only": True}, "features_only: got a Sequential; only pynas's own networks"),
    ]
    for arguments, keywords, message in wrong:
        with pytest.raises(PynasError, match=message):
            load_model(*arguments, **keywords)
