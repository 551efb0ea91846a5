"""From blocks to a network with initial weights that depend on nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.nets.blocks import ConvBlock, Head, MBConv, MBPool, SkipBlock
from pynas.space.architecture import Architecture, Block, Recipe

LINEAR_STD = 0.01  # of the classifier's weights: logits start near zero, the first loss near log(classes)


class Network(nn.Module):
    """The blocks in order: float images (N, input_channels, H, W) to logits (N, classes).

    `stochastic_depth` is the drop rate d of the last MBConv; the rates of the earlier ones rise linearly from zero at
    the first, counted over all MBConvs. `dropout` is the probability p before the classifier.
    """

    def __init__(self, blocks: Sequence[Block], *, dropout: float = 0.0, stochastic_depth: float = 0.0) -> None:
        super().__init__()
        for name, value in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if not 0.0 <= value <= 1.0:
                raise PynasError(f"{name}: got {value}, allowed is a probability from 0 to 1")
        if [block.kind for block in blocks].count("fc") != 1 or blocks[-1].kind != "fc":
            kinds = ", ".join(block.kind for block in blocks)
            raise PynasError(f"blocks: got {kinds or 'none'}, a network ends in its one fc block")
        inner = sum(block.kind == "mbconv" for block in blocks)
        layers: list[nn.Module] = []
        mbconvs = 0
        for block in blocks:
            ramp = mbconvs / (inner - 1) if inner > 1 else 1.0
            layers.append(make_block(block, dropout=dropout, drop=stochastic_depth * ramp))
            mbconvs += block.kind == "mbconv"
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def make_block(block: Block, *, dropout: float = 0.0, drop: float = 0.0) -> nn.Module:
    """The module of one block; `dropout` is of an fc, `drop` the rate of stochastic depth of an mbconv."""
    match block.kind:
        case "conv":
            return ConvBlock(block)
        case "mbconv":
            return MBConv(block, drop=drop)
        case "skip":
            return SkipBlock(block)
        case "mbpool":
            return MBPool(block)
        case "fc":
            return Head(block, dropout)
        case kind:
            raise PynasError(f"block of row {block.row}: got kind {kind!r}, allowed are conv, mbconv, skip, mbpool, fc")


def build(
    blocks: Sequence[Block], *, dropout: float = 0.0, stochastic_depth: float = 0.0, seed: int | torch.Generator = 0
) -> Network:
    """The network of `blocks` (as `Architecture.blocks()` returns them) on the CPU, float32, in training mode.

    The initial weights are a function of the blocks and of `seed` (or of the state of a CPU generator) alone; torch's
    global random state is neither read nor changed. Raises PynasError for a kind, an activation or a probability that
    does not exist.
    """
    with torch.device("meta"):  # torch's own initial values would be drawn from the global generator, then overwritten
        network = Network(blocks, dropout=dropout, stochastic_depth=stochastic_depth)
    allocate(network)
    initialise(network, torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed)
    return network


def build_network(architecture: Architecture, recipe: Recipe | None = None, *, seed: int = 0) -> Network:
    """The network of `architecture`, with the dropout and the stochastic depth of `recipe` (none without one)."""
    if recipe is None:
        return build(architecture.blocks(), seed=seed)
    return build(architecture.blocks(), dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=seed)


def allocate(network: nn.Module) -> None:
    """`network.to_empty(device="cpu")` for one on the meta device, without importing sympy as that does."""
    network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Sets every parameter and every buffer in place, in the order of the modules.

    Convolutions: Kaiming normal, fan out (of the released models); biases zero; batch-norm the identity, except that
    the last one of a residual branch starts at zero, so that every residual block starts as the identity.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=LINEAR_STD, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, MBConv) and module.residual:
            nn.init.zeros_(module.norm.weight)
