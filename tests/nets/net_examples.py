"""A small network with every kind of block in it."""

import torch

from pynas.space.architecture import Architecture, Row

# On a busy machine torch's threads spin while they wait for one another, and tests take minutes.
torch.set_num_threads(1)

ACT = "hswish"


def small(resolution: int = 16, input_channels: int = 1, classes: int = 10) -> Architecture:
    """Two residual blocks with squeeze-and-excite behind two without a residual; the first has no expansion."""
    rows = (
        Row("conv", (3, 3), None, 8, 1, 2, False, ACT),
        Row("mbconv", (3, 3), (1.0, 1.0), 16, 1, 1, False, ACT),
        Row("mbconv", (5, 3), (4.0, 2.0), 24, 3, 2, True, ACT),
        Row("mbpool", None, (6.0, 6.0), 64, 1, 1, False, ACT),
        Row("fc", None, None, classes, 1, 1, False, ACT),
    )
    return Architecture(rows, resolution, input_channels)


def varied(act: str, splits: int, resolution: int = 19) -> Architecture:
    """Everything that rows can say besides: skips of each kind, a stem without bias, both width rules, paddings."""
    rows = (
        Row("conv", (3, 3), None, 8, 1, 2, False, act, bias=False),
        Row("skip", None, None, 8, 1, 1, False, act),
        Row("mbconv", (5, 3), (1.0, 2.3), 16, 2, 2, splits, act, pad=1),
        Row("skip", None, None, 24, 1, 1, False, act),
        Row("mbconv", (3, 5), (4.5379, 1.7712), 24, 2, 1, splits, act, se_from="mid"),
        Row("skip", None, None, 24, 1, 2, False, act),
        Row("mbpool", None, (6.0, 6.0), 64, 1, 1, False, act),
        Row("fc", None, None, 10, 1, 1, False, ""),
    )
    return Architecture(rows, resolution, 1)
