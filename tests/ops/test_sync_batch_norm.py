"""Batch-norm over ranks: N ranks with a split batch are one process with the whole of it, forward and backward."""

from __future__ import annotations

import copy
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reducing import LAST, SPLITS, check_split, close, layer
from torch import Tensor, nn

from pynas.ops.reduce import MPIReducer, ProcessGroupReducer
from pynas.ops.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm
from pynas.train.world import World

sys.path.append(str(Path(__file__).parent.parent / "train"))
from ranks import together

CONTIGUOUS = torch.contiguous_format


class Alone:
    """The sum over `size` ranks that all have the same."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0

    def all_reduce(self, tensor: Tensor) -> None:
        self.calls += 1
        tensor.mul_(self.size)


@pytest.mark.parametrize("size", [2, 4])
def test_a_split_batch_is_the_whole_batch(size: int, tmp_path: Path) -> None:
    def work(world: World) -> list[list[Tensor]]:
        reducer = ProcessGroupReducer()
        kept = [check_split(reducer, world.rank, split) for split in SPLITS[size]]
        for dtype in (torch.float64, torch.bfloat16):
            for memory_format in (LAST, CONTIGUOUS):
                kept.append(check_split(reducer, world.rank, SPLITS[size][1], dtype, memory_format))
        for shape in ((5,), (5, 7), (5, 3, 2, 2)):
            kept.append(check_split(reducer, world.rank, SPLITS[size][1], torch.float32, CONTIGUOUS, shape))
        return [list(norm.buffers()) for norm in kept]

    of_ranks = together(tmp_path / "ranks", size, work)
    for other in of_ranks[1:]:
        for mine, theirs in zip(of_ranks[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("size", [2, 4])
def test_over_mpi(size: int) -> None:
    pytest.importorskip("mpi4py")
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("no mpiexec here: pip install mpich")
    script = Path(__file__).parent / "reducing.py"
    command = [mpiexec, "-n", str(size), sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == size


def test_gradients_are_those_of_finite_differences_on_two_ranks(tmp_path: Path) -> None:
    """Every input, weight and bias is moved on the rank that has it; both ranks compute, and their losses are added."""

    def work(world: World) -> None:
        generator = torch.Generator().manual_seed(3)
        norm = convert_sync_batchnorm(layer(2, 4, torch.float64), ProcessGroupReducer())
        every = [torch.randn(n, 2, 2, 1, generator=generator, dtype=torch.float64) for n in (3, 2)]
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in every]
        x = every[world.rank].requires_grad_()

        def loss() -> Tensor:
            return (norm(x).tanh() * weights[world.rank]).sum()

        loss().backward()
        moved = [(rank, "x", i) for rank in (0, 1) for i in range(every[rank].numel())]
        moved += [(None, name, i) for name in ("weight", "bias") for i in range(2)]  # type: ignore[misc]
        step = 1e-6
        for rank, name, i in moved:
            values = x if name == "x" else norm.get_parameter(name)
            assert values.grad is not None
            mine = rank is None or rank == world.rank
            ends = []
            for direction in (step, -step):
                if mine:
                    values.data.view(-1)[i] += direction
                with torch.no_grad():
                    ends.append(world.sum([loss().item()])[0])
                if mine:
                    values.data.view(-1)[i] -= direction
            analytic = world.sum([values.grad.view(-1)[i].item() if mine else 0.0])[0]
            assert analytic == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)

    together(tmp_path / "ranks", 2, work)


@pytest.mark.parametrize("memory_format", [LAST, CONTIGUOUS])
@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_a_large_mean_costs_no_more_than_in_torchs_own(mean: float, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 9, 9, generator=generator) + mean
    x = x.contiguous(memory_format=memory_format)
    errors = []
    reference = nn.BatchNorm2d(6, momentum=1.0).double()
    expected = reference(torch.cat([x, x]).double())
    for norm, images in (
        (nn.BatchNorm2d(6, momentum=1.0), torch.cat([x, x]).contiguous(memory_format=memory_format)),
        (convert_sync_batchnorm(nn.BatchNorm2d(6, momentum=1.0), Alone(2)), x),
    ):
        found = norm(images)
        variance = (norm.running_var / reference.running_var - 1.0).abs().max()
        errors.append((variance.item(), (found - expected[: len(found)]).abs().max().item()))
    (torchs_variance, torchs_output), (variance, output) = errors
    assert variance <= 2 * torchs_variance + 1e-6
    assert output <= 2 * torchs_output + 1e-6


def test_one_sum_forward_and_one_backward() -> None:
    reducer = Alone(2)
    norm = convert_sync_batchnorm(nn.BatchNorm2d(3), reducer)
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = norm(x)
    assert reducer.calls == 1
    y.sum().backward()
    assert reducer.calls == 2
    norm.eval()
    norm(x)
    assert reducer.calls == 2


def test_without_other_ranks_it_is_plain_batch_norm() -> None:
    x = torch.randn(4, 3, 2, 2)
    for reducer in (None, Alone(1)):
        plain = layer(3, 4, torch.float32)
        norm = convert_sync_batchnorm(copy.deepcopy(plain), reducer)
        assert torch.equal(norm(x), plain(x))
        assert torch.equal(norm.running_var, plain.running_var)
        assert torch.equal(norm.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("momentum", "tracked", "affine"), [(None, True, True), (0.3, True, False), (0.1, False, True)]
)
def test_every_kind_of_batch_norm(momentum: float | None, tracked: bool, affine: bool) -> None:
    made = [nn.BatchNorm2d(3, momentum=momentum, track_running_stats=tracked, affine=affine) for _ in range(2)]
    plain, norm = made[0], convert_sync_batchnorm(made[1], Alone(2))
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5)
        close(norm(x), plain(torch.cat([x, x]))[:4], 1e-5)
    for mine, torchs in zip(norm.buffers(), plain.buffers(), strict=True):
        close(mine, torchs, 1e-6)
    close(norm.eval()(x), plain.eval()(x), 1e-5)


def test_no_image_at_all_leaves_the_statistics_as_they_are() -> None:
    norm = convert_sync_batchnorm(nn.BatchNorm2d(3), Alone(2))
    x = torch.randn(0, 3, 5, 5, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.equal(norm.running_var, torch.ones(3))
    assert torch.equal(norm.weight.grad, torch.zeros(3))


def test_a_single_value_a_channel_is_refused_as_torch_does() -> None:
    class FirstOnly(Alone):
        def all_reduce(self, tensor: Tensor) -> None:
            """The other rank has nothing."""

    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        convert_sync_batchnorm(nn.BatchNorm2d(3), FirstOnly(2))(torch.randn(1, 3, 1, 1))
    with pytest.raises(ValueError, match="at least 2D input"):
        convert_sync_batchnorm(nn.BatchNorm2d(3), FirstOnly(2))(torch.randn(3))


def test_under_autocast_it_takes_bf16() -> None:
    norm = convert_sync_batchnorm(nn.BatchNorm2d(4), Alone(2))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.randn(4, 3, 5, 5))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_converting_keeps_everything_but_the_class() -> None:
    class Acting(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    shared = nn.BatchNorm2d(4)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), shared, nn.ModuleDict({"a": nn.BatchNorm1d(4, momentum=0.3, eps=1e-3), "b": shared}),
        nn.SyncBatchNorm(4), nn.GroupNorm(2, 4),
    )  # fmt: skip
    network[2]["a"].eval()
    names = [name for name, _ in network.named_parameters()]
    values = list(network.parameters())
    keys = list(network.state_dict())
    reducer = Alone(2)
    assert convert_sync_batchnorm(network, reducer) is network
    assert [name for name, _ in network.named_parameters()] == names
    assert all(new is old for new, old in zip(network.parameters(), values, strict=True))
    assert list(network.state_dict()) == keys
    assert network[1] is network[2]["b"]
    found = [module for module in network.modules() if isinstance(module, SyncBatchNorm)]
    assert len(found) == 3
    assert all(module.reducer is reducer for module in found)
    assert (found[1].training, found[1].momentum, found[1].eps, found[0].training) == (False, 0.3, 1e-3, True)
    with pytest.warns(UserWarning, match="Acting has a forward of its own"):
        assert type(convert_sync_batchnorm(Acting(3), reducer)) is Acting
    with pytest.raises(ValueError, match="run the network once"):
        convert_sync_batchnorm(nn.LazyBatchNorm2d(), reducer)


def test_one_that_stands_twice_in_one_module_stays_one_with_its_hooks() -> None:
    shared = nn.BatchNorm2d(4)
    calls: list[int] = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    model = convert_sync_batchnorm(nn.Sequential(shared, nn.ReLU(), shared), Alone(2))
    assert model[0] is model[2] is shared
    assert type(shared) is SyncBatchNorm
    model(torch.randn(3, 4, 2, 2))
    assert len(calls) == 2
    normed = nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match="parametrized weights: its statistics stay those of each rank"):
        convert_sync_batchnorm(nn.Sequential(normed), Alone(2))
    assert normed(torch.randn(3, 4, 2, 2)).shape == (3, 4, 2, 2)


def test_state_goes_to_torchs_batch_norm_and_back() -> None:
    norm = convert_sync_batchnorm(layer(3, 4, torch.float32), Alone(2))
    norm(torch.randn(4, 3, 2, 2))
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    other = SyncBatchNorm(3)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(norm.eval()(x), plain.eval()(x))
    assert torch.equal(other.eval()(x), plain(x))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_share_the_reducer_and_files_hold_none(how: str) -> None:
    norm = convert_sync_batchnorm(nn.BatchNorm2d(3), reducer := Alone(2))
    copies: dict[str, Callable[[], nn.Module]] = {
        "deepcopy": lambda: copy.deepcopy(norm),
        "pickle": lambda: stored(norm),
    }
    other = copies[how]()
    assert isinstance(other, SyncBatchNorm)
    assert other.weight is not norm.weight
    assert other.reducer is (reducer if how == "deepcopy" else None)


def stored(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_mpi_takes_no_tensor_of_a_device() -> None:
    class Communicator:
        def Get_size(self) -> int:
            return 2

    with pytest.raises(ValueError, match="got a tensor on meta, allowed: cpu"):
        MPIReducer(Communicator()).all_reduce(torch.empty(3, device="meta"))
