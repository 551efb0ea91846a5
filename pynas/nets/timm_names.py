"""The names of timm's fbnetv3_b, _d and _g: state dictionaries of theirs made ours, and back. timm is not needed.

timm builds FBNetV3 as its MobileNetV3 class: a stem, six stages of blocks, the last stage's expansion as a seventh,
`conv_head` and `classifier`. Its modules compute what ours do (batch-norm eps 1e-5, hard-swish and hard-sigmoid are the
same) but for two differences. Every padding is k // 2: build ours with ``padding="same"`` for the same outputs. And its
stem convolution has no bias: `from_timm` sets ours to zero, `to_timm` folds it into the batch-norm behind it, which
computes the same in evaluation (and in training, where the batch's own mean takes any bias away).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.nets.blocks import MBConv, SqueezeExcite
from pynas.nets.build import Network
from pynas.nets.weights import check_fit
from pynas.space.architecture import Architecture

# timm's stage of every mbconv row of the FBNetV3 models.
STAGES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5)
STEM_BIAS = "blocks.0.conv.bias"
STEM_MEAN = "blocks.0.norm.running_mean"


def from_timm(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Our state dictionary with the tensors of timm's; the stem's bias, where the architecture has one, is zero.

    Raises PynasError naming the first few tensors that are missing, unknown or of another shape, and where the
    architecture is none that timm has names for.
    """
    ours, names = _names(architecture)
    check_fit(_shapes(state), {names[key]: value for key, value in ours.items() if key in names}, "from_timm")
    made = {key: state[name] for key, name in names.items()}
    if STEM_BIAS in ours:
        made[STEM_BIAS] = torch.zeros_like(made["blocks.0.norm.bias"])
    return {key: made[key] for key in ours}


def to_timm(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """timm's state dictionary with the tensors of ours; the stem's bias goes into its batch-norm's running mean.

    Raises PynasError as `from_timm` does.
    """
    ours, names = _names(architecture)
    check_fit(_shapes(state), ours, "to_timm")
    made = {name: state[key] for key, name in names.items()}
    if STEM_BIAS in ours:
        made[names[STEM_MEAN]] = state[STEM_MEAN] - state[STEM_BIAS]
    return made


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _names(architecture: Architecture) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our state on the meta device, and timm's name for each of its tensors (except the stem's bias)."""
    blocks = architecture.blocks()
    rows = [row.block for row in architecture.rows]
    plain = all(block.splits < 2 for block in blocks)
    if rows != ["conv", *["mbconv"] * len(STAGES), "mbpool", "fc"] or not plain:
        raise PynasError(f"timm has no names for a network of {', '.join(rows)}; it has for FBNetV3 A to G")
    with torch.device("meta"):
        network = Network(blocks)
    modules = {"blocks.0.conv": "conv_stem", "blocks.0.norm": "bn1"}
    stage, inside = -1, 0
    for i, (block, module) in enumerate(zip(blocks, network.blocks, strict=True)):
        if isinstance(module, MBConv):
            if STAGES[block.row - 1] != stage:
                stage, inside = STAGES[block.row - 1], 0
            modules |= _of_mbconv(module, f"blocks.{i}", f"blocks.{stage}.{inside}")
            inside += 1
        elif block.kind == "mbpool":
            inner = f"blocks.{stage + 1}.0"
            modules |= {f"blocks.{i}.expand": f"{inner}.conv", f"blocks.{i}.norm": f"{inner}.bn1"}
            modules[f"blocks.{i}.project"] = "conv_head"
        elif block.kind == "fc":
            modules[f"blocks.{i}.linear"] = "classifier"
    ours = network.state_dict()
    names = {}
    for key in ours:
        module_name, _, tensor = key.rpartition(".")
        if key != STEM_BIAS:
            names[key] = f"{modules[module_name]}.{tensor}"
    return ours, names


def _of_mbconv(module: MBConv, ours: str, theirs: str) -> dict[str, str]:
    """Names of modules of a block: timm's depthwise-separable one without an expansion, else its inverted one."""
    kinds = [type(layer) for layer in module.branch]
    expands = kinds.count(nn.Conv2d) == 3
    convs: Iterator[str] = iter(("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw"))
    norms: Iterator[str] = iter(("bn1", "bn2") if expands else ("bn1",))
    names = {f"{ours}.norm": f"{theirs}.{'bn3' if expands else 'bn2'}"}
    for position, kind in enumerate(kinds):
        inner = f"{ours}.branch.{position}"
        if kind is nn.Conv2d:
            names[inner] = f"{theirs}.{next(convs)}"
        elif kind is nn.BatchNorm2d:
            names[inner] = f"{theirs}.{next(norms)}"
        elif kind is SqueezeExcite:
            names |= {f"{inner}.{part}": f"{theirs}.se.conv_{part}" for part in ("reduce", "expand")}
    return names
