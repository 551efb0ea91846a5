"""Moving averages: torch.lerp's bits, whatever the tensors, and the classes of other people's training loops."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pynas.ops
from pynas.errors import PynasError
from pynas.ops.arena import Watch
from pynas.ops.ema import ModelEma, ema_multi_avg_fn, ema_update
from pynas.ops.library import available

needs_library = pytest.mark.skipif(not available(), reason="the library is not built")
fused_torch = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch without fused multiply-add"
)
KINDS = [pytest.param("fused", marks=[needs_library, fused_torch]), "reference"]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.9999, 1.0])
@pytest.mark.parametrize("size", [0, 1, 3, 7, 33, 40001])
def test_the_bits_of_lerp(kind: Any, decay: float, size: int) -> None:
    average, values = random(size + 1, seed=1)[1:], random(size + 2, seed=2)[2:]  # aligned to their type alone
    expected = average.clone().lerp_(values, 1.0 - decay)
    with pynas.ops.using(kind):
        ema_update(average, values, decay)
    assert torch.equal(average, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_pass_through(kind: Any) -> None:
    values = torch.tensor([0.0, 1.0, torch.inf, -torch.inf, torch.nan, 3e38, 1e-42])
    average, values = (t.flatten().clone() for t in torch.meshgrid(values, values, indexing="ij"))
    for decay in (0.1, 0.9):
        found = average.clone()
        with pynas.ops.using(kind):
            ema_update(found, values, decay)
        torch.testing.assert_close(found, torch.lerp(average, values, 1.0 - decay), rtol=0, atol=0, equal_nan=True)


@needs_library
def test_threads_do_not_change_bits() -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            average = random(200003, seed=1)
            ema_update(average, random(200003, seed=2), 0.9)
            found.append(average)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_other_types_and_orders(kind: Any) -> None:
    averages = [random(5, 7), random(3).double(), random(4), random(6, 2).t(), random(2).requires_grad_()]
    values = [
        random(5, 7, seed=1),
        random(3).double(),
        random(4, seed=2).bfloat16(),
        random(6, 2, seed=3).t(),
        random(2),
    ]
    expected = [torch.lerp(a.detach(), v.to(a.dtype), 0.1) for a, v in zip(averages, values)]
    with pynas.ops.using(kind):
        ema_update(averages, values, 0.9)
        for a, v, e in zip(averages, values, expected):
            assert torch.equal(a, e)
            ema_update(a, v, 0.9)
    ema_update([], [], 0.9)


@pytest.mark.parametrize(
    ("averages", "values", "message"),
    [
        ([torch.zeros(2)], [], "got 1 averages and 0 values; allowed: as many"),
        (torch.zeros(2), torch.zeros(3), r"got an average \(2,\) on cpu and values \(3,\) on cpu; allowed: the same"),
        (torch.zeros(2), torch.zeros(2, device="meta"), "values .* on meta"),
        (torch.zeros(2), [torch.zeros(2)], "two tensors, or two sequences"),
        (torch.zeros(2).long(), torch.zeros(2), "got an average of torch.int64; allowed: floating types"),
        ([1.0], [2.0], "averages has a float in it; allowed: a tensor, or several in a sequence"),
        ([torch.zeros(2)], [None], "values has a NoneType in it; allowed: a tensor"),
        (None, [torch.zeros(2)], "averages is NoneType; allowed: a tensor"),
        ([torch.zeros(2)], 3, "values is int; allowed: a tensor"),
        (list(nn.LazyLinear(2).parameters()), [torch.zeros(2)] * 2, "ema_update: got a parameter without a shape"),
        ([torch.zeros(2), torch.zeros(2).bool()], [torch.zeros(2)] * 2, "an average of torch.bool; allowed: floating"),
    ],
)
def test_wrong_arguments_are_refused(averages: Any, values: Any, message: str) -> None:
    with pytest.raises(PynasError, match=message):
        ema_update(averages, values, 0.9)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, torch.nan, torch.inf, "x", None, torch.ones(2)])
def test_decays_out_of_range_are_refused(wrong: Any) -> None:
    shown = re.escape(str(wrong))
    with pytest.raises(PynasError, match=f"ema_multi_avg_fn: decay is {shown}; allowed: from 0 to 1"):
        ema_multi_avg_fn(wrong)
    with pytest.raises(PynasError, match=f"ModelEma: decay is {shown}; allowed: from 0 to 1"):
        ModelEma(nn.ReLU(), wrong)
    average, model = torch.zeros(2), nn.Linear(2, 2)
    for given in ((average, torch.ones(2)), ([average], [torch.ones(2)]), ([], [])):
        with pytest.raises(PynasError, match=f"ema_update: decay is {shown}; allowed: from 0 to 1"):
            ema_update(*given, wrong)
    assert not average.any()
    ema = ModelEma(model)
    ema.decay = wrong
    with pytest.raises(PynasError, match=f"ModelEma: decay is {shown}"):
        ema.update(model)


@needs_library
def test_the_operators_refuse_what_they_do_not_take() -> None:
    with pytest.raises(RuntimeError, match="ema_update: average is Double; allowed: float32"):
        torch.ops.pynas.ema_update(torch.zeros(2).double(), torch.zeros(2), 0.9)
    with pytest.raises(RuntimeError, match="ema_update: values is Half; allowed: float32, bfloat16"):
        torch.ops.pynas.ema_update(torch.zeros(2), torch.zeros(2).half(), 0.9)
    with pytest.raises(RuntimeError, match=r"ema_update: values is \(3,\); allowed: as many values as average"):
        torch.ops.pynas.ema_update(torch.zeros(2), torch.zeros(3), 0.9)
    with pytest.raises(RuntimeError, match="ema_update: values is not contiguous"):
        torch.ops.pynas.ema_update(torch.zeros(2, 3), torch.zeros(3, 2).t(), 0.9)


@needs_library
def test_torchs_checks_and_compiler() -> None:
    torch.library.opcheck(torch.ops.pynas.ema_update.default, (random(9), random(9, seed=1), 0.9))
    values = random(9, seed=1)
    chunks = torch.tensor([[0, -1, 0, 9, 0, 0]])
    watch = Watch(tensors=[values])
    arguments = (random(16), chunks, watch.number, 0.9)
    torch.library.opcheck(torch.ops.pynas.ema_update_from.default, arguments)
    compiled = torch.compile(ema_update, backend="aot_eager", fullgraph=True)
    for tensors in ((random(9), values), ([random(9), random(3)], [values, random(3, seed=2)])):
        expected = copy.deepcopy(tensors)
        ema_update(*expected, 0.9)
        compiled(*tensors, 0.9)
        assert all(torch.equal(a, b) for a, b in zip(tensors[0], expected[0]))


def test_autocast_changes_nothing() -> None:
    average, expected = random(9), random(9)
    ema_update(expected, random(9, seed=1), 0.9)
    with torch.autocast("cpu", torch.bfloat16):
        ema_update(average, random(9, seed=1), 0.9)
    assert torch.equal(average, expected)


def test_an_update_counts_as_a_change_for_autograd() -> None:
    average = random(9)
    loss = (average * torch.ones(9, requires_grad=True)).sum()
    ema_update(average, random(9), 0.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_averaged_model() -> None:
    model = network()
    mine, torchs = (
        AveragedModel(model, multi_avg_fn=fn(0.9), use_buffers=True) for fn in (ema_multi_avg_fn, get_ema_multi_avg_fn)
    )
    for i in range(4):
        change(model, i)
        mine.update_parameters(model)
        torchs.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), torchs.state_dict().values()))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    made = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(7, 1500))
    made.register_buffer("exact", torch.ones(3, dtype=torch.float64))
    return made.to(memory_format=torch.channels_last)


@torch.no_grad()
def change(model: nn.Module, seed: int) -> None:
    for value in model.state_dict().values():
        value.add_(1 if not value.is_floating_point() else random(*value.shape, seed=seed).abs().to(value.dtype))


def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """What timm's ModelEmaV3 does, without its warm-up."""
    for a, v in zip(average.state_dict().values(), model.state_dict().values()):
        if a.is_floating_point():
            a.lerp_(v.to(a.dtype), 1.0 - decay)
        else:
            a.copy_(v)


@pytest.mark.parametrize("kind", KINDS)
def test_model_ema(kind: Any) -> None:
    with pynas.ops.using(kind):
        model = network()
        addresses = [value.data_ptr() for value in model.state_dict().values()]
        ema, expected = ModelEma(model, 0.9), copy.deepcopy(model)
        for i in range(6):
            change(model, i)
            if i == 2:
                model[0].weight.data = model[0].weight.data.clone(memory_format=torch.contiguous_format)
            if i == 3:
                model.load_state_dict(model.state_dict(), assign=True)
                model[3].weight = nn.Parameter(model[3].weight.detach().clone())
            if i == 4:
                ema.load_state_dict(copy.deepcopy(ema.state_dict()))
                ema.module[3].weight.data = ema.module[3].weight.data.clone()
            ema.update(model)
            follow(expected, model, 0.9)
            if i == 0:
                assert [value.data_ptr() for value in model.state_dict().values()] == addresses
        for a, b in zip(ema.module.state_dict().values(), expected.state_dict().values()):
            assert torch.equal(a, b)
        assert not ema.module.training
        assert not any(p.requires_grad for p in ema.module.parameters())
        assert torch.equal(ema(torch.ones(1, 3, 3, 3)), ema.module(torch.ones(1, 3, 3, 3)))
        ema.set(model)
        for a, b in zip(ema.module.state_dict().values(), model.state_dict().values()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1])
def test_model_ema_follows_what_was_replaced(kind: Any, which: int) -> None:
    with pynas.ops.using(kind):
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        ema, expected = ModelEma(model, 0.9), copy.deepcopy(model)
        for i in range(5):
            change(model, i)
            both = (ema.module, model)
            if i == 1:
                both[which][0].weight.data = both[which][0].weight.data.t()  # same memory
                (expected, model)[which][0].weight.data = (expected, model)[which][0].weight.data.t()
            if i == 2:
                both[which].load_state_dict(copy.deepcopy(both[which].state_dict()), assign=True)
            if i == 3:
                both[which][1].running_mean = both[which][1].running_mean.clone()
            ema.update(model)
            follow(expected, model, 0.9)
            for a, b in zip(ema.module.state_dict().values(), expected.state_dict().values(), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_model_ema_of_bf16_is_float32(kind: Any) -> None:
    if kind == "fused" and not available():
        pytest.skip("the library is not built")
    model = nn.Linear(3, 2).to(torch.bfloat16)
    with pynas.ops.using(kind):
        ema = ModelEma(model, 0.999)
        expected = model.weight.detach().float()
        for i in range(3):
            change(model, i)
            ema.update(model)
            expected.lerp_(model.weight.detach().float(), 1.0 - 0.999)
    assert ema.module.weight.dtype == torch.float32
    assert torch.equal(ema.module.weight, expected)


def test_model_ema_is_copied_and_pickled() -> None:
    model = network()
    ema = ModelEma(model, 0.9)
    ema.update(model)
    for other in (copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))):
        before = ema.module[0].weight.clone()
        changed = copy.deepcopy(model)
        change(changed, 1)
        other.update(changed)
        assert torch.equal(ema.module[0].weight, before)
        assert not torch.equal(other.module[0].weight, before)


def test_model_ema_refuses_another_model() -> None:
    ema = ModelEma(nn.Linear(3, 2))
    with pytest.raises(PynasError, match="a model of other parameters or buffers"):
        ema.update(nn.Linear(3, 3))


def test_model_ema_leaves_shared_memory_shared() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    ema, expected = ModelEma(model, 0.9), copy.deepcopy(model)
    ema.module[0].share_memory()
    ema.module[1].bias.data = ema.module[1].weight.data[0]
    expected[1].bias.data = expected[1].weight.data[0]
    for i in range(2):
        change(model, i)
        ema.update(model)
        follow(expected, model, 0.9)
    assert ema.module[0].weight.is_shared()
    for a, b in zip(ema.module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_model_ema_refuses_a_lazy_model() -> None:
    with pytest.raises(PynasError, match="ModelEma: got a parameter without a shape, of a lazy module; allowed: a mod"):
        ModelEma(nn.LazyLinear(3))


@pytest.mark.parametrize("kind", KINDS)
def test_generators_are_taken(kind: Any) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [torch.lerp(a.detach(), v.detach(), 0.5) for a, v in zip(model.parameters(), other.parameters())]
    with pynas.ops.using(kind):
        ema_update(model.parameters(), (p for p in other.parameters()), 0.5)
    assert all(torch.equal(a, e) for a, e in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_model_emas_update_counts_as_a_change_for_autograd(kind: Any) -> None:
    model = nn.Linear(3, 3)
    with pynas.ops.using(kind):
        ema = ModelEma(model, 0.5)
        for _ in range(2):
            loss: Any = ema(torch.ones(1, 3, requires_grad=True))
            ema.update(model)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.sum().backward()


def test_model_ema_stands_in_for_timms() -> None:
    model = nn.Linear(3, 2)
    ema = ModelEma(model, decay=0.5, device="")
    assert ema.device is None
    assert ema.ema is ema.module
    assert list(ema.state_dict()) == ["module.weight", "module.bias"]
    before = model.weight.detach().clone()
    change(model, 1)
    ema.update(model, step=3)
    assert torch.equal(ema.ema.weight, torch.lerp(before, model.weight.detach(), 0.5))
