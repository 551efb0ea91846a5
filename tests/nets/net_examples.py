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
