"""Batch-norm on several ranks against one process with all images: what every way of adding up has to pass.

Run by mpiexec, this file checks `MPIReducer`: it exits with an error where a rank finds one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pynas.ops.reduce import Reducer
from pynas.ops.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm

torch.set_num_threads(1)  # as in tests/train: on a busy machine torch's threads spin

LAST = torch.channels_last
SPLITS = {2: ([4, 4], [7, 2], [8, 0], [1, 1]), 4: ([2, 2, 2, 2], [5, 1, 0, 3], [0, 0, 8, 0], [1, 1, 1, 1])}
"""Images of each rank: as many, unequal, none, one."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Of values of about one: the rounding of their dtype, for sums of fp32 numbers some of it."""


def whole_batch(
    images: int, dtype: torch.dtype, memory_format: torch.memory_format, shape: tuple[int, ...], mean: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Images and the gradients of what is made of them, the same on every rank."""
    generator = torch.Generator().manual_seed(images)
    made = [torch.randn(images, *shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    x = (2.0 * made[0] + mean).to(dtype)
    return (x.contiguous(memory_format=memory_format) if x.dim() == 4 else x), made[1].to(dtype)


def layer(channels: int, dims: int, dtype: torch.dtype) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[dims]
    generator = torch.Generator().manual_seed(5)
    norm = kind(channels, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 0.5, generator=generator)
    return norm


def check_split(
    reducer: Reducer,
    rank: int,
    split: Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = LAST,
    shape: tuple[int, ...] = (5, 4, 3),
) -> SyncBatchNorm:
    """Two steps on split batches, against torch's batch-norm in float64 on whole ones."""
    images, gradients = whole_batch(sum(split), dtype, memory_format, shape)
    norm = layer(shape[0], 1 + len(shape), dtype)
    reference = layer(shape[0], 1 + len(shape), dtype).double()
    synchronised = convert_sync_batchnorm(norm, reducer)
    assert isinstance(synchronised, SyncBatchNorm)
    start = sum(split[:rank])
    mine = slice(start, start + split[rank])
    tolerance = TOLERANCES[dtype]
    for scale in (1.0, 0.5):
        x = (images[mine] * scale).detach().requires_grad_()
        everything = (images * scale).double().detach().requires_grad_()
        synchronised.zero_grad()
        reference.zero_grad()
        y = synchronised(x)
        expected = reference(everything)
        y.backward(gradients[mine])
        expected.backward(gradients.double())
        assert y.dtype == dtype
        assert x.grad is not None
        assert everything.grad is not None
        close(y, expected[mine], tolerance)
        close(x.grad, everything.grad[mine], tolerance)
        for name, parameter in reference.named_parameters():
            total = synchronised.get_parameter(name).grad.clone()  # type: ignore[union-attr]
            reducer.all_reduce(total)
            close(total, parameter.grad, 50 * TOLERANCES[torch.float32 if dtype == torch.bfloat16 else dtype])
    for name, buffer in reference.named_buffers():
        close(synchronised.get_buffer(name), buffer, TOLERANCES[torch.float32 if dtype == torch.bfloat16 else dtype])
    return synchronised


def close(found: Tensor, expected: Tensor | None, tolerance: float) -> None:
    torch.testing.assert_close(found.detach().double(), expected.detach().double(), rtol=tolerance, atol=tolerance)  # type: ignore[union-attr]


def main() -> None:
    from mpi4py import MPI

    from pynas.ops.reduce import MPIReducer

    world = MPI.COMM_WORLD
    reducer = MPIReducer(world.Dup())
    for split in SPLITS[world.size]:
        kept = check_split(reducer, world.rank, split)
        running = [value.numpy().tobytes() for value in kept.buffers()]
        assert all(other == running for other in world.allgather(running))
    print(f"rank {world.rank} of {world.size}: equal", flush=True)


if __name__ == "__main__":
    main()
