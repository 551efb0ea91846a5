"""RMSpropEMA and SGDEMA against the reference's bits, the Trainer's optimizers, and float64."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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

FUSED: list[Any] = [RMSpropEMA, SGDEMA]
PLAIN: dict[Any, Any] = {RMSpropEMA: RMSPropTF, SGDEMA: SGD}
LR = {RMSpropEMA: 0.05, SGDEMA: 0.005}
needs_library = pytest.mark.skipif(not available(), reason="the library is not built")
fused_kinds = pytest.mark.parametrize("kind", FUSED)


class Net(nn.Module):
    """Sizes of 1, 3, 7 and more than one chunk; batch-norm; a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 7, 3)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 1500)
        self.out = nn.Linear(1500, 1)
        self.odd = nn.Parameter(torch.randn(3))
        self.unused = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.out(self.head(x).tanh()) + self.odd.sum()


def make(kind: Any, network: nn.Module, decay: float = 0.95, **options: Any) -> tuple[Any, nn.Module]:
    average = WeightAverage(network, decay).network
    groups = parameter_groups(network, 1e-2)
    made = kind(groups, LR[kind], module=network, average=average, average_decay=decay, **options)
    return made, average


def steps(
    network: nn.Module, optimizer: Any, count: int, first: int = 0, after: Callable[[], None] | None = None
) -> None:
    for i in range(first, first + count):
        optimizer.zero_grad()
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i))
        network(x.to(network.conv.weight.dtype)).square().mean().backward()
        optimizer.step()
        if after is not None:
            after()


def everything(*modules: nn.Module) -> list[Tensor]:
    return [value.detach() for module in modules for value in module.state_dict().values()]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(0.5, 1e38, -1e38), b.nan_to_num(0.5, 1e38, -1e38)), (a - b).abs().max()


def states(optimizer: Any) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    return [state[number][name] for number in sorted(state) for name in sorted(state[number])]


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


def test_a_module_whose_parameters_are_replaced_is_refused() -> None:
    network: Any = Net()
    optimizer, _ = make(SGDEMA, network)
    assigned(network)
    with pytest.raises(PynasError, match="10 parameters are not the module's; allowed: parameters of module"):
        optimizer.step()


@fused_kinds
def test_gradients_with_gaps_are_taken(kind: Any) -> None:
    outcomes = []
    for gradient in (torch.ones(5), torch.ones(1).expand(5)):
        p = nn.Parameter(torch.zeros(5))
        p.grad = gradient
        kind([p], 0.1).step()
        outcomes.append([p.detach()])
    same(*outcomes)


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
@pytest.mark.parametrize("ops", [pytest.param("fused", marks=needs_library), "reference"])
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


def test_gradients_of_another_dtype_are_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1 << 16))
    parameter.grad_dtype = torch.bfloat16
    parameter.grad = torch.ones(1 << 16, dtype=torch.bfloat16)
    with pytest.raises(PynasError, match=r"gradient is torch.bfloat16; allowed: its parameter's type, torch.float32"):
        SGDEMA([parameter], 1.0).step()


def backward(network: Any, seed: int = 0) -> None:
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    network(x).square().mean().backward()


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
@pytest.mark.parametrize("ops", [pytest.param("fused", marks=needs_library), "reference"])
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
@pytest.mark.parametrize("ops", [pytest.param("fused", marks=needs_library), "reference"])
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


KINDS_OF_OPS = pytest.mark.parametrize("ops", [pytest.param("fused", marks=needs_library), "reference"])


@fused_kinds
@KINDS_OF_OPS
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
@KINDS_OF_OPS
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
