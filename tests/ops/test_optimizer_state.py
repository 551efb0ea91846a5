"""State of RMSpropEMA and SGDEMA: saved, taken from and given to the Trainer's optimizers, copied, refused."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from stepping import LR, PLAIN, Net, everything, fused_kinds, make, needs_library, same, states, steps
from torch import nn

from pynas.errors import PynasError
from pynas.ops.optimizer import SGDEMA, RMSpropEMA
from pynas.train.optimizer import parameter_groups


@needs_library
@fused_kinds
def test_state_goes_to_and_from_the_trainers_optimizer(kind: Any) -> None:
    network = Net()
    plain = copy.deepcopy(network)
    theirs = PLAIN[kind](parameter_groups(plain, 1e-2), LR[kind])
    steps(plain, theirs, 3)
    content = io.BytesIO()
    torch.save((plain.state_dict(), theirs.state_dict()), content)
    content.seek(0)
    weights, state = torch.load(content)
    mine, _ = make(kind, network)
    network.load_state_dict(weights)
    mine.load_state_dict(state)
    same(states(mine), states(theirs))
    back = PLAIN[kind](parameter_groups(plain, 1e-2), 0.5)
    back.load_state_dict(mine.state_dict())
    same(states(back), states(theirs))
    assert back.param_groups[0]["lr"] == LR[kind]


@fused_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_gives_the_same_bits(kind: Any, dtype: torch.dtype) -> None:
    whole = Net().to(dtype)
    optimizer, average = make(kind, whole)
    steps(whole, optimizer, 2)
    content = io.BytesIO()
    torch.save([whole.state_dict(), average.state_dict(), optimizer.state_dict()], content)
    steps(whole, optimizer, 2, first=2)
    content.seek(0)
    saved = torch.load(content)
    resumed = Net().to(dtype)
    again, mean = make(kind, resumed)
    for target, state in zip((resumed, mean, again), saved):
        target.load_state_dict(state)
    steps(resumed, again, 2, first=2)
    same([*everything(resumed, mean), *states(again)], [*everything(whole, average), *states(optimizer)])


def test_wrong_state_is_refused() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = RMSpropEMA([p], 0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0] = {**state["state"][0], "momentum": torch.zeros(1)}
    with pytest.raises(
        PynasError, match=r"state 'momentum' is \(1,\); allowed: a tensor of its parameter's shape, \(3,\)"
    ):
        optimizer.load_state_dict(state)
    with pytest.raises(PynasError, match="state 'square_average' is None"):
        optimizer.load_state_dict({**state, "state": {0: {"momentum_buffer": torch.zeros(3)}}})
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({**state, "param_groups": []})


def test_a_refused_state_changes_nothing() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = RMSpropEMA([p], 0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    for change in ({"lr": torch.nan}, {"eps": -1.0}, {"decay": None}, {}):
        state = copy.deepcopy(before)
        state["param_groups"][0] |= {"lr": 0.7, **change}
        state["state"][0]["momentum"] += 1.0
        if not change:
            state["state"][0]["master"] = torch.zeros(4)
        with pytest.raises(PynasError, match=r"load_state_dict: .* is .*; allowed: "):
            optimizer.load_state_dict(state)
        assert optimizer.state_dict()["param_groups"] == before["param_groups"]
        same(states(optimizer), [before["state"][0][name] for name in sorted(before["state"][0])])


@fused_kinds
def test_copies_and_pickles_go_on_alone(kind: Any) -> None:
    network = Net()
    optimizer, average = make(kind, network)
    steps(network, optimizer, 2)
    others = [copy.deepcopy((network, optimizer)), pickle.loads(pickle.dumps((network, optimizer)))]
    steps(network, optimizer, 2, first=2)
    for copied, its_own in others:
        steps(copied, its_own, 2, first=2)
        same(everything(copied, its_own._average), everything(network, average))
        assert copied.conv.weight.data_ptr() != network.conv.weight.data_ptr()


@pytest.mark.parametrize(("name", "value"), [("nesterov", True), ("maximize", True), ("dampening", 0.5)])
def test_what_is_not_done_is_refused(name: str, value: Any) -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = SGDEMA([p], 0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    before, at = copy.deepcopy(optimizer.state_dict()), p.clone()
    q = nn.Parameter(torch.zeros(3))
    theirs = torch.optim.SGD([q], 0.7, momentum=0.9, **{name: value})
    q.grad = torch.ones(3)
    theirs.param_groups[0]["dampening"] = value if name == "dampening" else 0
    theirs.step()
    message = f"{name} is {value}; allowed: none, for it is not done here"
    with pytest.raises(PynasError, match=f"load_state_dict: {message}"):
        optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    same(states(optimizer), [before["state"][0]["momentum_buffer"]])
    with pytest.raises(PynasError, match=f"optimizer: {message}"):
        SGDEMA([{"params": [q], name: value}], 0.1)
    optimizer.param_groups[0][name] = value
    with pytest.raises(PynasError, match=f"optimizer: {message}"):
        optimizer.step()
    assert torch.equal(p, at)
    plain = torch.optim.SGD([q], 0.7, momentum=0.9)
    plain.step()
    SGDEMA([p], 0.1).load_state_dict(plain.state_dict())


def test_what_is_no_state_is_refused() -> None:
    optimizer = SGDEMA([nn.Parameter(torch.zeros(3))], 0.1)
    whole = optimizer.state_dict()
    for wrong, came in (
        ({}, "a dictionary of nothing"),
        (None, "NoneType"),
        ({"model": 1, "epoch": 2}, "a dictionary of model, epoch"),
        ({"state": {}}, "a dictionary of state"),
        ({**whole, "param_groups": [{}]}, "a group of param_groups without params"),
    ):
        with pytest.raises(PynasError, match=f"load_state_dict: got {came}; allowed: what an optimizer's state_dict"):
            optimizer.load_state_dict(wrong)
    with pytest.raises(PynasError, match="load_state_dict: state is None; allowed: a dictionary"):
        optimizer.load_state_dict({**whole, "state": {0: None}})
