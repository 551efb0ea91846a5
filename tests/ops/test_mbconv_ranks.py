"""The fused block on several ranks with a split batch is one process with the whole of it, forward and backward."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from norms import images
from reducing import close
from test_mbconv import EMULATED, Layers, given, results
from torch import Tensor

from pynas.ops import mbconv_plan, reference_mbconv
from pynas.ops.mbconv import mbconv
from pynas.ops.reduce import ProcessGroupReducer
from pynas.ops.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm
from pynas.train.world import World

sys.path.append(str(Path(__file__).parent.parent / "train"))
from ranks import together

SPLITS = ([2, 2], [3, 1], [0, 4])


def share(block: Layers, x: Tensor, keep: Tensor | None, mine: slice, gradient: Tensor, steps: Any) -> list[Tensor]:
    """One rank's output, gradients and buffers; parameters' gradients of all ranks together."""
    reducer = ProcessGroupReducer()
    convert_sync_batchnorm(block, reducer)
    assert isinstance(block.norm3, SyncBatchNorm)
    x = x[mine].clone(memory_format=torch.channels_last).requires_grad_()
    y = mbconv(x, block.layers(), block.residual, None if keep is None else keep[mine], steps=steps)
    y.backward(gradient[mine])
    assert x.grad is not None
    found = [y.detach(), x.grad]
    for parameter in block.parameters():
        assert parameter.grad is not None
        reducer.all_reduce(parameter.grad)
        found.append(parameter.grad)
    return [*found, *(value for value in block.buffers() if value.is_floating_point())]


@pytest.mark.parametrize("case", ["gated", "radix 4", "not expanded"])
@pytest.mark.parametrize("kind", ["steps", "kernels"])
@pytest.mark.parametrize("plan", mbconv_plan.PLANS)
def test_a_split_batch_is_the_whole_batch(plan: Any, kind: str, case: str, tmp_path: Path) -> None:
    dtype = torch.float64 if kind == "steps" else torch.float32
    steps = reference_mbconv if kind == "steps" else EMULATED
    block, x, keep = given(case, dtype, True, True)
    exact = results(copy.deepcopy(block).double(), x.double(), keep, None)
    gradient = images(exact[0].shape, dtype, seed=9)

    def work(world: World) -> list[list[Tensor]]:
        found = []
        for split in SPLITS:
            start = sum(split[: world.rank])
            mine = slice(start, start + split[world.rank])
            found.append(share(copy.deepcopy(block), x, keep, mine, gradient, steps))
        return found

    with mbconv_plan.using(plan):
        of_ranks = together(tmp_path / "ranks", 2, work)
    tolerance = 1e-11 if kind == "steps" else 2e-4
    for rank, splits in enumerate(of_ranks):
        for split, found in zip(SPLITS, splits, strict=True):
            start = sum(split[:rank])
            mine = slice(start, start + split[rank])
            for i, (value, right) in enumerate(zip(found, exact, strict=True)):
                close(value, right[mine] if i < 2 else right, tolerance)


class Whole(torch.nn.Module):
    """A block by the plan, as a module."""

    def __init__(self, block: Layers) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return mbconv(x, self.block.layers(), self.block.residual)


def test_under_distributed_data_parallel_gradients_are_averaged(tmp_path: Path) -> None:
    block, x, _ = given("gated", torch.float64, True, False)
    gradient = images(x.shape, torch.float64, seed=9)

    def work(world: World) -> list[Tensor]:
        network = convert_sync_batchnorm(Whole(copy.deepcopy(block)), ProcessGroupReducer())
        parallel = torch.nn.parallel.DistributedDataParallel(network)
        mine = slice(2 * world.rank, 2 * world.rank + 2)
        parallel(x[mine].contiguous(memory_format=torch.channels_last)).backward(gradient[mine])
        return [value.grad for value in network.parameters() if value.grad is not None]

    mbconv(x, block.layers(), block.residual).backward(gradient)
    for found in together(tmp_path / "ranks", 2, work):
        for mine, parameter in zip(found, block.parameters(), strict=True):
            assert parameter.grad is not None
            close(mine, parameter.grad / 2, 1e-11)
