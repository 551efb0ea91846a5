"""ResNet-18: the published count, the multipliers, the small stem, and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pynas.errors import PynasError
from pynas.nets.load import load_model
from pynas.nets.resnet import BasicBlock, ResNet, resnet18

torch.set_num_threads(1)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def shape_of(**keywords: object) -> ResNet:
    with torch.device("meta"):
        return ResNet(**keywords)


def test_the_standard_one_has_torchvisions_parameters_under_its_names() -> None:
    network = shape_of()
    assert parameters(network) == 11_689_512
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(state) == 122
    assert state["conv1.weight"] == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert state["layer4.1.bn2.running_var"] == (512,)
    assert state["fc.weight"] == (1000, 512)


def test_multipliers_of_width_and_depth() -> None:
    wide, deep = shape_of(width=1.4), shape_of(depth=2.0)
    assert wide.channels == (88, 176, 360, 720)
    assert [len(stage) for stage in (deep.layer1, deep.layer2, deep.layer3, deep.layer4)] == [4, 4, 4, 4]
    # By hand: a block more than the first of its stage has 2 * 9 * c * c weights and 4 * c of batch-norm.
    assert parameters(deep) - 11_689_512 == sum(2 * (18 * c * c + 4 * c) for c in (64, 128, 256, 512))
    assert parameters(load_model("resnet18_1.4x_width", classes=10)) == parameters(shape_of(width=1.4, classes=10))
    assert parameters(load_model("resnet18_2x_depth", classes=10)) == parameters(shape_of(depth=2.0, classes=10))


def test_small_inputs_keep_their_size_through_the_stem() -> None:
    network = resnet18(width=0.25, small_input=True, input_channels=1, classes=10)
    maps = network.stages(torch.zeros(1, 1, 28, 28))
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 28, 28), (32, 14, 14), (64, 7, 7), (128, 4, 4)]
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    maps = resnet18(width=0.25).stages(torch.zeros(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]


def test_the_seed_decides_the_weights_and_blocks_start_as_their_shortcut() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, same, other = (resnet18(0.25, classes=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    x = torch.rand(2, 16, 4, 4)
    assert torch.equal(first.layer1[0](x), x)


def test_rates_rise_to_the_last_block_and_every_parameter_gets_a_gradient() -> None:
    network = resnet18(0.125, classes=10, dropout=0.3, stochastic_depth=0.14)
    rates = [module.drop.rate for module in network.modules() if isinstance(module, BasicBlock)]
    assert rates == pytest.approx([0.02 * i for i in range(8)])
    assert network.dropout.p == 0.3
    torch.manual_seed(0)
    network(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_errors_say_what_is_allowed() -> None:
    for keywords, message in [
        ({"width": 0.0}, "width: got 0.0, allowed are multipliers above 0"),
        ({"depth": 1e6}, "depth: got 1000000.0, allowed are multipliers"),
        ({"classes": 10**9}, "classes: got 1000000000, allowed are whole numbers from 1 to 65536"),
        ({"dropout": 1.5}, "dropout: got 1.5, allowed is a probability"),
        ({"stochastic_depth": -1.0}, "stochastic_depth: got -1.0, allowed is a probability"),
    ]:
        with pytest.raises(PynasError, match=message):
            resnet18(**keywords)
