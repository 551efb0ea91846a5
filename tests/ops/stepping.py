"""What the tests of RMSpropEMA and SGDEMA share: a network, steps on it, and comparisons bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pynas.ops.library import available
from pynas.ops.optimizer import SGDEMA, RMSpropEMA
from pynas.train.ema import WeightAverage
from pynas.train.optimizer import SGD, RMSPropTF, parameter_groups

FUSED: list[Any] = [RMSpropEMA, SGDEMA]
PLAIN: dict[Any, Any] = {RMSpropEMA: RMSPropTF, SGDEMA: SGD}
LR = {RMSpropEMA: 0.05, SGDEMA: 0.005}
needs_library = pytest.mark.skipif(not available(), reason="the library is not built")
fused_kinds = pytest.mark.parametrize("kind", FUSED)
kinds_of_ops = pytest.mark.parametrize("ops", [pytest.param("fused", marks=needs_library), "reference"])


class Net(nn.Module):
    """Sizes of 1, 3, 7 and more than one chunk; batch-norm; a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 7, 3)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 1500)
        self.out = nn.Linear(1500, 1)
        self.odd = nn.Parameter(torch.randn(3))
        self.unused = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.out(self.head(x).tanh()) + self.odd.sum()


def make(kind: Any, network: nn.Module, decay: float = 0.95, **options: Any) -> tuple[Any, nn.Module]:
    average = WeightAverage(network, decay).network
    groups = parameter_groups(network, 1e-2)
    made = kind(groups, LR[kind], module=network, average=average, average_decay=decay, **options)
    return made, average


def backward(network: Any, seed: int = 0) -> None:
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    network(x).square().mean().backward()


def steps(
    network: nn.Module, optimizer: Any, count: int, first: int = 0, after: Callable[[], None] | None = None
) -> None:
    for i in range(first, first + count):
        optimizer.zero_grad()
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i))
        network(x.to(network.conv.weight.dtype)).square().mean().backward()
        optimizer.step()
        if after is not None:
            after()


def everything(*modules: nn.Module) -> list[Tensor]:
    return [value.detach() for module in modules for value in module.state_dict().values()]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(0.5, 1e38, -1e38), b.nan_to_num(0.5, 1e38, -1e38)), (a - b).abs().max()


def states(optimizer: Any) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    return [state[number][name] for number in sorted(state) for name in sorted(state[number])]
