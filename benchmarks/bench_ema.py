"""The moving average of a network's weights, alone and fused into the optimizer's step, against torch's grouped ones.

FBNetV3-F: 13.8 million parameters in some 400 tensors, and batch-norm's running statistics, which are averaged too.
`copy` is torch's copy of one contiguous tensor, scaled to the bytes that a case reads and writes: 12 a value for the
average, 36 for RMSProp with momentum and the average in one pass, 28 for SGD. PYNAS_BENCH_THREADS is the number of
threads.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

import pynas.ops
from pynas.nets.load import read_model
from pynas.ops.arena import floats
from pynas.ops.ema import ModelEma, ema_multi_avg_fn, ema_update
from pynas.ops.optimizer import SGDEMA, RMSpropEMA
from pynas.train.ema import WeightAverage
from pynas.train.optimizer import SGD, RMSPropTF, parameter_groups

MODEL, DECAY, LR, WEIGHT_DECAY = "fbnetv3_f", 0.999, 1e-4, 1e-5
HOST_REPEATS = 50


def prepared(network: nn.Module) -> nn.Module:
    made = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    for p in made.parameters():
        p.grad = 0.01 * torch.randn(p.shape, generator=generator)
    return made


def separate(network: nn.Module, kind: Any, **options: Any) -> tuple[Callable[[int], None], nn.Module, nn.Module]:
    """An optimizer's step and then torch's grouped average."""
    made = prepared(network)
    average = WeightAverage(made, DECAY)
    optimizer = kind(parameter_groups(made, WEIGHT_DECAY), LR, momentum=0.9, **options)

    def case(_: int) -> None:
        optimizer.step()
        average.update()

    return case, made, average.network


def fused(network: nn.Module, kind: Any, **options: Any) -> tuple[Callable[[int], None], nn.Module, nn.Module]:
    made = prepared(network)
    average = WeightAverage(made, DECAY).network
    groups = parameter_groups(made, WEIGHT_DECAY)
    optimizer = kind(groups, LR, module=made, average=average, average_decay=DECAY, **options)

    def case(_: int) -> None:
        optimizer.step()

    return case, made, average


def checked(network: nn.Module) -> None:
    """Both kinds give the same weights and averages after three steps, before any is timed."""
    for ours, theirs, tolerance in ((RMSpropEMA, RMSPropTF, 1e-6), (SGDEMA, SGD, 0.0)):
        made = [fused(network, ours), separate(network, theirs)]
        for i in range(3):
            for step, _, _ in made:
                step(i)
        for which in (1, 2):
            for a, b in zip(floats(made[0][which]), floats(made[1][which]), strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def copying(values: int, bytes_each: int) -> Callable[[int], Tensor]:
    source = torch.zeros(values * bytes_each // 8)
    target = torch.zeros_like(source)
    return lambda _: target.copy_(source)


def average_cases(network: nn.Module) -> dict[str, Callable[[int], Any]]:
    generator = torch.Generator().manual_seed(2)
    model, average = copy.deepcopy(network), copy.deepcopy(network)
    values, averages = ([t.detach() for t in floats(module)] for module in (model, average))
    for value in values:
        value.add_(torch.randn(value.shape, generator=generator))
    arena_model, arena_average = copy.deepcopy(model), copy.deepcopy(average)
    arena = RMSpropEMA(arena_model.parameters(), LR, module=arena_model, average=arena_average, average_decay=DECAY)
    flat, weights = arena._flat_average, arena.arena.weights
    assert flat is not None
    module_average = ModelEma(copy.deepcopy(average), DECAY)
    multi = ema_multi_avg_fn(DECAY)
    for_multi = [t.clone() for t in averages]
    ema_update(flat, weights, DECAY)
    module_average.update(model)
    multi(for_multi, values, 1)
    torch._foreach_lerp_(averages, values, 1.0 - DECAY)
    for found in (floats(arena_average), floats(module_average.module), for_multi):
        assert all(torch.equal(a, b) for a, b in zip(found, averages, strict=True))
    return {
        "average: foreach_lerp": lambda _: torch._foreach_lerp_(averages, values, 1.0 - DECAY),
        "average: lerp_ of one tensor": lambda _: flat.lerp_(weights, 1.0 - DECAY),
        "average: ema_update in arena": lambda _: ema_update(flat, weights, DECAY),
        "average: ModelEma": lambda _: module_average.update(model),
        "average: copy": copying(flat.numel(), 12),
    }


def host_microseconds(network: nn.Module) -> dict[str, float]:
    """Of a step's and an update's Python, by cutting the tensors down to one value each."""
    small = nn.ParameterList([torch.zeros(1) for _ in floats(network)])
    mean = copy.deepcopy(small)
    for p in small:
        p.grad = torch.zeros(1)
    ema = ModelEma(small)
    cases: dict[str, Callable[[], Any]] = {
        "ModelEma.update": lambda: ema.update(small),
        "foreach_lerp": lambda: torch._foreach_lerp_([p.detach() for p in mean], [p.detach() for p in small], 0.1),
        "RMSpropEMA, gradients anywhere": RMSpropEMA(copied(small).parameters(), LR, gradient_views=False).step,
        "RMSpropEMA, gradients in the arena": RMSpropEMA(copied(small).parameters(), LR, gradient_views=True).step,
        "RMSPropTF": RMSPropTF(copied(small).parameters(), LR).step,
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(HOST_REPEATS):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            found[name].append(1e6 * (time.perf_counter() - start))
    return {name: sorted(times)[HOST_REPEATS // 2] for name, times in found.items()}


def copied(small: nn.ParameterList) -> nn.ParameterList:
    made = copy.deepcopy(small)
    for p in made:
        p.grad = torch.zeros(1)
    return made


def main() -> None:
    options = harness.arguments(__doc__, rounds=25)
    around = harness.machine("torch")
    torch.set_num_threads(harness.THREADS)
    pynas.ops.use("fused")
    network = read_model(MODEL).build()
    checked(network)
    size = sum(t.numel() for t in floats(network))
    steps: dict[str, Callable[[int], Any]] = {
        "rmsprop: torch.optim, then foreach_lerp": separate(network, torch.optim.RMSprop, foreach=True)[0],
        "rmsprop: RMSPropTF, then foreach_lerp": separate(network, RMSPropTF)[0],
        "rmsprop: RMSpropEMA": fused(network, RMSpropEMA)[0],
        "rmsprop: copy": copying(size, 36),
        "sgd: torch.optim, then foreach_lerp": separate(network, torch.optim.SGD, foreach=True)[0],
        "sgd: SGD, then foreach_lerp": separate(network, SGD)[0],
        "sgd: SGDEMA": fused(network, SGDEMA)[0],
        "sgd: copy": copying(size, 28),
    }
    runs = {**harness.measure(average_cases(network), options.rounds), **harness.measure(steps, options.rounds)}
    ours = {"average": "average: ema_update in arena", "rmsprop": "rmsprop: RMSpropEMA", "sgd": "sgd: SGDEMA"}
    results, rows = {}, []
    for name, run in runs.items():
        results[name] = run.summary(runs[ours[name.split(":")[0]]])
        rows.append((name, *harness.milliseconds(results[name]), f"{results[name]['ratio']['median']:.2f}"))

    def ratio(name: str) -> float:
        return results[name]["ratio"]["median"]

    targets = [
        (f"{what}", f"{ratio(name):.2f}", ratio(name) >= least)
        for what, name, least in (
            ("the average 1.4 times as fast as torch._foreach_lerp_", "average: foreach_lerp", 1.4),
            ("the average at 80% of a copy's speed or more", "average: copy", 0.8),
            ("RMSProp and average 1.8 times torch's foreach RMSprop and foreach_lerp",
             "rmsprop: torch.optim, then foreach_lerp", 1.8),
            ("RMSProp and average 1.8 times pynas's own RMSPropTF and foreach_lerp",
             "rmsprop: RMSPropTF, then foreach_lerp", 1.8),
        )
    ]  # fmt: skip
    host = host_microseconds(network)
    for name, microseconds in host.items():
        print(f"host time of {len(floats(network))} tensors, {name}: {microseconds:.0f} us")
    columns = ("what", *harness.TIMES, "times ours")
    about = {"model": MODEL, "values": size, "tensors": len(floats(network))}
    harness.report("ema", options, around, columns, rows, targets,
                   {"results": results, "host_microseconds": host, **about})  # fmt: skip


if __name__ == "__main__":
    main()
