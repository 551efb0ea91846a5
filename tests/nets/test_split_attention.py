"""Skip blocks, Split-Attention and activations against the same written out in plain torch, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pynas.nets.blocks import MBConv, SkipBlock, SplitAttention, SqueezeExcite
from pynas.nets.build import build
from pynas.space.architecture import Architecture, Block, Row

ACTIVATIONS = {
    "hswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "relu": lambda x: x.clamp(min=0),
    "swish": lambda x: x * torch.sigmoid(x),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def block_of(row: Row, c: int = 8, size: int = 9) -> Block:
    stem = Row("conv", (3, 3), None, c, 1, 1, False, "relu")
    head = (Row("mbpool", None, (6, 6), 16, 1, 1, False, "relu"), Row("fc", None, None, 4, 1, 1, False, ""))
    return Architecture((stem, row, *head), size).blocks()[1]


def random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Float64 weights without zeros, scales and running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return module


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    scaled = (x - mean) / (variance + norm.eps).sqrt()
    return scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def attention(maps: list[Tensor], module: SplitAttention, act: str) -> Tensor:
    """ResNeSt's definition: `maps` are the splits, (N, C, H, W) each."""
    pooled = sum(maps).mean((2, 3))  # type: ignore[union-attr]
    hidden = ACTIVATIONS[act](pooled @ module.reduce.weight[:, :, 0, 0].T + module.reduce.bias)
    logits = hidden @ module.expand.weight[:, :, 0, 0].T + module.expand.bias
    channels = maps[0].shape[1]
    scores = torch.stack([logits[:, r * channels : (r + 1) * channels] for r in range(len(maps))]).exp()
    weights = scores / scores.sum(0)
    return sum(w[:, :, None, None] * m for w, m in zip(weights, maps, strict=True))  # type: ignore[return-value]


def mbconv(x: Tensor, module: MBConv, block: Block) -> Tensor:
    """The block in training mode, one convolution a split and a channel."""
    act = ACTIVATIONS[block.act]
    layers = list(module.branch)
    y = x
    if block.mid_channels != block.in_channels:
        y = act(batch_norm(F.conv2d(x, layers[0].weight), layers[1]))
        layers = layers[3:]
    depthwise, norm, _, split, project = layers
    kernels = depthwise.weight.view(block.mid_channels, block.splits, block.kernel, block.kernel)
    maps = []
    for r in range(block.splits):
        channels = [
            F.conv2d(y[:, c : c + 1], kernels[c, r][None, None], stride=block.stride, padding=block.padding)
            for c in range(block.mid_channels)
        ]
        maps.append(torch.cat(channels, 1))
    flat = act(batch_norm(torch.stack(maps, 2).flatten(1, 2), norm))  # a channel's splits side by side
    maps = list(flat.unflatten(1, (block.mid_channels, block.splits)).unbind(2))
    y = batch_norm(F.conv2d(attention(maps, split, block.act), project.weight), module.norm)
    return x + y if block.in_channels == block.channels and block.stride == 1 else y


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("splits", [2, 4])
@pytest.mark.parametrize(("e", "c", "s"), [(3.0, 8, 1), (1.0, 16, 2)])
def test_an_mbconv_with_split_attention(act: str, splits: int, e: float, c: int, s: int) -> None:
    block = block_of(Row("mbconv", (5, 5), (e, e), c, 1, s, splits, act))
    module = random_weights(MBConv(block))
    assert isinstance(module, MBConv)
    x = torch.randn(3, 8, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(module.parameters())
    results = []
    for output in (module(x), mbconv(x, module, block)):
        gradients = torch.autograd.grad(output.pow(3).sum(), parameters)
        results.append((output, gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for (name, parameter), mine, other in zip(module.named_parameters(), our_gradients, their_gradients, strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(mine / scale, other / scale, rtol=1e-7, atol=1e-9, msg=f"{name} {parameter.shape}")


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_one_split_is_squeeze_and_excite(act: str) -> None:
    squeeze = random_weights(SqueezeExcite(16, 8, act))
    split = SplitAttention(16, 8, 1, act).double()
    split.load_state_dict(squeeze.state_dict())
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(split(x), squeeze(x), rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(module(x).square().sum(), x)[0] for module in (split, squeeze))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    block = block_of(Row("mbconv", (3, 3), (4, 4), 8, 1, 1, 1, act))
    assert block.splits == 1
    assert any(isinstance(module, SqueezeExcite) for module in MBConv(block).modules())


def test_equal_kernels_make_split_attention_the_plain_block() -> None:
    """Weights of a channel's splits add up to one, so splits that are all alike come out as one of them."""
    split = random_weights(SplitAttention(6, 8, 4, "relu"))
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(split(x.repeat_interleave(4, 1)), x)


def test_squeeze_and_excite_reduces_with_the_blocks_activation() -> None:
    for act, function in ACTIVATIONS.items():
        module = random_weights(SqueezeExcite(12, 8, act))
        x = torch.randn(2, 12, 4, 4, dtype=torch.float64)
        hidden = function(x.mean((2, 3)) @ module.reduce.weight[:, :, 0, 0].T + module.reduce.bias)
        gate = ((hidden @ module.expand.weight[:, :, 0, 0].T + module.expand.bias) + 3).clamp(0, 6) / 6
        torch.testing.assert_close(module(x), x * gate[:, :, None, None])


def test_a_skip_that_can_be_is_the_identity() -> None:
    block = block_of(Row("skip", None, None, 8, 1, 1, False, "relu"))
    module = SkipBlock(block)
    x = torch.randn(2, 8, 9, 9)
    assert block.identity
    assert module(x) is x
    assert list(module.parameters()) == []


@pytest.mark.parametrize(("c", "s", "act"), [(8, 2, "relu"), (24, 1, "hswish"), (16, 2, "swish")])
def test_any_other_skip_is_a_convolution(c: int, s: int, act: str) -> None:
    block = block_of(Row("skip", None, None, c, 1, s, False, act))
    assert not block.identity
    assert not block.residual
    module = random_weights(SkipBlock(block))
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = torch.einsum("nchw,oc->nohw", x[:, :, ::s, ::s], module.conv.weight[:, :, 0, 0])
    torch.testing.assert_close(module(x), ACTIVATIONS[act](batch_norm(expected, module.norm)))
    assert module.conv.bias is None


def test_stochastic_depth_counts_mbconvs_and_leaves_skips_alone() -> None:
    row = Row("mbconv", (3, 3), (2, 2), 8, 1, 1, 2, "relu")
    stem = Row("conv", (3, 3), None, 8, 1, 1, False, "relu")
    skip = Row("skip", None, None, 8, 1, 1, False, "relu")
    head = (Row("mbpool", None, (6, 6), 16, 1, 1, False, "relu"), Row("fc", None, None, 4, 1, 1, False, ""))
    blocks = Architecture((stem, row, skip, row, replace(skip, c=16), *head), 9).blocks()
    network = build(blocks, stochastic_depth=0.4)
    assert [module.drop.rate for module in network.blocks if isinstance(module, MBConv)] == [0.0, 0.4]
    assert sum(isinstance(module, SkipBlock) for module in network.blocks) == 2
    logits = network(torch.randn(4, 3, 9, 9))
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_split_attention_keeps_the_memory_format_and_runs_in_half_precision() -> None:
    network = build(
        Architecture(
            (
                Row("conv", (3, 3), None, 8, 1, 1, False, "swish"),
                Row("mbconv", (3, 3), (2, 2), 8, 1, 1, 4, "swish"),
                Row("mbpool", None, (6, 6), 16, 1, 1, False, "relu"),
                Row("fc", None, None, 4, 1, 1, False, ""),
            ),
            9,
        ).blocks()
    ).eval()
    x = torch.randn(2, 3, 9, 9)
    plain = network(x)
    torch.testing.assert_close(network(x.to(memory_format=torch.channels_last)), plain, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x).float(), plain, rtol=0.1, atol=0.02)
