"""`pynas.ops.fuse` on the networks of timm and torchvision: the same results, state and draws, and what it says."""

from __future__ import annotations

import copy
import io
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import fuse, mbconv_choice, reference_mbconv, rules
from pynas.ops.inverted_residual import InvertedResidual
from pynas.ops.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm

LAST = torch.channels_last
BLOCKS = {
    "timm efficientnet_b0": 16,
    "timm mobilenetv3_large_100": 15,
    "timm mobilenetv2_100": 17,
    "timm fbnetv3_b": 29,
    "torchvision mobilenet_v2": 17,
    "torchvision mobilenet_v3_small": 11,
    "torchvision efficientnet_b0": 16,
}


@pytest.fixture(scope="module")
def peers() -> Any:
    """Makes a network of that name. torchvision's operators are CUDA's; its networks need none but their names."""
    if find_spec("timm") is None or find_spec("torchvision") is None:
        pytest.skip("pip install --no-deps timm torchvision, as make test does")
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor d, Tensor s, float t) -> Tensor")

    def make(name: str, **options: Any) -> nn.Module:
        import timm
        import torchvision

        source, _, kind = name.partition(" ")
        torch.manual_seed(0)
        made = timm.create_model(kind, **options) if source == "timm" else getattr(torchvision.models, kind)(**options)
        return made.to(memory_format=LAST)

    make.library = library  # type: ignore[attr-defined]  # which ends when nobody holds it
    return make


def results(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of a network, buffers included."""
    network, x = copy.deepcopy(network), x.clone().requires_grad_()
    torch.manual_seed(7)  # of stochastic depth and dropout
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    found = [y.detach(), x.grad, *(value.grad for value in network.parameters()), *network.buffers()]
    return [value for value in found if value is not None and value.is_floating_point()]


def check(found: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(right) > 20
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("name", BLOCKS)
def test_networks_compute_what_they_did(peers: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MEASURED", False)
    rate = {"stochastic_depth_prob": 0.3} if name == "torchvision efficientnet_b0" else {"drop_path_rate": 0.3}
    network = peers(name, **({} if "mobilenet" in name and name.startswith("torchvision") else rate)).double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=LAST)
    fused = copy.deepcopy(network)
    done = fuse(fused)
    assert len(done.replaced) == BLOCKS[name]
    assert sum(isinstance(block, InvertedResidual) for block in fused.modules()) == BLOCKS[name]
    assert list(fused.state_dict()) == list(network.state_dict())
    for training in (True, False):
        network.train(training)
        fused.train(training)
        expected = results(network, x)
        check(results(fused, x), expected, 1e-7)
        with monkeypatch.context() as patch:  # whole blocks, as on a GPU
            patch.setattr(mbconv_choice, "steps_for", lambda x: reference_mbconv)
            check(results(fused, x), expected, 1e-7)


def test_what_is_left_is_named_with_its_reason(peers: Any) -> None:
    network = peers("timm tf_efficientnet_b0")
    done = fuse(network)
    assert len(done.replaced) == 12
    assert set(done.left) == {f"blocks.{i}.0" for i in (1, 2, 3, 5)}
    assert set(done.left.values()) == {"layer Conv2dSame; allowed: Conv2d"}
    assert str(done).splitlines()[0] == "12 blocks fused, 4 left"
    assert type(network.blocks[1][0].bn1).__name__ == "BatchNormAct2d"
    assert fuse(network).replaced == []
    others = fuse(peers("timm efficientnetv2_rw_t")).left
    assert "not 1x1" in others["blocks.1.0"]
    assert "blocks.0.0" in others


def test_a_block_that_is_no_longer_as_its_library_made_it_is_left(peers: Any) -> None:
    network = peers("torchvision mobilenet_v3_small")
    network.features[4].block[1][2] = nn.ReLU()
    network.features[5].block[2].scale_activation = nn.Tanh()
    network.features[6].block[0][1] = nn.GroupNorm(4, 240)
    network.features[7].forward = lambda x: x
    done = fuse(network)
    assert set(done.left) == {f"features.{i}" for i in (4, 5, 6, 7)}
    assert done.left["features.4"] == "activations hswish, relu; allowed: the same for both"
    assert "gate TorchvisionSqueezeExcitation has" in done.left["features.5"]
    assert done.left["features.6"] == "layer GroupNorm; allowed: BatchNorm2d, SyncBatchNorm"
    assert "forward of its own" in done.left["features.7"]
    assert type(network.features[5].block[2]).__name__ == "SqueezeExcitation"


def test_hooks_copies_files_and_ranks_go_on(peers: Any) -> None:
    network = peers("timm mobilenetv3_large_100").eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)
    expected = network(x)
    fuse(network)
    seen: list[Any] = []
    hook = network.blocks[1][0].conv_pw.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    assert seen == [1]
    hook.remove()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected, rtol=1e-4, atol=1e-5)
    convert_sync_batchnorm(network.blocks)
    assert isinstance(network.blocks[1][0].bn1, SyncBatchNorm)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_a_fused_network_compiles_in_one_graph(peers: Any) -> None:
    network = peers("torchvision mobilenet_v3_small").eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)
    expected = network(x)
    fuse(network)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(PynasError, match=r"fuse: got str, allowed is an nn\.Module"):
        fuse("efficientnet_b0")  # type: ignore[arg-type]
    assert fuse(nn.Linear(2, 2)) == ([], {})
