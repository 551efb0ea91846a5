"""Weights files: what comes back, and files that are damaged, foreign or of another network."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from net_examples import small
from safetensors.torch import load_file, save_file
from torch import nn

import pynas
from pynas.errors import PynasError
from pynas.nets.build import build_network
from pynas.nets.load import load_model, read_model
from pynas.nets.resnet import resnet18
from pynas.nets.weights import read_weights, save_model
from pynas.space.architecture import Recipe

RECIPE = Recipe(0.1, "SGD", True, 0.1, 0.2, 0.2, 1e-5)


def make_tied(classes: int = 4, dropout: float = 0.0) -> nn.Module:
    """A user's model: two layers share their weights, and a rate of zero leaves a module out."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, *([nn.Dropout(dropout)] if dropout else []), second, nn.Linear(6, classes))


@pytest.fixture
def trained() -> nn.Module:
    """The small network with every value moved away from where it started."""
    network = build_network(small(), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator) * 0.1)
            else:
                value.fill_(7)
    return network.eval()


@pytest.fixture
def saved(trained: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_model(trained, path, architecture=small(), recipe=RECIPE, name="tiny", metadata={"accuracy": 0.9})
    return path


def same_outputs(first: nn.Module, second: nn.Module, *shape: int) -> bool:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return torch.equal(first.eval()(x), second.eval()(x))


def test_what_was_saved_comes_back(trained: nn.Module, saved: Path) -> None:
    network = pynas.load_model(saved)
    for name, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert same_outputs(network, trained, 2, 1, 16, 16)
    spec, metadata = read_weights(saved)
    assert (spec.architecture, spec.recipe, spec.name) == (small(), RECIPE, "tiny")
    assert metadata == {"accuracy": 0.9}
    assert read_model(saved, resolution=20).resolution == 20
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]  # and no temporary file


def test_a_loaded_network_knows_what_it_is(saved: Path, tmp_path: Path) -> None:
    network = load_model(saved, dropout=0.3)
    again = tmp_path / "again.safetensors"
    save_model(copy.deepcopy(network), again)
    assert read_weights(again)[0].recipe == RECIPE
    assert same_outputs(load_model(again), network, 1, 1, 16, 16)


def test_other_layouts_and_precisions(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    last = copy.deepcopy(trained).to(memory_format=torch.channels_last)
    assert not last.blocks[2].branch[0].weight.is_contiguous() or last.blocks[0].conv.weight.stride(1) == 1
    save_model(last, path, architecture=small())
    assert same_outputs(load_model(path), trained, 2, 1, 16, 16)
    save_model(copy.deepcopy(trained).bfloat16(), path, architecture=small())
    loaded = load_model(path)
    assert loaded.blocks[0].conv.weight.dtype == torch.float32
    assert torch.equal(loaded.blocks[0].conv.weight, trained.blocks[0].conv.weight.bfloat16().float())


def test_the_module_inside_a_compiled_one_is_saved(trained: nn.Module, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "compiled.safetensors"
    save_model(torch.compile(trained), path, architecture=small())
    assert load_file(path).keys() == load_file(saved).keys()


def test_feature_maps_of_trained_weights(trained: nn.Module, saved: Path) -> None:
    backbone = load_model(saved, features_only=True).eval()
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        assert torch.equal(backbone(x)[-1], trained.blocks[:-2](x))


def test_resnet_and_users_models(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    network = resnet18(0.25, classes=10, seed=4)
    spec = read_model("resnet18_0.25x_width", classes=10)
    save_model(network, path, spec=spec)
    assert same_outputs(load_model(path), network, 2, 3, 32, 32)

    function = f"{__name__}:make_tied"
    network = load_model(function, classes=3, dropout=0.5, seed=4)
    assert len(network) == 4
    save_model(network, path)
    loaded = load_model(path)  # made with the dropout that it was made with: names of tensors depend on it
    assert loaded[0].weight is loaded[2].weight
    assert same_outputs(loaded, network, 2, 6)
    spec, _ = read_weights(path)
    assert (spec.function, spec.classes) == (function, 3)


# what cannot be saved -------------------------------------------------------------------------------------------------


def test_a_network_that_would_not_load_is_not_saved(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(PynasError, match=r"it is not known what the Linear is; give save_model its architecture"):
        save_model(nn.Linear(2, 2), path)
    with pytest.raises(PynasError, match=r"not saved: .*blocks.6.linear.weight of shape \(10, 64\), the model's \(7, "):
        save_model(trained, path, architecture=small(classes=7))
    with pytest.raises(PynasError, match=r"not saved: .*lacks blocks.0.conv.weight, .* and \d+ more"):
        save_model(nn.Linear(2, 2), path, architecture=small())
    with pytest.raises(PynasError, match="metadata must go into JSON"):
        save_model(trained, path, architecture=small(), metadata={"x": object()})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PynasError, match=r"absent/w.safetensors: cannot be written"):
        save_model(trained, tmp_path / "absent" / "w.safetensors", architecture=small())


def test_a_failed_write_leaves_the_old_file(trained: nn.Module, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PynasError, match=r"small.safetensors: cannot be written: No space left on device"):
        save_model(trained, saved, architecture=small())
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


# what cannot be loaded ------------------------------------------------------------------------------------------------


def rewritten(path: Path, change: object) -> None:
    """The file at `path` with its tensors and description as `change(tensors, description)` leaves them."""
    tensors = load_file(path)
    spec, metadata = read_weights(path)
    described = {"version": 1, "model": spec.to_dict() | {"weights": None}, "metadata": metadata}
    change(tensors, described)
    save_file(tensors, path, metadata={"pynas": json.dumps(described)})


def test_damaged_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for part in (whole[:-100], whole[:50], b"", b"PK\x03\x04" + whole[:100]):
        saved.write_bytes(part)
        with pytest.raises(PynasError, match=r"small.safetensors: no whole safetensors file: "):
            load_model(saved)
    save_file({"a": torch.zeros(1)}, saved)
    with pytest.raises(PynasError, match=r"small.safetensors: a safetensors file that pynas did not write"):
        load_model(saved)
    with pytest.raises(PynasError, match=r"absent.safetensors: cannot be read"):
        load_model(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: d.update(version=2), r"is of format 2; this pynas reads format 1"),
        (lambda t, d: d.pop("model"), r"its description cannot be read: KeyError: 'model'"),
        (lambda t, d: d["model"].update(architecture=None), r"exactly one of architecture, function and resnet"),
        (lambda t, d: d["model"]["architecture"].pop("rows"), r"not the description of a model: KeyError: 'rows'"),
        (lambda t, d: t.pop("blocks.0.conv.bias"), r"do not fit the model: lacks blocks.0.conv.bias"),
        (lambda t, d: t.update(extra=torch.zeros(1)), r"do not fit the model: unknown extra"),
        (
            lambda t, d: t.update({"blocks.0.conv.bias": torch.zeros(9)}),
            r"blocks.0.conv.bias of shape \(9,\), the model's \(8,\)",
        ),
    ],
)
def test_files_that_do_not_fit_themselves(change: object, message: str, saved: Path) -> None:
    rewritten(saved, change)
    with pytest.raises(PynasError, match=rf"small.safetensors: .*{message}"):
        load_model(saved)


def test_classes_and_channels_of_weights_are_fixed(saved: Path) -> None:
    with pytest.raises(PynasError, match=r"classes: got 7, but the weights are of 10 classes"):
        load_model(saved, classes=7)
    with pytest.raises(PynasError, match=r"input_channels: got 3, but the weights are of 1 input_channels"):
        load_model(saved, input_channels=3)
    with pytest.raises(PynasError, match=r"genome: got '0', which is for tables only"):
        load_model(saved, genome="0")
    assert load_model(saved, classes=10, input_channels=1) is not None
