"""Backbones: the feature maps of a network at chosen strides, for detection and segmentation heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.nets.build import Network
from pynas.nets.resnet import ResNet
from pynas.space.architecture import Block

STRIDES = (4, 8, 16, 32)


class FeatureNetwork(nn.Module):
    """Float images (N, input_channels, H, W) to a list of maps (N, channels[i], about H / strides[i], W / strides[i]).

    A map is the output of the last block at its stride, before the mbpool. Sizes follow the padding of each block: with
    the released models' own paddings some are a pixel short of H / stride, with ``padding="same"`` none is.

    Without `out_strides` it gives the maps of strides 4, 8, 16 and 32 that the network has: a network for small inputs
    gives fewer, which `strides` tells. Strides asked for must all be there.

    Modules are those of `network`, under the same names; what comes after the last map is left out, and
    `load_state_dict` passes over it in the state of a full network.
    """

    def __init__(
        self, network: nn.Module, blocks: Sequence[Block] = (), *, out_strides: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if isinstance(network, ResNet):
            where = {stride: f"layer{i + 1}" for i, stride in enumerate(network.strides)}
            widths = dict(zip(network.strides, network.channels, strict=True))
        elif isinstance(network, Network):
            where, widths, stride = {}, {}, 1
            for i, block in enumerate(blocks):
                if block.kind in ("mbpool", "fc"):
                    break
                stride *= block.stride
                where[stride], widths[stride] = f"blocks.{i}", block.channels
        else:
            raise PynasError(f"features_only: got a {type(network).__name__}; only pynas's own networks have strides")
        has = ", ".join(map(str, where))
        if out_strides is not None and (isinstance(out_strides, str) or not isinstance(out_strides, Iterable)):
            raise PynasError(f"out_strides: got {out_strides!r}, allowed is a list of the network's strides {has}")
        chosen = sorted(set(STRIDES) & set(where) if out_strides is None else set(out_strides))
        if missing := [stride for stride in chosen if stride not in where]:
            raise PynasError(f"out_strides: got {', '.join(map(repr, missing))}; the network has strides {has}")
        if not chosen:
            lacking = "is empty" if out_strides is not None else "not given, and there is no stride of 4 or more"
            raise PynasError(f"out_strides: {lacking}; the network has strides {has}")
        self.strides = tuple(chosen)
        self.channels = tuple(widths[stride] for stride in chosen)
        self._taps = {where[stride] for stride in chosen}
        self._pool = isinstance(network, ResNet) and not network.small_input
        self._dropped: list[str] = []
        last = where[chosen[-1]]
        if isinstance(network, Network):
            end = int(last.split(".")[1]) + 1
            self.blocks = network.blocks[:end]
            self._dropped = [f"blocks.{i}." for i in range(end, len(network.blocks))]
            self._steps = [f"blocks.{i}" for i in range(end)]
        else:
            self._steps = []
            for name, module in network.named_children():
                if self._steps and self._steps[-1] == last:
                    self._dropped.append(f"{name}.")
                else:
                    self.add_module(name, module)
                    self._steps.append(name)
        self.register_load_state_dict_pre_hook(_drop)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name in self._steps:
            x = self.get_submodule(name)(x)
            if name == "bn1":  # of a ResNet, whose activation and pool have no parameters and no names
                x = nn.functional.relu(x)
                x = nn.functional.max_pool2d(x, 3, 2, 1) if self._pool else x
            if name in self._taps:
                maps.append(x)
        return maps


def _drop(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, FeatureNetwork)
    for key in list(state):
        if key.startswith(tuple(prefix + name for name in module._dropped)):
            del state[key]
