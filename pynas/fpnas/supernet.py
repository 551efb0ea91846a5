"""The supernet: one set of weights from which every architecture of a space takes its own (FP-NAS, sections 3.1 and 4).

An architecture is computed by the network that `pynas.nets` builds for it, with views of the supernet's weights in the
place of weights of its own. Nothing else is computed or held: the memory of a step is that of the sampled network, and
of the weights. What is shared and what is not:

- Widths and expansions share by slicing: n channels are the first n of the widest layer's, which computes what
  FBNetV2's masks would, without the channels that these set to zero.
- Activations share everything.
- Kernel sizes have depthwise weights of their own, and share all others.
- Numbers of splits share nothing ("we do not share the model weights of MBConv block between choices of no. of splits",
  section 4): each has an MBConv of its own.
- A block that kernel 0 leaves out has a 1x1 convolution of its own, where it is not the identity.

Batch-norm normalises by the statistics of the batch, in evaluation too: those of one path say nothing about another's,
and running ones would be of a mixture that no architecture has. Its weights are shared as those of its convolution are.

Shapes: N images, C channels, H = W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pynas.nets.attention import SplitAttention, SqueezeExcite
from pynas.nets.blocks import ConvBlock, Head, MBConv, MBPool, SkipBlock
from pynas.nets.build import LINEAR_STD, make_block
from pynas.space.architecture import Architecture, Block
from pynas.space.space import Space, core
from pynas.space.table import TableRow, Variable

MOST_BLOCKS = 2048
"""Modules of blocks that are kept for the next path."""


class Supernet(nn.Module):
    """The weights of a space, drawn from `seed` alone, and the networks that share them.

    Parameters are float32 on the CPU at first and are named ``row/position/.../layer/weight`` after the block and the
    layer they belong to. Raises PynasError for a space that cannot be built.
    """

    def __init__(self, space: Space, *, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.weights = nn.ParameterDict()
        self._blocks: dict[tuple[int, Block], _PathBlock] = {}
        generator = torch.Generator().manual_seed(seed)
        for name, shape in _widest(space).items():
            self.weights[name] = nn.Parameter(_initial(name, shape, generator))

    def path(self, architecture: Architecture) -> tuple[nn.Sequential, list[str]]:
        """The network of `architecture`, in training mode, whose parameters are views of the supernet's, and the names
        of these, each once. Good until the next call: blocks are used again.
        """
        modules, names = [], []
        position, row = 0, -1
        for block in architecture.blocks():
            position, row = (position + 1 if block.row == row else 0), block.row
            found = self._block(position, block)
            for parameter in found.parameters:
                view = self.weights[parameter.name][parameter.slices].reshape(parameter.shape)
                parameter.owner._parameters[parameter.attribute] = view
                names.append(parameter.name)
            modules.append(found.module)
        return nn.Sequential(*modules), names

    def _block(self, position: int, block: Block) -> _PathBlock:
        """Making modules takes longer than running small ones: they are kept."""
        if (position, block) not in self._blocks:
            if len(self._blocks) >= MOST_BLOCKS:
                self._blocks.clear()
            self._blocks[position, block] = _path_block(position, block)
        return self._blocks[position, block]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_blocks": {}}  # whose views of the weights are nobody else's

    def scaled(self, images: Tensor, architecture: Architecture) -> Tensor:
        """Images, float (N, C, H, W), at the architecture's resolution."""
        size = architecture.resolution
        if images.shape[-1] == size:
            return images
        return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """Logits (N, classes) of images, float (N, C, H, W), by the network of `architecture`."""
        network, _ = self.path(architecture)
        return network(self.scaled(images, architecture))


@dataclass(frozen=True)
class _PathParameter:
    name: str  # of what it is a view of
    slices: tuple[slice, ...]
    shape: torch.Size
    owner: nn.Module
    attribute: str


@dataclass(frozen=True)
class _PathBlock:
    module: nn.Module
    parameters: list[_PathParameter]


def _path_block(position: int, block: Block) -> _PathBlock:
    with torch.device("meta"):
        module = make_block(block)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return _PathBlock(
        module,
        [
            _PathParameter(name, tuple(map(slice, _axes(parameter.shape, name))), parameter.shape, owner, attribute)
            for name, parameter, owner, attribute in _parameters(module, block, position)
        ],
    )


def _widest(space: Space) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every parameter: those of blocks as wide as any that stands in their place."""
    shapes: dict[str, tuple[int, ...]] = {}
    for (row, position), block in _widest_blocks(space).items():
        for variant in _variants(space.table.rows[row], block, position):
            with torch.device("meta"):
                module = make_block(variant)
            for name, parameter, _, _ in _parameters(module, variant, position):
                shape = _axes(parameter.shape, name)
                shapes[name] = tuple(map(max, shapes.get(name, shape), shape))
    return shapes


def _widest_blocks(space: Space) -> dict[tuple[int, int], dict[str, int]]:
    """For each row and position the largest of each width, over all widths before and after and all expansions."""
    columns = core().BLOCK_COLUMNS
    widest: dict[tuple[int, int], dict[str, int]] = {}
    for genome in _wide_genomes(space):
        position, row = 0, -1
        for line in space.core.blocks(genome):
            block = dict(zip(columns, map(int, line), strict=True))
            position, row = (position + 1 if block["row"] == row else 0), block["row"]
            block["expands"] = block["mid_channels"] != block["in_channels"]
            known = widest.setdefault((row, position), block)
            widest[row, position] = {name: max(value, known[name]) for name, value in block.items()}
    return widest


def _wide_genomes(space: Space) -> Iterator[NDArray[np.uint8]]:
    """Every variable at its largest, but expansions and the widths of every other row, which take all their values."""
    index = {variable: i for i, variable in enumerate(space.variables)}
    genome = np.array([np.argmax([_size(value) for value in v.values]) for v in space.variables], np.uint8)
    expansions = [field for row in space.table.rows for field in row.e or () if isinstance(field, Variable)]
    widths = [row.c for row in space.table.rows]
    for parity in range(2):
        some = [c for i, c in enumerate(widths) if i % 2 == parity and isinstance(c, Variable)]
        for level in range(_most_choices(some)):
            for expansion in range(_most_choices(expansions)):
                varied = genome.copy()
                for variables, choice in ((some, level), (expansions, expansion)):
                    for variable in variables:
                        varied[index[variable]] = min(choice, len(variable.values) - 1)
                yield varied


def _most_choices(variables: Sequence[Variable]) -> int:
    return max((len(variable.values) for variable in variables), default=1)


def _size(value: Any) -> float:
    return 0.0 if isinstance(value, str) else float(value)


def _variants(row: TableRow, widest: dict[str, int], position: int) -> Iterator[Block]:
    """Blocks that have between them every parameter that a block in this place can have."""
    known = {name: widest[name] for name in core().BLOCK_COLUMNS if name != "kind"}
    act = next(value for value in row.values(row.act) or ("relu",))
    block = Block(kind=row.block, act=act, splits=0, bias=row.bias, **known)
    if row.block != "mbconv":
        for kernel in row.values(row.k[0]) if row.k else (1,):
            yield replace(block, kernel=kernel)
        return
    if widest["expands"] and block.mid_channels == block.in_channels:
        block = replace(block, mid_channels=block.mid_channels + 1)  # a width at which there is an expansion
    assert row.k is not None
    for kernel in row.values(row.k[position > 0]):
        if kernel == 0:
            yield replace(block, kind="skip", stride=2 if position == 0 else 1)
            continue
        for splits in row.values(row.se):
            yield replace(block, kernel=kernel, splits=int(splits), se_channels=block.se_channels if splits else 0)


def _parameters(module: nn.Module, block: Block, position: int) -> Iterator[tuple[str, Tensor, nn.Module, str]]:
    """Every parameter of a block with its name in the supernet, the module it belongs to and its attribute there."""
    for layer, part in _layers(module, block):
        for attribute, parameter in part.named_parameters(recurse=False):
            yield f"{block.row}/{position}/{layer}/{attribute}", parameter, part, attribute


def _layers(module: nn.Module, block: Block) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a block that have parameters, by name: those of an MBConv begin with its number of splits."""
    match module:
        case ConvBlock():
            yield f"conv{block.kernel}", module.conv
            yield "norm", module.norm
        case SkipBlock():
            if not module.identity:
                yield "skip", module.conv
                yield "skip norm", module.norm
        case MBPool():
            yield "expand", module.expand
            yield "norm", module.norm
            yield "project", module.project
        case Head():
            yield "linear", module.linear
        case MBConv():
            convolutions = [layer for layer in module.branch if isinstance(layer, nn.Conv2d)]
            norms = [layer for layer in module.branch if isinstance(layer, nn.BatchNorm2d)]
            kind = f"splits {block.splits}"
            if len(convolutions) == 3:
                yield f"{kind}/expand", convolutions.pop(0)
                yield f"{kind}/expand norm", norms.pop(0)
            yield f"{kind}/depthwise{block.kernel}", convolutions[0]
            yield f"{kind}/depthwise norm", norms[0]
            for layer in module.branch:
                if isinstance(layer, SqueezeExcite | SplitAttention):
                    yield f"{kind}/attention reduce", layer.reduce
                    yield f"{kind}/attention expand", layer.expand
            yield f"{kind}/project", convolutions[1]
            yield f"{kind}/norm", module.norm
        case _:
            raise TypeError(f"no layers of {type(module).__name__} are known")


def _axes(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """The shape by whose axes a parameter is sliced: that of Split-Attention's second layer lies split by split."""
    *_, kind, layer, _ = ("", *name.split("/"))
    if layer != "attention expand":
        return tuple(shape)
    splits = int(kind.removeprefix("splits "))
    return (splits, shape[0] // splits, *shape[1:])


def _initial(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """As `pynas.nets.build.initialise`. The last batch-norm is zero only in blocks that are residual in every network:
    those after the first of a row.
    """
    _, position, *_, layer, attribute = name.split("/")
    weight = torch.empty(tuple(shape))
    if attribute == "bias":
        return nn.init.zeros_(weight)
    if layer == "norm" and "splits" in name and position != "0":
        return nn.init.zeros_(weight)
    if layer.endswith("norm"):
        return nn.init.ones_(weight)
    if layer == "linear":
        return nn.init.normal_(weight, std=LINEAR_STD, generator=generator)
    flat = weight.flatten(0, 1) if len(shape) == 5 else weight
    nn.init.kaiming_normal_(flat, mode="fan_out", nonlinearity="relu", generator=generator)
    return weight
