"""Tensors in contiguous storage: what they keep, what notices a move, and which bits the kernels give."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops.arena import Arena, Watch
from pynas.ops.library import available

FOLDER = Path(__file__).parent


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 1)
    )


def test_a_module_keeps_its_tensors() -> None:
    module = network().to(memory_format=torch.channels_last)
    before = {name: (value, value.clone(), value.stride()) for name, value in module.state_dict(keep_vars=True).items()}
    arena = Arena(module)
    for name, value in module.state_dict(keep_vars=True).items():
        same, values, strides = before[name]
        assert value is same
        assert torch.equal(value, values)
        assert value.stride() == strides
    start, size = arena.weights.data_ptr(), 4 * arena.weights.numel()
    assert all(start <= value.data_ptr() < start + size for value in arena.tensors)
    assert len(arena.tensors) == 10 + 4
    assert not any((t.data_ptr() - start) % 64 for t in arena.tensors)
    module[0].weight.data.fill_(2.0)
    assert (arena.views(arena.weights)[0] == 2.0).all()


def test_a_tensor_is_copied_and_saved_without_the_others() -> None:
    module = network()
    Arena(module)
    assert len(pickle.dumps(module[1])) < 5000
    copied = copy.deepcopy(module)
    loaded = pickle.loads(pickle.dumps(module))
    for a, b, c in zip(
        module.state_dict().values(), copied.state_dict().values(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.data_ptr() != b.data_ptr()


def test_storage_outlives_the_arena() -> None:
    module = network()
    values = [p.clone() for p in module.parameters()]
    Arena(module)
    torch.full((10000,), 7.0)
    assert all(torch.equal(p, v) for p, v in zip(module.parameters(), values))


def test_a_large_arena_is_as_a_small_one() -> None:
    module = nn.Linear(1100, 1000)
    values = module.weight.detach().clone()
    flat = Arena(module).flat(2.0)
    assert torch.equal(module.weight, values)
    assert (flat == 2.0).all()
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(module))).weight, values)


def test_state_dicts_go_in_and_out() -> None:
    module, other = network(), network()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    arena = Arena(module)
    module.load_state_dict(other.state_dict())
    assert arena.in_place()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters()))


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("move", ["dtype", "data", "swap", "strides", "buffer"])
def test_a_move_is_noticed(move: str, library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        monkeypatch.setattr("pynas.ops.library.available", lambda: False)
    module = network()
    arena = Arena(module)
    assert arena.in_place()
    if move == "dtype":
        module.to(torch.bfloat16)
    elif move == "data":
        module[2].bias.data = torch.zeros(5)
    elif move == "strides":
        module[2].weight.data = module[2].weight.data.flatten()[:25].view(5, 5, 1, 1).transpose(0, 1)
    elif move == "buffer":
        module[1].running_var.data = torch.ones(7)
    else:
        a, b = module[1].weight, module[1].bias
        a.data, b.data = b.data, a.data
    assert not arena.in_place()


def test_gradient_views_are_zeroed_and_added_to() -> None:
    module = network()
    arena = Arena(module, gradient_views=True)
    arena.zero_gradients()
    gradients = [p.grad for p in module.parameters()]
    for _ in range(2):
        module(torch.ones(2, 3, 3, 3)).sum().backward()
    plain = network()
    for _ in range(2):
        plain(torch.ones(2, 3, 3, 3)).sum().backward()
    for p, g, q in zip(module.parameters(), gradients, plain.parameters(), strict=True):
        assert p.grad is g
        assert torch.equal(g, q.grad)
    module.zero_grad()
    arena.zero_gradients()
    assert all(p.grad is g and not g.any() for p, g in zip(module.parameters(), gradients) if g is not None)


def test_shared_parameters_and_empty_ones_have_one_place() -> None:
    module = nn.Module()
    module.a, module.b = nn.Linear(3, 3), nn.Linear(3, 3)
    module.b.weight = module.a.weight
    module.nothing = nn.Parameter(torch.empty(0, 4))
    assert len(Arena(module).tensors) == 3


def tied_by_data(module: Any) -> None:
    module[5].bias.data = module[1].weight.data[:1]


def tied_to_a_frozen_one(module: Any) -> None:
    module[3].running_mean = module[0].weight.data.view(-1)[5:10]


def interleaved(module: Any) -> None:
    values = torch.zeros(5, 2)
    module[3].weight.data, module[3].bias.data = values[:, 0], values[:, 1]


@pytest.mark.parametrize(
    ("tie", "count"), [(tied_by_data, 2), (tied_to_a_frozen_one, 1), (interleaved, 2)], ids=lambda v: str(v)[:20]
)
def test_parameters_that_share_memory_are_refused(tie: Any, count: int) -> None:
    module = network()
    tie(module)
    before = [(t.data_ptr(), t.clone()) for t in module.state_dict().values()]
    with pytest.raises(PynasError, match=f"got {count} parameters that share memory with others; allowed: memory of"):
        Arena(module)
    assert all(t.data_ptr() == a and torch.equal(t, v) for t, (a, v) in zip(module.state_dict().values(), before))


def test_parameters_in_shared_memory_and_duplicates_are_refused() -> None:
    module = network()
    module[5].share_memory()
    with pytest.raises(PynasError, match="got 2 parameters in shared memory; allowed: memory of this process alone"):
        Arena(module)
    p = nn.Parameter(torch.zeros(3))
    for groups in ([[p, p]], [[p], [p]]):
        with pytest.raises(PynasError, match="got 1 parameters more than once; allowed: each parameter once"):
            Arena(None, groups)


def test_parts_of_one_storage_are_taken() -> None:
    """As cuDNN lays out recurrent layers."""
    values = torch.arange(10.0)
    p, q = nn.Parameter(values[:4]), nn.Parameter(values[4:])
    Arena(None, [[p, q]])
    assert torch.equal(torch.cat([p.detach(), q.detach()]), torch.arange(10.0))


def test_buffers_that_share_memory_are_left_where_they_are() -> None:
    module: Any = network()
    module[3].running_mean = module[1].running_mean[:5]
    module[3].running_var.share_memory_()
    arena = Arena(module)
    assert len(arena.outside) == 3
    assert module[3].running_mean.data_ptr() == module[1].running_mean.data_ptr()
    assert module[3].running_var.is_shared()


def test_a_lazy_parameter_is_refused() -> None:
    with pytest.raises(PynasError, match="Arena: got a parameter without a shape, of a lazy module; allowed: a module"):
        Arena(nn.LazyLinear(3))


def test_other_types_and_devices_are_refused() -> None:
    with pytest.raises(PynasError, match=r"parameter of torch.float64; allowed: float32, bfloat16"):
        Arena(None, [[nn.Parameter(torch.zeros(3, dtype=torch.float64))]])
    with pytest.raises(PynasError, match="tensors on cpu and meta; allowed: one device"):
        Arena(None, [[nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, device="meta"))]])
    for place in ([nn.Parameter(torch.zeros(3, device="meta"))], list(nn.Linear(2, 2, device="meta").parameters())):
        with pytest.raises(PynasError, match="a parameter on the meta device; allowed: one with values"):
            Arena(None, [place])
    with pytest.raises(PynasError, match="neither a module nor groups"):
        Arena()
    with pytest.raises(PynasError, match="no parameter with a value"):
        Arena(nn.ReLU())


def test_buffers_of_other_types_are_left_where_they_are() -> None:
    module = network()
    module.register_buffer("exact", torch.zeros(3, dtype=torch.float64))
    arena = Arena(module)
    assert [t.dtype for t in arena.outside] == [torch.float64]


def test_a_sparse_gradient_is_refused() -> None:
    module = nn.Embedding(5, 3, sparse=True)
    arena = Arena(module)
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(PynasError, match="allowed: dense gradients"):
        arena.chunks_and_gradients()


def step_arguments(views: bool = False) -> list[Any]:
    module = network()
    arena = Arena(module, gradient_views=views)
    for p in arena.parameters:
        p.grad = torch.full_like(p, 0.5) if p.grad is None else p.grad.fill_(0.5)
    groups = [0.1, 0.01, 0.9, 0.9, 1e-3]
    flats = [arena.flat(v) for v in (1.0, 0.0, 0.25)]
    return [arena.weights, *flats, None, *arena.chunks_and_gradients(), groups, 0.9]


@pytest.mark.skipif(not available(), reason="the library is not built")
def test_the_operators_pass_torchs_checks() -> None:
    rmsprop = step_arguments()
    torch.library.opcheck(torch.ops.pynas.rmsprop_ema_step.default, tuple(rmsprop))
    sgd = step_arguments()
    torch.library.opcheck(torch.ops.pynas.sgd_ema_step.default, (sgd[0], *sgd[2:]))


@pytest.mark.skipif(not available(), reason="the library is not built")
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(8, dtype=torch.float64), "weights is Double; allowed: float32"),
        (1, torch.zeros(8), r"squares is \(8,\); allowed: as many values"),
        (2, torch.zeros(2, 8).t(), "momentum is"),
        (3, torch.zeros(8, dtype=torch.bfloat16), "average is BFloat16"),
        (4, torch.zeros(8), "low is Float; allowed: bfloat16"),
        (5, torch.zeros(3, 5, dtype=torch.int64), r"chunks is \(3, 5\); allowed: \(chunks, 6\)"),
        (7, [0.1, 0.2], "groups is 2 numbers; allowed: lr, weight_decay"),
    ],
)
def test_wrong_arguments_are_refused(place: int, value: Any, message: str) -> None:
    arguments = step_arguments()
    arguments[place] = value
    with pytest.raises(RuntimeError, match=f"pynas::rmsprop_ema_step: {message}"):
        torch.ops.pynas.rmsprop_ema_step(*arguments)


def resized() -> Tensor:
    tensor = torch.zeros(7, 3, 3, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.skipif(not available(), reason="the library is not built")
@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.zeros(7, 3, 3, 3, dtype=torch.int64), r"gradients\[0\] is Long; allowed: float32, bfloat16"),
        (torch.zeros(7, 3, 3, 6)[..., ::2], r"gradients\[0\] is of shape \(7, 3, 3, 3\) with gaps; allowed: values"),
        (torch.zeros(1).expand(7, 3, 3, 3), r"gradients\[0\] is of shape .* with gaps"),
        (torch.zeros(7, 3, 3, 3).to_sparse(), "Could not run 'pynas::"),
        (resized(), r"gradients\[0\] is without memory; allowed"),
        (torch.zeros(7, 3, 3, 3, device="meta"), r"arguments are on \['cpu', 'meta'\]; allowed: one device"),
        (torch.zeros(7, 3, 3, 3, dtype=torch.bfloat16), r"chunks is row 0 of 0 -1 0 189 0 0; allowed: .* their types"),
        (torch.zeros(188), r"chunks is row 0 of 0 -1 0 189 0 0; allowed: offset, low, start"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(gradient: Tensor, message: str) -> None:
    arguments = step_arguments()
    before = arguments[0].clone()
    arguments[6] = [gradient, *arguments[6][1:]]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pynas.rmsprop_ema_step(*arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pynas.sgd_ema_step(arguments[0], *arguments[2:])
    assert torch.equal(arguments[0], before)


@pytest.mark.skipif(not available(), reason="the library is not built")
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("value", [-2, 10**6, 2**62, 2**63 - 1, -(2**63)])
def test_chunks_that_point_elsewhere_are_refused(column: int, value: int, views: bool) -> None:
    arguments = step_arguments(views)
    before = arguments[0].clone()
    arguments[5] = arguments[5].clone()
    arguments[5][1, column] = value
    if column in (1, 4) and value < 0:  # no bfloat16, no gradient
        torch.ops.pynas.rmsprop_ema_step(*arguments)
        return
    with pytest.raises(RuntimeError, match=r"rmsprop_ema_step: chunks is row [12] of .*; allowed: offset, low, start"):
        torch.ops.pynas.rmsprop_ema_step(*arguments)
    assert torch.equal(arguments[0], before)


@pytest.mark.skipif(not available(), reason="the library is not built")
def test_chunks_out_of_order_are_refused() -> None:
    arguments = step_arguments()
    arguments[5] = arguments[5].flip(0)
    with pytest.raises(RuntimeError, match=r"chunks is row 1 of .*; allowed: .* in order of offset"):
        torch.ops.pynas.rmsprop_ema_step(*arguments)


@pytest.mark.skipif(not available(), reason="the library is not built")
def test_ema_update_from_refuses_what_lies_elsewhere() -> None:
    average, values = torch.zeros(16), [torch.ones(9), torch.ones(3, dtype=torch.bfloat16)]
    rows = [[0, -1, 0, 9, 0, 0], [9, 0, 0, 3, 1, 0]]
    average_from = torch.ops.pynas.ema_update_from

    def update(rows: list[list[int]], values: list[Tensor]) -> None:
        watch = Watch(tensors=values)
        average_from(average, torch.tensor(rows), watch.number, 0.5)

    update(rows, values)
    assert torch.equal(average, torch.tensor([0.5] * 12 + [0.0] * 4))
    for row in ([0, -1, 0, 10, 0, 0], [0, -1, 0, 3, 1, 0], [0, 0, 0, 9, 0, 0], [8, -1, 0, 9, 0, 0], [0, -1, 1, 9, 0, 0],
                [0, -1, 0, 9, 2, 0], [0, -1, 0, 9, -1, 0], [0, -1, 0, 0, 0, 0]):  # fmt: skip
        with pytest.raises(RuntimeError, match="ema_update_from: chunks is row 0 of"):
            update([row], values)
    with pytest.raises(RuntimeError, match=r"values\[1\] is Int; allowed: float32, bfloat16"):
        update(rows, [values[0], values[1].int()])
    with pytest.raises(RuntimeError, match="chunks is row 1 of 9 0 0 3 1 0"):
        update(rows, [values[0], torch.zeros(0)])
    gone = Watch(tensors=values).number
    for number in (gone, 0, -1, 2**40):
        with pytest.raises(RuntimeError, match=f"values is {number}; allowed: what pynas::watch returned"):
            average_from(average, torch.tensor(rows), number, 0.5)
        with pytest.raises(RuntimeError, match=f"number is {number}; allowed: what pynas::watch returned"):
            torch.ops.pynas.watched_in_place(number)


SCRIPT = """
import hashlib, sys, torch
from torch import nn
from pynas.ops.optimizer import RMSpropEMA, SGDEMA
torch.set_num_threads(int(sys.argv[1]))
found = hashlib.sha256()
for optimizer in (RMSpropEMA, SGDEMA):
    generator = torch.Generator().manual_seed(1)
    def random(*shape):
        values = torch.randn(shape, generator=generator)
        return values * 10.0 ** torch.randint(-25, 15, shape, generator=generator)
    network = nn.ParameterList([random(n) for n in (1, 3, 7, 40001, 30000)] + [random(8193).bfloat16()])
    average = nn.ParameterList([p.detach().clone().float() for p in network])
    made = optimizer(network.parameters(), 0.3, weight_decay=0.1, module=network, average=average, average_decay=0.3)
    for _ in range(3):
        for p in network:
            p.grad = random(len(p)).to(p.dtype)
        made.step()
    for tensor in (*network, *average, *(t for s in made.state.values() for t in s.values())):
        tensor = tensor.detach().float()
        found.update(torch.where(tensor.isnan(), 0.5, tensor).numpy().tobytes())
print(torch.ops.pynas.instruction_set(), found.hexdigest())
"""


@pytest.mark.skipif(not available(), reason="the library is not built")
def test_bits_do_not_depend_on_threads_and_instruction_set() -> None:
    widest = torch.ops.pynas.instruction_set()
    found = {}
    for kind, threads in (("baseline", 1), *((name, 2) for name in ("baseline", "avx2", "avx512")[1 : widest + 1])):
        environment = {**os.environ, "PYNAS_INSTRUCTION_SET": kind, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(threads)],
            capture_output=True, text=True, env=environment, cwd=FOLDER.parents[1], timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[kind] = done.stdout.split()
    assert [number for number, _ in found.values()] == [str(i) for i in range(len(found))]
    assert len({digest for _, digest in found.values()}) == 1
