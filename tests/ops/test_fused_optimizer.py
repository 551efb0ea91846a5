"""RMSpropEMA and SGDEMA against the reference's bits, the Trainer's optimizers, and float64."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import LR, PLAIN, Net, everything, fused_kinds, kinds_of_ops, make, needs_library, same, states, steps
from torch import Tensor, nn

import pynas.ops
from pynas.errors import PynasError
from pynas.ops.ema import ModelEma
from pynas.ops.library import available
from pynas.ops.optimizer import SGDEMA, RMSpropEMA
from pynas.train.ema import WeightAverage
from pynas.train.optimizer import SGD, RMSPropTF, parameter_groups
from pynas.train.world import World

sys.path.append(str(Path(__file__).parent.parent / "train"))
from ranks import together


@needs_library
@fused_kinds
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("average_decay", [0.95, 0.3])
def test_bits_are_the_references(kind: Any, mixed: bool, views: bool, average_decay: float) -> None:
    outcomes = []
    for ops in ("fused", "reference"):
        network = Net().to(memory_format=torch.channels_last)
        if mixed:
            for module in (network.conv, network.head):
                module.to(torch.bfloat16)
        optimizer, average = make(kind, network, average_decay, gradient_views=views)
        generator = torch.Generator().manual_seed(7)
        with pynas.ops.using(ops):  # type: ignore[arg-type]
            for i in range(4):
                optimizer.zero_grad()
                for p in network.parameters():
                    if p is not network.unused and (i or p is not network.odd):
                        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
                network.norm.running_mean.add_(0.5)
                optimizer.step()
        outcomes.append([*everything(network, average), *states(optimizer)])
    same(*outcomes)


@needs_library
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch without fused multiply-add")
def test_sgd_has_the_bits_of_the_trainers() -> None:
    network = Net()
    plain = copy.deepcopy(network)
    optimizer, average = make(SGDEMA, network)
    follows = WeightAverage(plain, 0.95)
    steps(network, optimizer, 5)
    steps(plain, SGD(parameter_groups(plain, 1e-2), LR[SGDEMA]), 5, after=follows.update)
    same(everything(network, average), everything(plain, follows.network))


def test_rmsprop_is_the_trainers_but_for_its_square_root() -> None:
    """torch's is not always the nearest float32, and what is divided by it may be two away."""
    weights = torch.randn(40001, generator=torch.Generator().manual_seed(1))
    gradients = torch.randn(40001, generator=torch.Generator().manual_seed(2))
    made = []
    for kind in (RMSpropEMA, RMSPropTF):
        p = nn.Parameter(weights.clone())
        p.grad = gradients.clone()
        optimizer = kind([p], 0.05, weight_decay=0.01)
        optimizer.step()
        made.append((p.detach(), optimizer.state[p]))
    (found, state), (expected, reference) = made
    assert torch.equal(state["square_average"], reference["square_average"])
    for a, b, equal in ((state["momentum"], reference["momentum"], 0.7), (found, expected, 0.9)):
        largest = torch.maximum(a.abs(), 2 * state["momentum"].abs()) if a is found else b.abs()
        ulp = torch.nextafter(largest, torch.tensor(torch.inf)) - largest
        assert ((a - b).abs() <= 2 * ulp).all()
        assert (a == b).float().mean() > equal


@fused_kinds
def test_against_float64(kind: Any) -> None:
    network = Net()
    exact = copy.deepcopy(network).double()
    optimizer, average = make(kind, network)
    follows = WeightAverage(exact, 0.95)
    steps(network, optimizer, 5)
    steps(exact, PLAIN[kind](parameter_groups(exact, 1e-2), LR[kind]), 5, after=follows.update)
    for a, b in zip(everything(network, average), everything(exact, follows.network), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


@needs_library
@fused_kinds
def test_nan_and_infinity_pass_through(kind: Any) -> None:
    values = [0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38]
    grid = torch.tensor([(w, g) for w in values for g in values])
    for weight_decay in (0.0, 0.1):
        outcomes = []
        for ops in ("fused", "reference"):
            network = nn.ParameterList([grid[:, 0].clone(), grid[:7, 0].bfloat16()])
            average = copy.deepcopy(network)
            optimizer = kind(
                network.parameters(), 0.1, weight_decay=weight_decay, module=network, average=average, average_decay=0.9
            )
            network[0].grad, network[1].grad = grid[:, 1].clone(), grid[:7, 1].bfloat16()
            with pynas.ops.using(ops):  # type: ignore[arg-type]
                optimizer.step()
                optimizer.step()
            outcomes.append([*everything(network, average), *states(optimizer)])
        same(*outcomes)


@fused_kinds
def test_without_gradient_only_the_average_moves(kind: Any) -> None:
    network = Net()
    optimizer, average = make(kind, network)
    with torch.no_grad():
        network.unused.add_(1.0)
    before, mean = network.unused.clone(), average.unused.clone()
    steps(network, optimizer, 1)
    assert torch.equal(network.unused, before)
    assert torch.equal(average.unused, torch.lerp(mean, before, 1 - 0.95))
    assert network.unused not in optimizer.state


RATES = [
    *(("lr", value) for value in (-0.1, torch.nan, torch.inf, None, "much")),
    *((name, value) for name in ("momentum", "decay") for value in (-0.1, 1.1, torch.nan)),
    *((name, value) for name in ("eps", "weight_decay") for value in (-0.1, torch.nan, torch.inf)),
]


@pytest.mark.parametrize(("name", "value"), RATES)
@fused_kinds
def test_rates_out_of_range_are_refused(kind: Any, name: str, value: Any) -> None:
    p = nn.Parameter(torch.zeros(3))
    if kind is SGDEMA and name in ("decay", "eps"):
        return
    message = f"optimizer: {name} is {value}; allowed: "
    message += "from 0 to 1" if name in ("momentum", "decay") else "a finite number of at least 0"
    with pytest.raises(PynasError, match=message):
        kind([p], **{"lr": 0.1, name: value})
    with pytest.raises(PynasError, match=message):
        kind([{"params": [p], name: value}], 0.1)
    optimizer = kind([p], 0.1)
    with pytest.raises(PynasError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], name: value})
    assert len(optimizer.param_groups) == 1
    p.grad = torch.ones(3)
    optimizer.param_groups[0][name] = value  # as schedulers do
    for ops in ("fused", "reference") if available() else ("reference",):
        with pynas.ops.using(ops), pytest.raises(PynasError, match=message):  # type: ignore[arg-type]
            optimizer.step()
    assert not p.any()
    assert p not in optimizer.state


@pytest.mark.parametrize("value", [-0.1, 1.1, torch.nan])
def test_an_average_decay_out_of_range_is_refused(value: float) -> None:
    network = nn.Linear(2, 2)
    message = f"optimizer: average_decay is {value}; allowed: from 0 to 1"
    options: Any = {"module": network, "average": copy.deepcopy(network)}
    with pytest.raises(PynasError, match=message):
        SGDEMA(network.parameters(), 0.1, **options, average_decay=value)
    optimizer = SGDEMA(network.parameters(), 0.1, **options)
    optimizer.average_decay = value
    with pytest.raises(PynasError, match=message):
        optimizer.step()


def test_wrong_averages_are_refused() -> None:
    network = nn.Linear(3, 2)
    shared = copy.deepcopy(network)
    shared.bias = network.bias
    for average, count in ((network, 2), (nn.Sequential(network), 2), (shared, 1)):
        with pytest.raises(PynasError, match=f"average has {count} tensors of module's; allowed: a copy of module"):
            RMSpropEMA(network.parameters(), 0.1, module=network, average=average)
    with pytest.raises(PynasError, match="average has a tensor on the meta device; allowed: a copy of module"):
        RMSpropEMA(network.parameters(), 0.1, module=network, average=copy.deepcopy(network).to("meta"))
    with pytest.raises(PynasError, match="both or none"):
        RMSpropEMA(network.parameters(), 0.1, module=network)
    with pytest.raises(PynasError, match="a copy of module"):
        RMSpropEMA(network.parameters(), 0.1, module=network, average=nn.Linear(3, 3))
    with pytest.raises(PynasError, match="1 parameters are not the module's"):
        RMSpropEMA([nn.Parameter(torch.zeros(1))], 0.1, module=network, average=copy.deepcopy(network))


def test_a_step_counts_as_a_change_for_autograd() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = RMSpropEMA([p], 0.1)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@fused_kinds
def test_torchs_schedulers_and_closures(kind: Any) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = kind([p], 0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "lr": 0.1})
    optimizer.step(closure)
    assert len(optimizer.arena.parameters) == 2


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("bucket_views", [False, True])
def test_under_data_parallelism(views: bool, bucket_views: bool, tmp_path: Path) -> None:
    def work(world: World) -> list[Tensor]:
        network = Net()
        optimizer, average = make(RMSpropEMA, network, gradient_views=views)
        wrapped = nn.parallel.DistributedDataParallel(
            network, gradient_as_bucket_view=bucket_views, find_unused_parameters=True
        )
        for i in range(3):
            optimizer.zero_grad()
            x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(2 * i + world.rank))
            wrapped.module.norm.eval()
            wrapped(x).square().mean().backward()
            optimizer.step()
        return [p.detach() for p in (*network.parameters(), *average.parameters())]

    found = together(tmp_path / "ranks", 2, work)
    same(*found)
    network = Net()
    optimizer, average = make(RMSpropEMA, network, gradient_views=views)
    network.norm.eval()
    for i in range(3):
        optimizer.zero_grad()
        x = torch.cat(
            [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(2 * i + rank)) for rank in (0, 1)]
        )
        network(x).square().mean().backward()
        optimizer.step()
    for a, b in zip(found[0], (*network.parameters(), *average.parameters())):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_nothing_slow_is_imported() -> None:
    script = (
        "import sys, torch; from pynas.ops.optimizer import RMSpropEMA; from pynas.ops.ema import ModelEma\n"
        "network = torch.nn.Linear(3, 3); ema = ModelEma(network); optimizer = RMSpropEMA(network.parameters(), 0.1)\n"
        "network(torch.ones(1, 3)).sum().backward(); optimizer.step(); ema.update(network); optimizer.zero_grad()\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


@fused_kinds
@kinds_of_ops
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_changes_the_average_for_autograd(kind: Any, ops: Any, mixed: bool) -> None:
    network = nn.Linear(3, 3).to(torch.bfloat16 if mixed else torch.float32)
    average = copy.deepcopy(network).float()
    with pynas.ops.using(ops):
        optimizer = kind(network.parameters(), 0.1, module=network, average=average, average_decay=0.5)
        for _ in range(2):
            loss = average(torch.ones(1, 3, requires_grad=True)).sum()
            network.weight.grad = torch.ones_like(network.weight)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@fused_kinds
@kinds_of_ops
@pytest.mark.parametrize("views", [False, True])
def test_what_is_not_stepped_does_not_change_for_autograd(kind: Any, ops: Any, views: bool) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with pynas.ops.using(ops):
        optimizer = kind([p, q], 0.1, gradient_views=views)
        for _ in range(2):
            p.grad, q.grad = torch.ones(3), None
            loss = q.square().sum()
            stale = p.square().sum()
            optimizer.step()
            loss.backward()
            assert torch.equal(q.grad, torch.full((3,), 2.0))
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                stale.backward()


@needs_library
def test_averages_made_in_inference_mode_are_taken() -> None:
    network = nn.Linear(3, 3)
    with torch.inference_mode():
        average, ema = nn.Linear(3, 3), ModelEma(network, 0.5)
        expected = (average.weight.clone() + network.weight) / 2
    optimizer = SGDEMA(network.parameters(), 0.1, module=network, average=average, average_decay=0.5)
    for _ in range(2):
        optimizer.step()
        ema.update(network)
        torch.testing.assert_close(average.weight, expected)
        expected = (expected + network.weight.detach()) / 2
