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
from pynas.ops.foreign import FusedBlock
from pynas.ops.sync_batch_norm import SyncBatchNormAct, convert_sync_batchnorm

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
    assert sum(isinstance(block, FusedBlock) for block in fused.modules()) == BLOCKS[name]
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
    assert set(done.left.values()) == {"convolution Conv2dSame; allowed: Conv2d"}
    assert str(done).splitlines()[0] == "12 blocks fused, 4 left"
    again = fuse(network)
    assert (again.replaced, again.left) == ([], done.left)
    others = fuse(peers("timm efficientnetv2_rw_t")).left
    assert "not 1x1" in others["blocks.1.0"]
    assert "blocks.0.0" in others


def test_a_block_that_is_no_longer_as_its_library_made_it_is_left(peers: Any) -> None:
    network = peers("torchvision mobilenet_v3_small")
    features = network.features

    class Own(type(features[9])):  # type: ignore[misc]
        pass

    features[3].block = nn.Identity()
    features[4].block[1][2] = nn.ReLU()
    features[5].block[2].scale_activation = nn.Tanh()
    features[6].block[0][1] = nn.GroupNorm(4, 240)
    features[7].forward = lambda x: x
    features[8].block[2].fc1 = nn.utils.parametrizations.weight_norm(features[8].block[2].fc1)
    features[9].__class__ = Own
    features[10].block = nn.Sequential()
    done = fuse(network)
    assert set(done.left) == {f"features.{i}" for i in range(3, 11)}
    assert done.left["features.3"] == "branch Identity; allowed: Sequential"
    assert done.left["features.4"] == "activations hswish, relu; allowed: the same for both"
    assert done.left["features.5"].startswith("gate's function Tanh; allowed: Hardsigmoid")
    assert done.left["features.6"] == "norm GroupNorm; allowed: BatchNorm2d, SyncBatchNorm"
    assert done.left["features.7"] == "it has a forward of its own"
    assert done.left["features.8"] == "gate's layer ParametrizedConv2d; allowed: Conv2d"
    assert done.left["features.9"] == "Own is a class of its own, made of such a block's"
    assert done.left["features.10"] == "0 layers; allowed: 5, or 8 with an expansion"
    eca = peers("timm mobilenetv3_large_100", se_from_exp=True)
    eca.blocks[2][0].se = nn.Sequential()
    eca.blocks[2][1].bn3.act = nn.ReLU()
    left = fuse(eca).left
    assert left["blocks.2.0"] == "attention Sequential; allowed: SqueezeExcite"
    assert left["blocks.2.1"] == "activation after the last norm ReLU; allowed: Identity"


def small(peers: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network, the same fused, and images."""
    network = peers("timm mobilenetv3_large_100", drop_path_rate=0.5).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)
    fused = copy.deepcopy(network)
    fuse(fused)
    return network, fused, x


def test_what_is_done_to_a_block_afterwards_counts_as_before(peers: Any) -> None:
    """Each change is one after which the library's own forward is taken, and no other block's is affected."""
    import timm

    network, fused, x = small(peers)
    for change in (
        lambda net: timm.utils.freeze(net, "blocks.1"),
        lambda net: setattr(net.blocks[2][0], "aa", nn.AvgPool2d(3, 1, 1)),
        lambda net: setattr(net.blocks[2][1].bn3, "act", nn.ReLU()),
        lambda net: setattr(net.blocks[2][2].se, "gate", nn.Tanh()),
        lambda net: setattr(net.blocks[3][1], "drop_path", nn.Dropout(0.0)),
        lambda net: setattr(net.blocks[3][2], "forward", lambda x: 2 * x),
        lambda net: net.blocks[4][1].bn1.register_forward_hook(lambda module, given, result: result.clamp(max=1.0)),
    ):
        change(network)
        change(fused)
        torch.testing.assert_close(fused(x), network(x), rtol=1e-3, atol=1e-4)


def test_every_hook_within_a_block_is_called_with_what_its_module_gives(peers: Any) -> None:
    network, fused, x = small(peers)
    seen: dict[str, list[Tensor]] = {}
    for kind, net in (("as it is", network), ("fused", fused)):
        seen[kind] = kept = []

        def hook(module: nn.Module, given: Any, result: Tensor, kept: list[Tensor] = kept) -> None:
            kept.append(result.clone())

        for name in ("conv_pw", "bn1", "bn1.act", "bn1.drop", "se", "drop_path", "bn3.act"):
            net.blocks[2][1].get_submodule(name).register_forward_hook(hook)
        torch.manual_seed(3)
        net.train()(x)
    assert len(seen["fused"]) == len(seen["as it is"]) == 7
    for mine, theirs in zip(seen["fused"], seen["as it is"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    other = peers("torchvision mobilenet_v2").eval()
    fuse(other)
    other.features[2].conv[0].register_forward_hook(lambda *_: seen["fused"].clear())
    other(x)
    assert not seen["fused"]


def test_classes_copies_files_and_ranks_go_on(peers: Any) -> None:
    network, fused, x = small(peers)
    expected = network(x)
    block = fused.blocks[2][1]
    assert isinstance(block, type(network.blocks[2][1]))
    assert type(block.bn1) is type(network.blocks[2][1].bn1)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (fused, copy.deepcopy(fused), torch.load(file, weights_only=False)):
        assert type(other.blocks[2][1]) is type(block)
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)
    convert_sync_batchnorm(fused)
    assert isinstance(block.bn1, SyncBatchNormAct)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    mine, theirs = results(fused.train(), x), results(network.train(), x)
    check(mine, theirs, 1e-2)


def test_tracing_sees_the_librarys_own_forward(peers: Any) -> None:
    network, fused, x = small(peers)
    expected = network(x)
    traced = torch.fx.symbolic_trace(fused.blocks)
    assert any(node.target == "1.0.conv_pw" for node in traced.graph.nodes)
    torch.testing.assert_close(torch.jit.trace(fused, x)(x), expected, rtol=1e-4, atol=1e-5)


def test_under_autocast_dtypes_are_the_librarys(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, fused, _ = small(peers)
    monkeypatch.setattr(mbconv_choice, "steps_for", lambda x: reference_mbconv)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for i in (1, 2):  # with x added and without
            block, own = network.blocks[2][i - 1].to(torch.float32), fused.blocks[2][i - 1].to(torch.float32)
            if dtype == torch.float64:
                block, own = block.double(), own.double()
            given = torch.randn(2, block.conv_pw.in_channels, 9, 9).to(dtype).contiguous(memory_format=LAST)
            with torch.autocast("cpu", torch.bfloat16):
                right, found = block(given), own(given)
            assert found.dtype == right.dtype
            torch.testing.assert_close(found, right, rtol=0.05, atol=0.05)


def test_a_fused_network_compiles_in_one_graph(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = peers("torchvision mobilenet_v3_small").eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)
    expected = network(x)
    fuse(network)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(mbconv_choice, "steps_for", lambda x: reference_mbconv)
    torch._dynamo.reset()
    block, given = network.features[5].train(), torch.randn(2, 40, 9, 9).contiguous(memory_format=LAST)
    right = block(given)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(given), right, rtol=1e-4, atol=1e-5)


def test_a_block_is_called_as_before(peers: Any) -> None:
    network = peers("torchvision mobilenet_v3_small").eval()
    fused = copy.deepcopy(network)
    fuse(fused)
    x = torch.randn(1, 16, 8, 8).contiguous(memory_format=LAST)
    torch.testing.assert_close(fused.features[1](input=x), network.features[1](x))
    for wrong in (x[:, :8], x[0, 0, 0]):
        with pytest.raises(RuntimeError) as right:
            network.features[1](wrong)
        with pytest.raises(RuntimeError) as found:
            fused.features[1](wrong)
        assert str(found.value) == str(right.value)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(PynasError, match=r"fuse: got str, allowed is an nn\.Module"):
        fuse("efficientnet_b0")  # type: ignore[arg-type]
    assert fuse(nn.Linear(2, 2)) == ([], {})
