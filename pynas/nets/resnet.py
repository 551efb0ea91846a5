"""ResNet-18 (He et al. 2016), with multipliers of width and depth: the fixed networks of the FBNetV3 paper's Table 1.

Parameters are named as torchvision names them, so its weights load into the standard one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.nets.blocks import StochasticDepth
from pynas.nets.build import allocate, initialise

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2  # a stage, at depth 1
MAX_MULTIPLIER = 8  # of width or depth: the widest has 750 million parameters
MAX_CHANNELS = 65536  # as in tables


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch-norm and a shortcut: (N, C, H, W) to (N, width, H / stride, W / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int, drop: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(shortcut + self.drop(y))


class ResNet(nn.Module):
    """Float images (N, input_channels, H, W) to logits (N, classes); `resnet18` makes one with initial weights.

    `strides` are those of the stages' outputs: 4, 8, 16, 32, or 1, 2, 4, 8 with `small_input`.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        depth: float = 1.0,
        classes: int = 1000,
        input_channels: int = 3,
        small_input: bool = False,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        for name, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if not 0.0 <= rate <= 1.0:
                raise PynasError(f"{name}: got {rate}, allowed is a probability from 0 to 1")
        for name, factor in (("width", width), ("depth", depth)):
            if not 0.0 < factor <= MAX_MULTIPLIER:
                raise PynasError(f"{name}: got {factor}, allowed are multipliers above 0 and up to {MAX_MULTIPLIER}")
        for name, number in (("classes", classes), ("input_channels", input_channels)):
            if not 1 <= number <= MAX_CHANNELS:
                raise PynasError(f"{name}: got {number}, allowed are whole numbers from 1 to {MAX_CHANNELS}")
        widths = [max(round(channels * width / 8), 1) * 8 for channels in WIDTHS]
        repeats = max(round(BLOCKS * depth), 1)
        self.small_input = small_input
        self.channels = tuple(widths)
        self.strides = (1, 2, 4, 8) if small_input else (4, 8, 16, 32)
        kernel, stride, padding = (3, 1, 1) if small_input else (7, 2, 3)
        self.conv1 = nn.Conv2d(input_channels, widths[0], kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        last = len(widths) * repeats - 1
        stages = []
        for stage, channels in enumerate(widths):
            blocks = [
                BasicBlock(
                    channels if block else widths[max(stage - 1, 0)],
                    channels,
                    2 if stage and not block else 1,
                    stochastic_depth * ((stage * repeats + block) / last),
                )
                for block in range(repeats)
            ]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The four stages' outputs, (N, channels[i], H / strides[i], W / strides[i])."""
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.small_input:
            x = F.max_pool2d(x, 3, 2, 1)
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.stages(x)[-1].mean((2, 3))))


def resnet18(
    width: float = 1.0,
    depth: float = 1.0,
    *,
    classes: int = 1000,
    input_channels: int = 3,
    small_input: bool = False,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    seed: int | torch.Generator = 0,
) -> ResNet:
    """ResNet-18 with `width` times the channels (rounded to multiples of 8) and `depth` times the blocks of each stage.

    The stem is 7 x 7 at stride 2 and a max-pool; with `small_input` (for 28 to 32 pixels) 3 x 3 at stride 1 and no
    pool. `dropout` is the probability before the classifier, `stochastic_depth` the drop rate of the last block (those
    before it rise linearly from 0). Initial weights are a function of the arguments and `seed` alone; as in the other
    networks every residual block starts as its shortcut. Raises PynasError for a probability or a multiplier that
    cannot be.
    """
    with torch.device("meta"):
        network = ResNet(
            width=width,
            depth=depth,
            classes=classes,
            input_channels=input_channels,
            small_input=small_input,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
        )
    allocate(network)
    initialise(network, torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed)
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    return network
