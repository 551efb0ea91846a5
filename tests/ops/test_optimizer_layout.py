"""Where RMSpropEMA and SGDEMA find parameters, gradients and averages: moved, retyped, frozen, shared."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import (
    PLAIN,
    Net,
    backward,
    everything,
    fused_kinds,
    kinds_of_ops,
    make,
    needs_library,
    same,
    states,
    steps,
)
from torch import nn

import pynas.ops
from pynas.errors import PynasError
from pynas.ops.ema import ModelEma
from pynas.ops.optimizer import SGDEMA


@fused_kinds
def test_gradients_may_lie_anywhere(kind: Any) -> None:
    outcomes = []
    for spread in (False, True):
        p = nn.Parameter(torch.arange(35.0).view(5, 7))
        optimizer = kind([p], 0.1)
        gradient = torch.arange(35.0).view(5, 7).sin()
        p.grad = gradient.t().contiguous().t() if spread else gradient
        optimizer.step()
        p.grad = torch.cat([torch.zeros(1), gradient.flatten()])[1:].view(5, 7) if spread else gradient  # unaligned
        optimizer.step()
        outcomes.append([p.detach()])
    same(*outcomes)


@fused_kinds
def test_gradients_with_gaps_are_taken(kind: Any) -> None:
    outcomes = []
    for gradient in (torch.ones(5), torch.ones(1).expand(5)):
        p = nn.Parameter(torch.zeros(5))
        p.grad = gradient
        kind([p], 0.1).step()
        outcomes.append([p.detach()])
    same(*outcomes)


def test_gradients_of_another_dtype_are_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1 << 16))
    parameter.grad_dtype = torch.bfloat16
    parameter.grad = torch.ones(1 << 16, dtype=torch.bfloat16)
    with pytest.raises(PynasError, match=r"gradient is torch.bfloat16; allowed: its parameter's type, torch.float32"):
        SGDEMA([parameter], 1.0).step()


@fused_kinds
def test_a_transposed_parameter_takes_its_gradient_where_it_is_now(kind: Any) -> None:
    outcomes = []
    for made in (kind, PLAIN[kind]):
        p = nn.Parameter(torch.arange(9.0).view(3, 3))
        optimizer = made([p], 0.1)
        p.grad = torch.arange(9.0).view(3, 3).square()
        optimizer.step()
        p.data = p.data.t()
        optimizer.step()
        outcomes.append(p.detach())
    torch.testing.assert_close(*outcomes)


@needs_library
@fused_kinds
def test_a_moved_parameter_is_laid_out_anew(kind: Any) -> None:
    network, undisturbed = Net(), Net()
    optimizer, average = make(kind, network)
    expected, mean = make(kind, undisturbed)
    steps(network, optimizer, 2)
    steps(undisturbed, expected, 3)
    network.head.weight.data = network.head.weight.data.clone()
    steps(network, optimizer, 1, first=2)
    network.to(memory_format=torch.channels_last)
    undisturbed.to(memory_format=torch.channels_last)
    steps(network, optimizer, 1, first=3)
    steps(undisturbed, expected, 1, first=3)
    same(everything(network, average), everything(undisturbed, mean))
    assert optimizer.arena.in_place()


def doubled(average: nn.Module) -> None:
    average.double()


def assigned(module: nn.Module) -> None:
    module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)


def with_a_new_buffer(module: Any) -> None:
    module.norm.running_mean = module.norm.running_mean.clone()


def with_a_new_parameter(module: Any) -> None:
    module.head.weight = nn.Parameter(module.head.weight.detach().clone())


def transposed(module: Any) -> None:
    module.square.data = module.square.data.t()


@fused_kinds
@kinds_of_ops
@pytest.mark.parametrize(
    ("where", "move"),
    [
        *((1, move) for move in (doubled, assigned, with_a_new_buffer, with_a_new_parameter, transposed)),
        *((0, move) for move in (with_a_new_buffer, transposed)),
    ],
)
def test_the_average_follows_after_a_move(kind: Any, ops: Any, where: int, move: Callable[[nn.Module], None]) -> None:
    """Values stay those of an undisturbed average, that a grouped operation makes."""
    network: Any = Net()
    network.square = nn.Parameter(torch.randn(5, 5))
    expected = copy.deepcopy(network)
    with pynas.ops.using(ops):
        optimizer, average = make(kind, network)
        for i in range(4):
            if i == 2:
                move((network, average)[where])
                if where and move is transposed:
                    transposed(expected)
            steps(network, optimizer, 1, first=i)
            with torch.no_grad():
                for e, v in zip(expected.state_dict().values(), network.state_dict().values(), strict=True):
                    e.lerp_(v, 1 - 0.95) if e.is_floating_point() else None
            for (name, e), a in zip(expected.state_dict().items(), average.state_dict().values(), strict=True):
                if e.is_floating_point():
                    torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7, msg=name)


def test_a_module_whose_parameters_are_replaced_is_refused() -> None:
    network: Any = Net()
    optimizer, _ = make(SGDEMA, network)
    assigned(network)
    with pytest.raises(PynasError, match="10 parameters are not the module's; allowed: parameters of module"):
        optimizer.step()


def test_a_change_of_type_keeps_values_and_state() -> None:
    network = Net()
    optimizer, average = make(SGDEMA, network)
    steps(network, optimizer, 2)
    momentum = optimizer.state[network.head.weight]["momentum_buffer"].clone()
    network.head.to(torch.bfloat16)
    optimizer.zero_grad()
    optimizer.step()
    assert network.head.weight.dtype == torch.bfloat16
    state = optimizer.state[network.head.weight]
    assert torch.equal(state["momentum_buffer"], momentum)
    assert torch.equal(state["master"], network.head.weight.float())
    assert average.head.weight.dtype == torch.float32


@fused_kinds
def test_a_bf16_parameter_that_is_set_sets_its_master(kind: Any) -> None:
    p = nn.Parameter(torch.ones(9, dtype=torch.bfloat16))
    optimizer = kind([p], 1e-4)
    for _ in range(3):  # steps too small for bf16 gather in the master
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.equal(p.float(), torch.ones(9))
    assert (optimizer.state[p]["master"] < 1.0).all()
    with torch.no_grad():
        p[0] = 3.0
    p.grad = torch.zeros_like(p)
    optimizer.step()
    master = optimizer.state[p]["master"]
    assert abs(master[0] - 3.0) < 1e-2
    assert (master[1:] < 1.0).all()


def two_halves(kind: Any, network: Any, views: bool) -> list[Any]:
    """Each optimizer's arena also has the other's parameters, so that each step lays all out anew."""
    halves = (
        [*network.conv.parameters(), *network.norm.parameters()],
        [*network.head.parameters(), *network.out.parameters()],
    )
    return [
        kind(half, 0.1, module=network, average=copy.deepcopy(network), average_decay=0.9, gradient_views=views)
        for half in halves
    ]


@fused_kinds
@kinds_of_ops
@pytest.mark.parametrize("what", ["buffer", "halves", "group", "channels_last", "data", "grad", "late", "set to none"])
def test_a_new_layout_keeps_gradients(kind: Any, ops: Any, what: str) -> None:
    """What backward has computed is what a step without views would take."""
    outcomes = []
    for views in (True, False):
        network: Any = Net()
        with pynas.ops.using(ops):
            if what == "halves":
                made = two_halves(kind, network, views)
            elif what == "late":
                backward(network)
                made = [kind(network.parameters(), 0.1, weight_decay=0.1, gradient_views=views)]
            else:
                average = copy.deepcopy(network)
                first = list(network.parameters())[2 if what == "group" else 0 :]
                options = {"module": network, "average": average, "average_decay": 0.9, "weight_decay": 0.1}
                made = [kind(first, 0.1, **options, gradient_views=views)]
            for i in range(3):
                for optimizer in made if i else ():
                    optimizer.zero_grad()
                if what == "set to none":
                    network.zero_grad()
                if i or what != "late":
                    backward(network, i)
                network.unused.grad = None if what != "group" or i else torch.ones(5)
                if what in ("buffer", "set to none"):  # as DINO's center
                    network.norm.running_mean = network.norm.running_mean * 0.9
                elif what == "group" and i == 0:
                    made[0].add_param_group({"params": [network.odd, network.unused]})
                elif what == "channels_last":
                    network.to(memory_format=torch.channels_last)
                elif what == "data":
                    network.head.weight.data = network.head.weight.data.clone()
                elif what == "grad":
                    for p in network.parameters():
                        if p.grad is not None:
                            p.grad.data = 2.0 * p.grad.data
                for optimizer in made:
                    optimizer.step()
        outcomes.append([*everything(network), *(s for optimizer in made for s in states(optimizer))])
    same(*outcomes)


@fused_kinds
@kinds_of_ops
@pytest.mark.parametrize("zero_first", [False, True])
def test_a_frozen_parameter_stands_still(kind: Any, ops: Any, zero_first: bool) -> None:
    network = Net()
    with pynas.ops.using(ops):
        optimizer, _ = make(kind, network, gradient_views=True)
        steps(network, optimizer, 2)
        optimizer.zero_grad()
        network.head.requires_grad_(False)
        before = network.head.weight.clone()
        for i in range(2):
            if zero_first:
                optimizer.zero_grad()
            backward(network, i)
            optimizer.step()
        assert torch.equal(network.head.weight, before)
        network.head.requires_grad_(True)
        steps(network, optimizer, 1)
        assert not torch.equal(network.head.weight, before)
        backward(network)
        network.head.requires_grad_(False)  # its gradient is there: torch's optimizers take it too
        before = network.head.weight.clone()
        optimizer.step()
        assert not torch.equal(network.head.weight, before)


@needs_library
def test_a_frozen_parameter_stands_still_from_the_start() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = SGDEMA([p, q], 0.1, weight_decay=0.1, gradient_views=True)
    q.requires_grad_(False)
    p.sum().backward()
    optimizer.step()
    assert torch.equal(q, torch.ones(3))
    assert q not in optimizer.state


def tied(network: Any) -> None:
    network.odd.data = network.unused.data[1:4]


def shared(network: Any) -> None:
    network.head.share_memory()


@fused_kinds
@pytest.mark.parametrize(
    ("change", "message"), [(tied, "parameters that share memory with others"), (shared, "parameters in shared memory")]
)
def test_shared_memory_is_refused(kind: Any, change: Callable[[nn.Module], None], message: str) -> None:
    network = Net()
    change(network)
    with pytest.raises(PynasError, match=f"got 2 {message}; allowed: memory of"):
        kind(network.parameters(), 0.1)
    network = Net()
    optimizer = kind(network.parameters(), 0.1)
    steps(network, optimizer, 1)
    change(network)
    backward(network)
    before = everything(network)
    with pytest.raises(PynasError, match=f"got 2 {message}; allowed: memory of"):
        optimizer.step()
    same(everything(network), before)
    network = Net()
    average = copy.deepcopy(network)
    optimizer = kind(network.parameters(), 0.1, module=network, average=average)
    change(average)
    message = "average has parameters or buffers that share memory, with each other"
    with pytest.raises(PynasError, match=message):
        optimizer.step()
    with pytest.raises(PynasError, match=message):
        kind(network.parameters(), 0.1, module=network, average=average)


@fused_kinds
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_comes_twice_is_refused(kind: Any) -> None:
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    message = "optimizer: got 1 parameters more than once; allowed: each parameter once"
    with pytest.raises(PynasError, match=message):
        kind([p, p], 0.1)
    optimizer = kind([p], 0.1)
    with pytest.raises(PynasError, match=message):
        optimizer.add_param_group({"params": [q, q]})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


def test_lazy_parameters_are_refused() -> None:
    network = nn.LazyLinear(3)
    for options in ({}, {"module": network, "average": copy.deepcopy(network)}):
        with pytest.raises(
            PynasError, match="got a parameter without a shape, of a lazy module; allowed: a module that"
        ):
            SGDEMA(network.parameters(), 0.1, **options)


def test_what_is_watched_is_freed() -> None:
    network = Net()
    optimizer, average = make(SGDEMA, network)
    ema = ModelEma(network)
    steps(network, optimizer, 1)
    ema.update(network)
    left = [weakref.ref(t) for t in (network.head.weight, average.head.weight, ema.module.head.weight)]
    del network, optimizer, average, ema
    gc.collect()
    assert [one() for one in left] == [None] * 3
