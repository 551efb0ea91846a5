"""Building: initial weights, what a seed decides, rates of stochastic depth, and errors."""

import dataclasses

import pytest
import torch
from net_examples import small

from pynas.errors import PynasError
from pynas.nets.blocks import ConvBlock, MBConv, SqueezeExcite, StochasticDepth
from pynas.nets.build import build, build_network
from pynas.space.architecture import Recipe

BLOCKS = small().blocks()


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, same, other = build(BLOCKS, seed=1), build(BLOCKS, seed=1), build(BLOCKS, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(first.blocks[0].conv.weight, other.blocks[0].conv.weight)


def test_initial_weights() -> None:
    network = build(BLOCKS)
    assert torch.equal(network.blocks[0].conv.bias, torch.zeros(8))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 1000:
            fan_out = module.weight.numel() / module.weight.shape[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
            assert torch.equal(module.running_var, torch.ones_like(module.running_var))


def test_residual_blocks_start_as_the_identity() -> None:
    network = build(BLOCKS)
    residual = [module for module in network.blocks if isinstance(module, MBConv) and module.residual]
    assert len(residual) == 2
    x = torch.randn(3, 24, 4, 4)
    for module in residual:
        assert torch.equal(module(x), x)


def test_layers_follow_the_block() -> None:
    network = build(BLOCKS)
    stem, first, second = network.blocks[:3]
    assert isinstance(stem, ConvBlock)
    assert stem.conv.bias is not None
    convolutions = [module for module in first.branch if isinstance(module, torch.nn.Conv2d)]
    assert [module.kernel_size for module in convolutions] == [(3, 3), (1, 1)]  # no expansion where it would not widen
    assert not any(isinstance(module, SqueezeExcite) for module in first.modules())
    assert isinstance(second.branch[-2], SqueezeExcite)
    assert all(module.bias is None for module in second.branch if isinstance(module, torch.nn.Conv2d))


def test_the_stems_bias_may_be_left_out() -> None:
    plain = small().with_(stem_bias=False)
    assert build(plain.blocks()).blocks[0].conv.bias is None
    assert plain.cost()["parameters"] == small().cost()["parameters"] - 8


def test_padding_of_a_block_is_the_convolutions() -> None:
    strided = next(block for block in BLOCKS if block.kind == "mbconv" and block.stride == 2)
    assert strided.padding == 2
    module = MBConv(dataclasses.replace(strided, padding=0))
    assert module(torch.zeros(1, strided.in_channels, 8, 8)).shape == (1, strided.channels, 2, 2)


def test_stochastic_depth_rises_linearly_over_the_mbconvs() -> None:
    network = build_network(small(), Recipe(0.1, "SGD", False, 0.25, 0.3, 0.0, 0.0))
    rates = [module.drop.rate for module in network.blocks if isinstance(module, MBConv)]
    assert rates == pytest.approx([0.0, 0.0, 0.2, 0.3])  # the second has no residual, hence nothing to fall back on
    assert network.blocks[-1].dropout.p == 0.25


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3, 3)
    y = drop(x)
    kept = y[:, 0, 0, 0] > 0
    assert torch.equal(y, kept.view(-1, 1, 1, 1) * (x / 0.75))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(StochasticDepth(1.0)(x), torch.zeros_like(x))


def test_the_network_gives_logits_and_every_parameter_gets_a_gradient() -> None:
    network = build(BLOCKS, dropout=0.2, stochastic_depth=0.2)
    torch.manual_seed(0)
    logits = network(torch.randn(8, 1, 16, 16))
    assert logits.shape == (8, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_errors_say_what_came_and_what_is_allowed() -> None:
    unknown_act = (dataclasses.replace(BLOCKS[0], act="gelu"), *BLOCKS[1:])
    with pytest.raises(PynasError, match="act: got 'gelu', allowed are hswish, relu, swish"):
        build(unknown_act)
    unknown_kind = (dataclasses.replace(BLOCKS[0], kind="attention"), *BLOCKS[1:])
    with pytest.raises(
        PynasError, match="block of row 0: got kind 'attention', allowed are conv, mbconv, skip, mbpool, fc"
    ):
        build(unknown_kind)
    with pytest.raises(PynasError, match=r"dropout: got 1\.5, allowed is a probability"):
        build(BLOCKS, dropout=1.5)
    with pytest.raises(PynasError, match="ends in its one fc block"):
        build(BLOCKS[:-1])
