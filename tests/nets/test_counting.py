"""A built network does what the compiled core counts: MACs, pool inputs, weights, parameters, sizes, by block."""

from collections.abc import Sequence

import pytest
import torch
from net_examples import small, varied
from torch import Tensor, nn

import pynas
from pynas.nets.build import Network
from pynas.space.architecture import Block
from pynas.space.space import load_architecture


def measured(blocks: Sequence[Block], resolution: int, channels: int) -> list[dict[str, int]]:
    """Counts per block, taken from the shapes that flow through the modules of a real forward pass."""
    counts = [dict.fromkeys(("macs", "flops", "params", "parameters", "out_size"), 0) for _ in blocks]

    def watch(count: dict[str, int], module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Conv2d | nn.Linear):
                macs = output[0].numel() * module.weight[0].numel()
                count["macs"] += macs
                count["flops"] += macs
                count["params"] += module.weight.numel()
            elif isinstance(module, nn.AdaptiveAvgPool2d):
                count["flops"] += inputs[0][0].numel()

        module.register_forward_hook(hook)

    with torch.device("meta"):
        network = Network(blocks).eval()
    network.to_empty(device="cpu")  # the values do not matter, and initial ones would take longer than the pass
    with torch.inference_mode():
        for count, block in zip(counts, network.blocks, strict=True):
            count["parameters"] = sum(parameter.numel() for parameter in block.parameters())
            for module in block.modules():
                watch(count, module)
        x = torch.zeros(1, channels, resolution, resolution)
        for count, block in zip(counts, network.blocks, strict=True):
            x = block(x)
            count["out_size"] = x.shape[-1] if x.dim() == 4 else 1
    return counts


def expected(blocks: Sequence[Block]) -> list[dict[str, int]]:
    return [
        {key: getattr(block, key) for key in ("macs", "flops", "params", "parameters", "out_size")} for block in blocks
    ]


def test_every_kind_of_block() -> None:
    architecture = small()
    blocks = architecture.blocks()
    assert {block.kind for block in blocks} == {"conv", "mbconv", "mbpool", "fc"}
    assert measured(blocks, architecture.resolution, architecture.input_channels) == expected(blocks)


@pytest.mark.parametrize("splits", [0, 1, 2, 4])
@pytest.mark.parametrize("act", ["hswish", "relu", "swish"])
def test_skips_splits_and_activations(splits: int, act: str) -> None:
    architecture = varied(act, splits)
    blocks = architecture.blocks()
    assert [block.identity for block in blocks if block.kind == "skip"] == [True, False, False]
    assert [bool(block.se_channels) for block in blocks if block.kind == "mbconv"] == [splits > 0] * 4
    counted = expected(blocks)
    assert measured(blocks, architecture.resolution, architecture.input_channels) == counted
    assert {key: sum(block[key] for block in counted) for key in architecture.cost()} == architecture.cost()


@pytest.mark.parametrize("name", ["fbnetv2_f1", "fbnetv2_f4", "fbnetv2_l1", "fbnetv2_l3", "fbnetv3_a", "fbnetv3_g"])
def test_shipped_networks(name: str) -> None:
    architecture = load_architecture(name, resolution=96)
    blocks = architecture.blocks()
    assert measured(blocks, 96, 3) == expected(blocks)


@pytest.mark.parametrize(("name", "genomes"), [("fbnetv3_28", 30), ("fbnetv3", 8)])
def test_random_genomes_of_the_shipped_spaces(name: str, genomes: int) -> None:
    space = pynas.load_space(name)
    for genome in space.sample(genomes, seed=1):
        architecture, _ = space.decode(genome)
        blocks = architecture.blocks()
        assert measured(blocks, architecture.resolution, architecture.input_channels) == expected(blocks), architecture
