"""Feature maps: strides, sizes and names, heads built on them, and networks with fewer strides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from net_examples import small
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.nets.build import build_network
from pynas.nets.features import FeatureNetwork
from pynas.nets.load import ModelSpec, load_model
from pynas.space.architecture import Architecture, Row

torch.set_num_threads(1)


def five_strides() -> Architecture:
    """A narrow network of total stride 32."""
    blocks = [Row("mbconv", (3, 3), (2.0, 2.0), 8 * i, 2, 2, i > 2, "hswish") for i in range(1, 5)]
    stem = Row("conv", (3, 3), None, 8, 1, 2, False, "hswish")
    pool = Row("mbpool", None, (6.0, 6.0), 64, 1, 1, False, "hswish")
    return Architecture((stem, *blocks, pool, Row("fc", None, None, 10, 1, 1, False, "")), 64)


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) with a dense head of 4 + 1 outputs on each level."""

    def __init__(self, channels: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.head = nn.Conv2d(width, 5, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:])
        return [self.head(level) for level in levels]


def test_maps_are_the_last_block_at_each_stride() -> None:
    architecture = five_strides()
    network = build_network(architecture, seed=1).eval()
    backbone = FeatureNetwork(network, architecture.blocks())
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        maps = backbone(x)
        by_hand = [network.blocks[:end](x) for end in (3, 5, 7, 9)]
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.channels == (8, 16, 24, 32)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 24, 4, 4), (2, 32, 2, 2)]
    assert all(torch.equal(one, other) for one, other in zip(maps, by_hand, strict=True))


def test_published_sizes() -> None:
    """Section 2 of the facts: A at 224 gives 56, 28, 13, 6 with its own paddings; symmetric padding divides evenly."""
    for padding, sizes in ((None, [56, 28, 13, 6]), ("same", [56, 28, 14, 7])):
        backbone = load_model("fbnetv3_a", features_only=True, padding=padding)
        assert backbone.channels == (24, 40, 120, 224)
        with torch.inference_mode():
            assert [m.shape[-1] for m in backbone(torch.zeros(1, 3, 224, 224))] == sizes


def test_weights_and_names_are_the_full_networks() -> None:
    spec = ModelSpec.of(five_strides())
    full, backbone = spec.build(seed=1), spec.build(seed=1, features_only=True)
    state = full.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(state[name], value), name
    other = spec.build(seed=2).state_dict()
    backbone.load_state_dict(other)  # what comes after the maps is passed over
    assert torch.equal(backbone.blocks[0].conv.weight, other["blocks.0.conv.weight"])
    assert "blocks.10.linear.weight" in other  # and left in what was given
    wrapped = nn.ModuleDict({"backbone": backbone})
    wrapped.load_state_dict({f"backbone.{name}": value for name, value in state.items()})
    assert torch.equal(backbone.blocks[0].conv.weight, state["blocks.0.conv.weight"])
    with pytest.raises(RuntimeError, match="Missing key"):
        backbone.load_state_dict({})


@pytest.mark.parametrize("name", ["fbnet", "resnet"])
def test_a_pyramid_learns_through_the_maps(name: str) -> None:
    spec = ModelSpec.of(five_strides())
    backbone = spec.build(features_only=True) if name == "fbnet" else load_model("resnet18", features_only=True)
    head = Pyramid(backbone.channels)
    torch.manual_seed(0)
    outputs = head(backbone(torch.randn(2, 3, 64, 64)))
    assert [tuple(level.shape) for level in outputs] == [(2, 5, 64 // s, 64 // s) for s in backbone.strides]
    sum(level.square().mean() for level in outputs).backward()
    for module in (backbone, head):
        assert all(p.grad is not None for p in module.parameters())


def test_a_c4_head_takes_one_map() -> None:
    """Faster R-CNN's C4 layout: proposals and regions from the map at stride 16, the rest of the network unused."""
    backbone = ModelSpec.of(five_strides()).build(features_only=True, out_strides=[16])
    assert (backbone.strides, backbone.channels) == ((16,), (24,))
    assert len(backbone.blocks) == 7
    proposals = nn.Conv2d(24, 3 * 5, 1)
    regions = nn.Linear(24 * 4, 11)
    (shared,) = backbone(torch.rand(1, 3, 64, 96))
    region = F.adaptive_avg_pool2d(shared[:, :, 1:3, 2:6], 2).flatten(1)
    (proposals(shared).mean() + regions(region).mean()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_networks_with_fewer_strides_give_fewer_maps() -> None:
    backbone = ModelSpec.of(small()).build(features_only=True)  # total stride 4
    assert (backbone.strides, backbone.channels) == ((4,), (24,))
    assert [m.shape[-1] for m in backbone(torch.zeros(2, 1, 16, 16))] == [4]
    assert ModelSpec.of(small()).build(features_only=True, out_strides=[2, 4]).channels == (16, 24)
    small_input = ModelSpec.of(five_strides().with_(small_input=True)).build(features_only=True)
    assert small_input.strides == (4, 8, 16)
    assert load_model("resnet18", small_input=True, features_only=True).strides == (4, 8)
    with pytest.raises(PynasError, match=r"out_strides: got 8, 16; the network has strides 2, 4"):
        ModelSpec.of(small()).build(features_only=True, out_strides=[4, 8, 16])
    with pytest.raises(PynasError, match=r"there is no stride of 4 or more; the network has strides 2$"):
        ModelSpec.of(small().with_(small_input=True)).build(features_only=True)
    for wrong, message in (
        (4, "got 4, allowed is a list"),
        (["4"], "got '4'; the network"),
        ([], "is empty; the network"),
    ):
        with pytest.raises(PynasError, match=f"out_strides: {message}"):
            ModelSpec.of(small()).build(features_only=True, out_strides=wrong)


def test_resnet_maps_are_its_stages() -> None:
    full = load_model("resnet18_0.25x_width", seed=1).eval()
    backbone = load_model("resnet18_0.25x_width", seed=1, features_only=True, out_strides=[8, 16]).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        stages = full.stages(x)
        assert all(torch.equal(a, b) for a, b in zip(backbone(x), stages[1:3], strict=True))
    assert not any(name.startswith("layer4") for name in backbone.state_dict())
    backbone.load_state_dict(full.state_dict())
