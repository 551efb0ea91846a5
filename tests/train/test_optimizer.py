"""Optimizers: RMSProp against its definition written out, and weight decay where it belongs."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from pynas.train.config import TrainingRecipe
from pynas.train.optimizer import SGD, RMSPropTF, make_optimizer, parameter_groups


def reference_rmsprop(w: float, grads: list[float], lrs: list[float], momentum: float, wd: float) -> list[float]:
    """TensorFlow's RMSProp for one number, with decay 0.9 and eps 1e-3."""
    s, b, path = 1.0, 0.0, []
    for gradient, lr in zip(grads, lrs, strict=True):
        g = gradient + wd * w
        s = 0.9 * s + 0.1 * g * g
        b = momentum * b + lr * g / math.sqrt(s + 1e-3)
        w = w - b
        path.append(w)
    return path


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_the_written_out_one(weight_decay: float, momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    grads = torch.randn(6, 3, 2, dtype=torch.float64, generator=generator)
    lrs = [0.05 * 0.9**step for step in range(6)]
    parameters = [nn.Parameter(start[row].clone()) for row in range(3)]
    optimizer = RMSPropTF(parameters, 0.05, momentum=momentum, weight_decay=weight_decay)
    for step in range(6):
        for row, parameter in enumerate(parameters):
            parameter.grad = grads[step, row].clone()
        optimizer.param_groups[0]["lr"] = lrs[step]
        optimizer.step()
    for row in range(3):
        for column in range(2):
            path = reference_rmsprop(
                start[row, column].item(), grads[:, row, column].tolist(), lrs, momentum, weight_decay
            )
            assert parameters[row][column].item() == pytest.approx(path[-1], rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (7,), ())]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimizers = (
        SGD(ours, 0.1, momentum=momentum, weight_decay=0.01),
        torch.optim.SGD(theirs, 0.1, momentum=momentum, weight_decay=0.01, foreach=True),
    )
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_training_starts_without_what_torch_imports_late() -> None:
    """torch._dynamo and sympy take seconds to import, which every candidate's process would pay."""
    code = """
import sys, torch
from pynas.nets.load import read_model
from pynas.train.config import TrainingRecipe
from pynas.train.optimizer import make_optimizer
for name in ("SGD", "RMSProp"):
    network = read_model("fbnetv3_a").build()
    optimizer = make_optimizer(network, TrainingRecipe(optimizer=name))
    next(network.parameters()).grad = torch.ones_like(next(network.parameters()))
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_rmsprop_leaves_a_parameter_without_gradient_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RMSPropTF([used, unused], 0.1, weight_decay=0.1)
    loss = optimizer.step(lambda: (used.square().sum().backward(), 3.0)[1])
    assert loss == 3.0
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))


def test_batch_norm_has_no_weight_decay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    decayed, plain = parameter_groups(network, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    norm = {id(p) for module in network.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    assert {id(p) for p in plain["params"]} == norm
    assert {id(p) for p in decayed["params"]} == {id(p) for p in network.parameters()} - norm


@pytest.mark.parametrize("name", ["RMSProp", "SGD"])
def test_only_what_is_decayed_moves_without_a_gradient(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = make_optimizer(network, TrainingRecipe(lr=0.1, optimizer=name, weight_decay=0.1))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert moved == [True, True, False, False]


def test_sgd_is_heavy_ball_momentum() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = make_optimizer(layer, TrainingRecipe(lr=0.1, optimizer="SGD", momentum=0.9, weight_decay=0))
    for _ in range(2):
        layer.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert layer.weight.item() == pytest.approx(1.0 - 0.1 - 0.1 * 1.9)


def test_batch_norm_gets_a_weight_decay_where_the_recipe_gives_it_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    optimizer = make_optimizer(network, TrainingRecipe(weight_decay=0.1, batch_norm_weight_decay=0.2))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.2]


@pytest.mark.parametrize("name", ["RMSProp", "SGD"])
def test_a_shared_parameter_is_updated_once(name: str) -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    alone = nn.Linear(2, 2, bias=False)
    alone.load_state_dict(first.state_dict())
    recipe = TrainingRecipe(lr=0.1, optimizer=name)
    for network, weight in ((nn.Sequential(first, second), first.weight), (alone, alone.weight)):
        weight.grad = torch.ones_like(weight)
        make_optimizer(network, recipe).step()
    assert torch.equal(first.weight, alone.weight)
