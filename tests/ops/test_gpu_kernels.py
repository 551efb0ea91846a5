"""Kernels that a GPU has too: every test runs on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiles
import torch
import torch.nn.functional as F
from norms import ACTS, LAST, check_errors, images
from torch import Tensor, nn

import pynas.ops
from pynas.ops import available
from pynas.ops.arena import Watch
from pynas.ops.ema import ModelEma
from pynas.ops.optimizer import SGDEMA, RMSpropEMA
from pynas.ops.reference_batch_norm import activation
from pynas.ops.reference_mbconv import Norm, NormBackward
from pynas.train.ema import WeightAverage
from pynas.train.optimizer import SGD, RMSPropTF

pytestmark = pytest.mark.skipif(not available(), reason="libpynas_ops is not built")
OPS = torch.ops.pynas
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
LR: dict[Any, float] = {RMSpropEMA: 0.05, SGDEMA: 0.005}
PLAIN: dict[Any, Any] = {RMSpropEMA: RMSPropTF, SGDEMA: SGD}

has_gpu = available() and torch.cuda.is_available() and OPS.has_cuda()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu, reason="no GPU here, or a library without CUDA kernels")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def of_host(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().cpu() for tensor in tensors]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Bit for bit; NaN is NaN."""
    for a, b in zip(of_host(found), of_host(expected), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)


# --- arena ---


def network_of(dtype: torch.dtype) -> nn.ParameterList:
    """One value, a few, whole chunks of 4096 and parts of them; half of them bfloat16 where dtype is."""
    generator = torch.Generator().manual_seed(3)
    sizes = (1, 3, 7, 4096, 4097, 10001, 16, 5)
    made = [torch.randn(size, generator=generator) for size in sizes]
    return nn.ParameterList([p.to(dtype) if i % 2 else p for i, p in enumerate(made)])


def trained(kind: Any, device: torch.device, dtype: torch.dtype, views: bool, average_decay: float) -> list[Tensor]:
    """Weights, averages and state after four steps; the last parameter never has a gradient, the first not always."""
    network = network_of(dtype).to(device)
    average = copy.deepcopy(network)
    groups = [{"params": [*network][:4], "weight_decay": 0.01}, {"params": [*network][4:], "lr": 2 * LR[kind]}]
    made = kind(groups, LR[kind], module=network, average=average, average_decay=average_decay, gradient_views=views)
    generator = torch.Generator().manual_seed(7)
    for step in range(4):
        made.zero_grad()
        for i, p in enumerate(network):
            gradient = torch.randn(p.numel() + 1, generator=generator).to(device, p.dtype)
            if i < 7 and (i or step):
                p.grad = gradient[1:]  # aligned to its type alone
        made.step()
    return [*network, *average, *(value for state in made.state.values() for value in state.values())]


@pytest.mark.parametrize("kind", [RMSpropEMA, SGDEMA])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("views", "average_decay"), [(False, 0.95), (True, 0.3)])
def test_steps_have_the_references_bits_on_every_device(
    kind: Any, dtype: torch.dtype, views: bool, average_decay: float, device: torch.device
) -> None:
    with pynas.ops.using("reference"):
        expected = trained(kind, torch.device("cpu"), dtype, views, average_decay)
    for _ in range(2):
        same(trained(kind, device, dtype, views, average_decay), expected)


@pytest.mark.parametrize("kind", [RMSpropEMA, SGDEMA])
def test_steps_are_as_near_to_float64_as_torchs(kind: Any, device: torch.device) -> None:
    def run(made: Any, parameters: list[Tensor], follow: Callable[[], None] | None = None) -> None:
        generator = torch.Generator().manual_seed(7)
        for _ in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator).to(device, p.dtype)
            made.step()
            if follow is not None:
                follow()

    start = network_of(torch.float32).to(device)
    mine = copy.deepcopy(start)
    average = copy.deepcopy(mine)
    run(kind(mine.parameters(), LR[kind], weight_decay=0.01, module=mine, average=average, average_decay=0.9), [*mine])
    found = []
    for network in (copy.deepcopy(start), copy.deepcopy(start).double()):
        follows = WeightAverage(network, 0.9)
        run(PLAIN[kind](network.parameters(), LR[kind], weight_decay=0.01), [*network], follows.update)
        found.append(of_host([*network, *follows.network.parameters()]))
    check_errors(of_host([*mine, *average]), *found, torch.float32)


@pytest.mark.parametrize("kind", [RMSpropEMA, SGDEMA])
@pytest.mark.parametrize("views", [False, True])
def test_a_step_is_one_launch(kind: Any, views: bool, device: torch.device, tmp_path: Path) -> None:
    network = network_of(torch.bfloat16).to(device)
    average = copy.deepcopy(network)
    made = kind(network.parameters(), 0.1, module=network, average=average, average_decay=0.9, gradient_views=views)
    for _ in range(2):  # the first step lays out the state
        made.zero_grad()
        for p in network:
            p.grad = torch.ones_like(p)
        names = launches(made.step, device, tmp_path / "trace.json")
    names = [name for name in names if "put_kernel" not in name and "watched" not in name]  # read no values
    assert len(names) == 1, names
    assert ("step_kernel" if device.type == "cuda" else "_ema_step") in names[0]


def launches(work: Callable[[], object], device: torch.device, file: Path) -> list[str]:
    """A GPU's kernels, or a CPU's operators of ours, by the names that torch's profiler has for them."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    if device.type == "cuda":
        return [event["name"] for event in events if event.get("cat") == "kernel"]
    return [event["name"] for event in events if event.get("cat") == "cpu_op" and event["name"].startswith("pynas::")]


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch without fused multiply-add")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9999, 1.0])
@pytest.mark.parametrize("size", [0, 1, 3, 7, 1025, 40001])
def test_ema_update_has_lerps_bits(size: int, decay: float, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(size)
    average, values = torch.randn(size, generator=generator), torch.randn(size, generator=generator).to(dtype)
    expected = average.lerp(values.float(), 1.0 - decay)
    for offset in (0, 1):  # where memory begins, and aligned to the type alone
        for _ in range(2):
            found, given = (torch.cat([t.new_zeros(offset), t]).to(device)[offset:] for t in (average, values))
            OPS.ema_update(found, given, decay)
            same([found], [expected])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_models_average_has_the_references_bits(dtype: torch.dtype, device: torch.device) -> None:
    """Through ema_update_from."""

    def followed(device: torch.device) -> list[Tensor]:
        model = network_of(dtype).to(device)
        ema = ModelEma(model, 0.9)
        for step in range(3):
            with torch.no_grad():
                for p in model:
                    p.mul_(0.5 + step)
            ema.update(model)
        return list(ema.module.parameters())

    with pynas.ops.using("reference"):
        expected = followed(torch.device("cpu"))
    for _ in range(2):
        same(followed(device), expected)


def test_what_arenas_operators_refuse(device: torch.device) -> None:
    values = torch.zeros(8, device=device)
    chunks = torch.tensor([[0, -1, 0, 8, 0, 0]], device=device)
    table, watch = [values], Watch(tensors=[values])
    groups = [0.1, 0.0, 0.9, 0.9, 1e-3]
    wrong: list[tuple[str, tuple[Any, ...], str]] = [
        ("ema_update", (values.double(), values, 0.9), "average is Double; allowed: float32"),
        ("ema_update", (values, values.half(), 0.9), "values is Half; allowed: float32, bfloat16"),
        ("ema_update_from", (values.half(), chunks, watch.number, 0.9), "average is Half; allowed: float32"),
        ("ema_update_from", (values, chunks.int(), watch.number, 0.9), "chunks is Int; allowed: int64"),
        (
            "rmsprop_ema_step",
            (values.double(), values, values, None, None, chunks, table, groups, 0.9),
            "weights is Double; allowed: float32",
        ),
        (
            "sgd_ema_step",
            (values, values, None, values, chunks, table, groups, 0.9),
            "low is Float; allowed: bfloat16",
        ),
    ]
    for name, arguments, message in wrong:
        with pytest.raises(RuntimeError, match=f"pynas::{name}: {message}"):
            getattr(OPS, name)(*arguments)


# --- batch-norm ---


def drawn(seed: int) -> tuple[int, int, int, int]:
    """A shape: channels beyond a vector, a warp and a block of threads, one row of them and several blocks of rows."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(*sizes: int) -> int:
        return sizes[int(torch.randint(len(sizes), (), generator=generator))]

    n, c = one_of(1, 2, 5), one_of(1, 3, 8, 17, 31, 33, 40, 300)
    h, w = one_of(1, 7, 14, 33), one_of(1, 7, 11, 33)
    return (n, c, h, w) if n * h * w > 1 else (3, c, h, w)


SHAPES = [(1, 17, 1, 7), (1, 8, 7, 1), (3, 1, 1, 1), (4, 40, 33, 31), *map(drawn, range(8))]


class Emulated:
    """The GPU's kernels of batch-norm on the CPU, called as the operators."""

    @staticmethod
    def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        found = tiles.channel_statistics(x)
        assert found is not None
        return found

    @staticmethod
    def batch_norm_act(x: Tensor, *given: Any) -> Tensor:
        return tiles.norm_act(x, norm_of(given[:6]), *given[6:])

    @staticmethod
    def batch_norm_act_backward_sums(dy: Tensor, x: Tensor, *given: Any) -> Tensor:
        return tiles.norm_act_backward_sums(dy, x, norm_of(given[:6]), given[6])

    @staticmethod
    def batch_norm_act_backward(dy: Tensor, x: Tensor, *given: Any) -> Tensor:
        return tiles.norm_act_backward(dy, x, NormBackward(norm_of(given[:6]), *given[6:]))


def norm_of(given: tuple[Any, ...]) -> Norm:
    return Norm(*given[:5], ACTS[given[5]])


class Where(NamedTuple):
    """Who computes batch-norm, and where its tensors are."""

    ops: Any
    device: torch.device

    def same_again(self, again: Callable[[], list[Tensor]], found: list[Tensor]) -> None:
        if self.ops is Emulated:  # threads in another order
            with tiles.last_thread_first():
                return same(again(), found)
        return same(again(), found)


@pytest.fixture(params=["cpu", "emulated", pytest.param("cuda", marks=gpu)])
def where(request: pytest.FixtureRequest) -> Where:
    emulated = request.param == "emulated"
    return Where(Emulated if emulated else OPS, torch.device("cpu" if emulated else request.param))


def takes(where: Where, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and where.ops is OPS and where.device.type == "cpu":
        pytest.skip("no kernel of a CPU takes float16")


class Case:
    """Images, gradients and what batch-norm takes beside them, on the CPU; `to` gives them on a device, in a dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, gate: str = "none", mean: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(sum(shape))

        def random(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator)

        n, c = shape[:2]
        self.x, self.dy, self.residual = images(shape, dtype, mean), images(shape, dtype, 0.0, 2), images(shape, dtype)
        self.mean, self.var = mean + 0.3 * random(c), random(c).square() + 0.5
        self.weight, self.bias = random(c), random(c)
        self.gate = {"none": None, "samples": random(n, 1), "channels": random(n, c)}[gate]
        self.dpool = random(n, c) if gate == "channels" else None

    def to(self, device: torch.device, double: bool = False) -> Case:
        other = copy.copy(self)
        other.__dict__ = {
            name: None if value is None else value.to(device, torch.float64 if double else value.dtype)
            for name, value in self.__dict__.items()
        }
        return other


def with_kernels(where: Where, case: Case, act: str, batch: bool) -> list[Tensor]:
    """y, dx, dbias, dweight. batch: with the statistics of these images instead of the given ones."""
    for like in (case.x, case.x, case.x, case.weight, case.weight):
        torch.full_like(like, torch.nan)  # what memory holds before a kernel writes to it
    ops = where.ops
    mean, var = ops.channel_statistics(case.x) if batch else (case.mean, case.var)
    norm = (mean, var, case.weight, case.bias, EPS, ACTS.index(act))
    y = ops.batch_norm_act(case.x, *norm, case.gate, case.residual)
    gate, dpool = (None, None) if batch else (case.gate, case.dpool)
    sums = ops.batch_norm_act_backward_sums(case.dy, case.x, *norm, gate)
    count = case.x.numel() // case.x.shape[1]
    dx = ops.batch_norm_act_backward(case.dy, case.x, *norm, gate, dpool, sums if batch else None, count)
    return [y, dx, *sums]


def in_torch(case: Case, act: str, batch: bool) -> list[Tensor]:
    """The same of torch's own operators."""
    x, weight, bias = (value.detach().clone().requires_grad_() for value in (case.x, case.weight, case.bias))
    given = (None, None) if batch else (case.mean, case.var)
    a = activation(act)(F.batch_norm(x, *given, weight, bias, batch, 0.0, EPS))
    gated = a if case.gate is None else a * case.gate.to(a.dtype)[:, :, None, None]
    y = gated + case.residual
    sums = torch.autograd.grad(((a if batch else gated) * case.dy).sum(), (bias, weight), retain_graph=True)
    loss = ((a if batch else gated) * case.dy).sum()
    if case.dpool is not None and not batch:
        loss = loss + (a * case.dpool[:, :, None, None]).sum()
    return [y, *torch.autograd.grad(loss, x), *sums]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_of_batch_norm_are_at_most_twice_torchs(
    shape: tuple[int, ...], act: str, dtype: torch.dtype, where: Where
) -> None:
    takes(where, dtype)
    for gate, batch in (("none", False), ("samples", False), ("channels", False), ("none", True)):
        check(Case(shape, dtype, gate), act, batch, where)


@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_a_large_mean_costs_no_more_than_in_torchs_own(mean: float, where: Where) -> None:
    check(Case((4, 17, 9, 9), torch.float32, "none", mean), "hswish", True, where)


def check(case: Case, act: str, batch: bool, where: Where) -> None:
    mine = case.to(where.device)
    found = with_kernels(where, mine, act, batch)
    where.same_again(lambda: with_kernels(where, mine, act, batch), found)
    assert all(value.is_contiguous(memory_format=LAST) for value in found[:2])
    exact = in_torch(case.to(torch.device("cpu"), double=True), act, batch)
    check_errors(of_host(found), of_host(in_torch(mine, act, batch)), of_host(exact), case.x.dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("mean", [0.5, 1e3, 1e4])
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_are_those_of_float64(shape: tuple[int, ...], mean: float, dtype: torch.dtype, where: Where) -> None:
    takes(where, dtype)
    x = images(shape, dtype, mean)
    on_device = x.to(where.device)
    found = where.ops.channel_statistics(on_device)
    where.same_again(lambda: list(where.ops.channel_statistics(on_device)), list(found))
    eager, exact = (torch.var_mean(values, (0, 2, 3), correction=0)[::-1] for values in (on_device.float(), x.double()))
    check_errors(of_host(list(found)), of_host(list(eager)), exact, torch.float32)


def test_no_values_at_all_and_no_weights(where: Where) -> None:
    ops = where.ops
    for shape in ((0, 3, 2, 2), (2, 3, 0, 4)):
        x = torch.empty(shape, device=where.device).contiguous(memory_format=LAST)
        mean, var = ops.channel_statistics(x)
        same([mean, var], [torch.zeros(3), torch.zeros(3)])
        norm = (mean, var, None, None, EPS, 1)
        assert ops.batch_norm_act(x, *norm, None, x).shape == shape
        assert ops.batch_norm_act_backward(x, x, *norm, None, None, None, 1.0).shape == shape
        same([ops.batch_norm_act_backward_sums(x, x, *norm, None)], [torch.zeros(2, 3)])


@gpu[0]
@gpu[1]
def test_kernels_run_in_torchs_current_stream() -> None:
    """A capture takes what is launched there, and lets nothing run elsewhere meanwhile."""
    where = Where(OPS, torch.device("cuda"))
    case = Case((2, 9, 3, 3), torch.float32).to(where.device)
    average = torch.zeros(9, device="cuda")

    def work() -> list[Tensor]:
        found = with_kernels(where, case, "relu", True)
        OPS.ema_update(average, case.weight, 0.5)
        return found

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    case.x.mul_(2.0)
    average.zero_()
    graph.replay()
    same([*captured, average], [*with_kernels(where, case, "relu", True), 0.5 * case.weight])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_where_it_goes_in_torch(bad: float, where: Where) -> None:
    case = Case((2, 9, 3, 3), torch.float32)
    case.x[1, 4, 2, 1] = bad
    for act in ACTS:
        given = case.to(where.device)
        found, expected = (of_host(run(given, act, False))[0] for run in (partial(with_kernels, where), in_torch))
        assert torch.equal(found.isfinite(), expected.isfinite())


def test_what_batch_norms_operators_refuse(device: torch.device) -> None:
    case = Case((2, 3, 4, 4), torch.float32).to(device)
    x, dy, mean, var = case.x, case.dy, case.mean, case.var
    rest = (None, None, EPS, 1)
    other = x.half() if device.type == "cpu" else x.double()
    dtypes = "x is Half; allowed: float32, bfloat16, float64"
    if device.type == "cuda":
        dtypes = "x is Double; allowed: float32, bfloat16, float16 on a GPU"
    wrong: list[tuple[str, tuple[Any, ...], str]] = [
        ("channel_statistics", (other,), dtypes),
        ("batch_norm_act", (other, mean, var, *rest, None, None), dtypes),
        ("batch_norm_act", (x, mean.double(), var, *rest, None, None), "mean is Double; allowed: float32"),
        ("batch_norm_act", (x, mean, var, *rest, None, dy.bfloat16()), "residual is BFloat16; allowed: x's dtype"),
        ("batch_norm_act_backward_sums", (dy.double(), x, mean, var, *rest, None), "dy is Double; allowed: x's dtype"),
        (
            "batch_norm_act_backward",
            (dy, x, mean, var, *rest, None, None, torch.zeros(2, 3, device=device).half(), 1.0),
            "sums is Half; allowed: float32",
        ),
    ]
    for name, arguments, message in wrong:
        with pytest.raises(RuntimeError, match=f"pynas::{name}: {message}"):
            getattr(OPS, name)(*arguments)
