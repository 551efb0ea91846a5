"""Exported networks compute what they computed before, at any batch; what cannot be exported is one clear error."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from pynas.cli import app
from pynas.errors import PynasError
from pynas.nets.export import export_model
from pynas.nets.load import ModelSpec, load_model
from pynas.nets.weights import save_model
from pynas.space.architecture import Architecture, Row

torch.set_num_threads(1)

TOLERANCE = 1e-4  # relative to the largest output, which is of order one; float32 sums in another order


def every_block() -> Architecture:
    """A small network with every kind of block and every activation in it."""
    rows = (
        Row("conv", (3, 3), None, 8, 1, 2, 0, "hswish"),
        Row("mbconv", (3, 3), (1.0, 1.0), 8, 1, 1, 0, "relu"),
        Row("mbconv", (5, 3), (4.0, 2.0), 16, 2, 2, 1, "hswish", pad=1),
        Row("mbconv", (3, 3), (2.0, 2.0), 16, 1, 1, 2, "swish"),
        Row("skip", None, None, 16, 1, 1, 0, "relu"),
        Row("skip", None, None, 24, 1, 2, 0, "relu"),
        Row("mbpool", None, (6.0, 6.0), 64, 1, 1, 0, "hswish"),
        Row("fc", None, None, 10, 1, 1, 0, ""),
    )
    return Architecture(rows, 20, 1)


def stirred(network: nn.Module) -> nn.Module:
    """The network with random values everywhere: initial ones make blocks identities and logits nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value, low in ((module.weight, 0.8), (module.running_var, 0.5), (module.bias, -0.5)):
                    value.copy_(torch.rand(value.shape, generator=generator) + low)
                module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=generator) - 0.5)
            elif isinstance(module, nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 0.2)
    return network


def run_torch(path: Path) -> Callable[[Tensor], list[Tensor]]:
    program = torch.export.load(path).module()
    return lambda x: list(outputs) if not isinstance(outputs := program(x), Tensor) else [outputs]


def run_onnx(path: Path) -> Callable[[Tensor], list[Tensor]]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {"images": x.numpy()})]


RUN = {".pt2": run_torch, ".onnx": run_onnx}


def agree(network: nn.Module, exported: Callable[[Tensor], list[Tensor]], channels: int, resolution: int) -> None:
    network.eval()
    for batch in (1, 5):
        x = torch.rand(batch, channels, resolution, resolution, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = network(x)
        expected = [expected] if isinstance(expected, Tensor) else expected
        outputs = exported(x)
        assert len(outputs) == len(expected)
        for one, other in zip(outputs, expected, strict=True):
            assert one.shape == other.shape
            assert other.abs().max() > 0.1
            assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


@pytest.mark.parametrize("suffix", RUN)
def test_every_kind_of_block(suffix: str, tmp_path: Path) -> None:
    network = stirred(ModelSpec.of(every_block()).build(dropout=0.5, stochastic_depth=0.5))
    network.to(memory_format=torch.channels_last)
    path = tmp_path / f"small{suffix}"
    report = export_model(network, path)
    assert report["input"] == [None, 1, 20, 20]
    assert report["bytes"] == path.stat().st_size
    assert network.training  # as it was
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    agree(network, RUN[suffix](path), 1, 20)


def test_feature_maps(tmp_path: Path) -> None:
    backbone = stirred(ModelSpec.of(every_block()).build(features_only=True, out_strides=[2, 4]))
    export_model(backbone, tmp_path / "maps.onnx")
    agree(backbone, run_onnx(tmp_path / "maps.onnx"), 1, 20)


def test_resnet_and_a_users_module(tmp_path: Path) -> None:
    network = stirred(load_model("resnet18_0.125x_width_0.5x_depth", classes=10, small_input=True))
    export_model(network, tmp_path / "resnet.pt2", resolution=28)
    agree(network, run_torch(tmp_path / "resnet.pt2"), 3, 28)
    torch.manual_seed(0)  # of its first weights, whose answers are to differ from zero
    mine = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert export_model(mine, tmp_path / "mine.pt2", resolution=8)["input"] == [None, 2, 8, 8]
    agree(mine, run_torch(tmp_path / "mine.pt2"), 2, 8)


def test_the_command_exports_a_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = stirred(ModelSpec.of(every_block()).build())
    save_model(network, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", "w.safetensors", "out.pt2", "--resolution", "24", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report | {"bytes": 0} == {"path": "out.pt2", "format": "torch", "input": [None, 1, 24, 24], "bytes": 0}
    agree(network, run_torch(tmp_path / "out.pt2"), 1, 24)


class Unsteady(nn.Module):
    """Something that no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_errors_say_what_came_and_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = ModelSpec.of(every_block()).build()
    with pytest.raises(PynasError, match=r"m.bin: its suffix tells no format; allowed: onnx \(.onnx\), torch \(.pt2\)"):
        export_model(network, tmp_path / "m.bin")
    with pytest.raises(PynasError, match="format 'tflite'; allowed: onnx"):
        export_model(network, tmp_path / "m.bin", format="tflite")
    with pytest.raises(PynasError, match="resolution of the Linear is not known; give it"):
        export_model(nn.Linear(3, 3), tmp_path / "m.pt2")
    with pytest.raises(PynasError, match="the Unsteady cannot be exported at 3 x 8 x 8: "):
        export_model(Unsteady(), tmp_path / "m.pt2", resolution=8, input_channels=3)
    with pytest.raises(PynasError, match=r"absent/m.pt2: cannot be written"):
        export_model(nn.Flatten(), tmp_path / "absent" / "m.pt2", resolution=8, input_channels=3)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(PynasError, match=r"ONNX export needs onnxscript: pip install 'pynas-nars\[export\]'"):
        export_model(network, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
