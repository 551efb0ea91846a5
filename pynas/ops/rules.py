"""Where torch's own operators are taken on a CPU because they are faster: every rule, and what measured it.

Each function says whether torch's is to be taken. Figures are of two cores of an AMD Zen 3 with AVX2;
benchmarks/results has them all, and the benchmark named with a rule says for each shape whether it still holds.
"""

from __future__ import annotations

import torch

MEASURED = True
"""False: fused kernels wherever there are some, as their tests want them."""

FEWEST_VALUES = 1 << 16
MOST_PIXELS = 5120
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
MOST_PRODUCTS = 25_000_000 if AVX512 else 1 << 62


def batch_norm(values: int, alone: bool) -> bool:
    """values: of the activations. alone: neither activation, residual nor stochastic depth follows (training and
    inference, without squeeze-and-excite).

    A norm alone leaves nothing to be fused, and on few values the 50 us that a fused call and its backward take longer
    on the host are more than they gain (`bench_batch_norm.py`).
    """
    return MEASURED and (alone or values < FEWEST_VALUES)


def depthwise(dtype: torch.dtype, kernel: int) -> bool:
    """All of a depthwise convolution. kernel: the larger side.

    For float32 and up to 3 x 3 torch's grad-weight has a kernel as quick as ours, up to a tenth one way or the other;
    for larger ones it takes two to forty times as long (`bench_depthwise.py`).
    """
    return MEASURED and dtype == torch.float32 and kernel <= 3


def depthwise_forward(dtype: torch.dtype) -> bool:
    """A depthwise convolution's forward and grad-input: oneDNN's float32 is as quick as ours or quicker; for other
    dtypes torch has none, and takes up to a hundred times longer (`bench_depthwise.py`).
    """
    return dtype == torch.float32


def pointwise(pixels: int, products: int) -> bool:
    """A 1x1 convolution of that many pixels (N H W) as oneDNN's convolution, not as a product of matrices. products:
    the pixels times the channels of the input and of the output.

    A convolution prepares longer: the product is from 1.8 times as fast for 32 images of one pixel to as fast for 32 of
    12 x 12 (`bench_pointwise.py`). With AVX-512 oneDNN is about a tenth faster than the matrix library from 40 million
    products on (an AMD Zen 4).
    """
    return pixels > MOST_PIXELS or products > MOST_PRODUCTS
