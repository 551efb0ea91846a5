"""Batch-norm with what follows it: against float64, against torch's own, and what the operators refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from norms import ACTS, LAST, SHAPES, check_errors, images, norm_of, results
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import available, using
from pynas.ops import reference_batch_norm as reference
from pynas.ops.batch_norm import batch_norm_act
from pynas.ops.squeeze_excite import batch_norm_act_se

pytestmark = [
    pytest.mark.usefixtures("unruled"),
    pytest.mark.skipif(not available(), reason="libpynas_ops is not built"),
]
OPS = torch.ops.pynas
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def check(x: Tensor, norm: nn.Module, act: str, residual: Tensor | None = None, keep: Tensor | None = None) -> None:
    def with_kernels(x: Tensor, modules: list[nn.Module], *others: Tensor) -> Tensor:
        return batch_norm_act(x, modules[0], act, *(others or (None,)), keep)

    def plainly(x: Tensor, modules: list[nn.Module], *others: Tensor) -> Tensor:
        return reference.batch_norm_act(x, modules[0], act, *(others or (None,)), keep)

    def exactly(x: Tensor, modules: list[nn.Module], *others: Tensor) -> Tensor:
        return plainly(x, [module.double() for module in modules], *others)

    others = [] if residual is None else [residual]
    exact = results(exactly, x.double(), [norm], *(value.double() for value in others))
    check_errors(results(with_kernels, x, [norm], *others), results(plainly, x, [norm], *others), exact, x.dtype)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_at_most_twice_torchs(shape: tuple[int, ...], dtype: torch.dtype, act: str) -> None:
    norm = norm_of(shape[1], dtype)
    x = images(shape, dtype)
    keep = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25])[: shape[0]]
    check(x, norm, act)
    check(x, norm, act, images(shape, dtype, seed=3), keep)
    check(x, norm.eval(), act, None, keep)


@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_a_large_mean_costs_no_more_than_in_torchs_own(mean: float) -> None:
    check(images((4, 17, 9, 9), torch.float32, mean), norm_of(17, torch.float32), "hswish")


def test_many_chunks() -> None:
    check(images((3, 24, 65, 67), torch.float32), norm_of(24, torch.float32), "swish", None, torch.rand(3))


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.7, "eps": 0.1}]
)
@pytest.mark.parametrize("training", [True, False])
def test_every_kind_of_batch_norm(options: dict[str, object], training: bool) -> None:
    norm = norm_of(5, torch.float32, **options).train(training)
    other = norm_of(5, torch.float32, **options).train(training)
    for seed in range(3):
        x = images((4, 5, 3, 3), torch.float32, seed=seed)
        torch.testing.assert_close(batch_norm_act(x, norm, "relu"), other(x).relu())
    for mine, torchs in zip(norm.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("act", ACTS)
def test_gradients_are_those_of_finite_differences(act: str) -> None:
    norm = norm_of(3, torch.float64)
    residual = images((2, 3, 2, 3), torch.float64, seed=4).requires_grad_()
    x = images((2, 3, 2, 3), torch.float64).requires_grad_()
    keep = torch.tensor([0.5, 1.5], dtype=torch.float64)
    for training in (True, False):
        norm.train(training)

        def compute(x: Tensor, residual: Tensor, *_: Tensor) -> Tensor:
            return batch_norm_act(x, norm, act, residual, keep)

        assert torch.autograd.gradcheck(compute, (x, residual, norm.weight, norm.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_at_their_borders_and_beyond(dtype: torch.dtype) -> None:
    values = [-3.0, 3.0, 0.0, -0.0, -100.0, 100.0, -87.5, 88.9, -104.0, 1e30, 2.9999998, -1e-30, 1.0, -20.0]
    x = torch.tensor(values, dtype=dtype).view(-1, 1, 1, 1)
    norm = nn.BatchNorm2d(1, eps=0.0, dtype=dtype).eval()
    for act in ACTS:
        found, expected = (
            results(lambda x, modules: function(x, modules[0], act), x, [norm])  # noqa: B023
            for function in (batch_norm_act, reference.batch_norm_act)
        )
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("act", ACTS)
def test_what_is_not_finite_goes_where_it_goes_in_torch(bad: float, act: str) -> None:
    x = images((2, 9, 3, 3), torch.float32)
    x[1, 4, 2, 1] = bad
    norm = norm_of(9, torch.float32)
    for training in (True, False):
        norm.train(training)
        found, expected = batch_norm_act(x, norm, act), reference.batch_norm_act(x, norm, act)
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found.isnan(), expected.isnan())


def test_other_tensors_and_modules_take_the_reference() -> None:
    norm = norm_of(4, torch.float32)
    calls: list[int] = []
    x = torch.randn(3, 4, 5, 6)
    sliced = torch.randn(3, 8, 5, 6).contiguous(memory_format=LAST)[:, ::2]
    for given in (x, sliced, torch.randn(0, 4, 5, 6), x.contiguous(memory_format=LAST).half().float()):
        check(given.contiguous() if given.numel() == 0 else given, norm, "hswish")
    check(x.contiguous(memory_format=LAST), norm, "hswish", x)
    norm.register_forward_hook(lambda *_: calls.append(1))
    batch_norm_act(x.contiguous(memory_format=LAST), norm)
    assert calls == [1]


def _attribute(norm: nn.BatchNorm2d) -> None:
    weight = norm.weight.detach()
    del norm.weight
    norm.weight = weight  # type: ignore[assignment]


UNUSUAL: dict[str, Callable[[nn.BatchNorm2d], object]] = {
    "uncounted": lambda norm: setattr(norm, "num_batches_tracked", None),
    "counted in int32": lambda norm: setattr(norm, "num_batches_tracked", torch.tensor(2, dtype=torch.int32)),
    "counted several times": lambda norm: setattr(norm, "num_batches_tracked", torch.tensor([1, 2])),
    "strided mean": lambda norm: setattr(norm, "running_mean", torch.arange(8.0)[::2]),
    "strided variance": lambda norm: setattr(norm, "running_var", torch.arange(1.0, 9.0)[::2]),
    "strided weight": lambda norm: setattr(norm, "weight", nn.Parameter(torch.arange(8.0)[::2])),
    "strided bias": lambda norm: setattr(norm, "bias", nn.Parameter(torch.arange(8.0)[::2])),
    "weight that is no parameter": _attribute,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", UNUSUAL)
def test_a_norm_kept_in_an_unusual_way_is_torchs_own(name: str, training: bool) -> None:
    ours, torchs = norm_of(4, torch.float32).train(training), norm_of(4, torch.float32).train(training)
    UNUSUAL[name](ours)
    UNUSUAL[name](torchs)
    reduce, expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
    for seed in range(2):
        x = images((3, 4, 5, 6), torch.float32, seed=seed)
        found, expected = batch_norm_act(x, ours, "hswish"), reference.batch_norm_act(x, torchs, "hswish")
        torch.testing.assert_close(found, expected)
        found = batch_norm_act_se(x, ours, "hswish", reduce, "relu", expand)
        torch.testing.assert_close(found, reference.batch_norm_act_se(x, torchs, "hswish", reduce, "relu", expand))
    for mine, theirs in zip(ours.buffers(), torchs.buffers(), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs)


def test_what_a_user_can_get_wrong() -> None:
    x = images((2, 3, 2, 2), torch.float32)
    with pytest.raises(PynasError, match="act: got 'gelu', allowed are identity, relu, hswish, swish, relu6"):
        batch_norm_act(x, nn.BatchNorm2d(3), "gelu")
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        batch_norm_act(x[:1, :, :1, :1].contiguous(), nn.BatchNorm2d(3))
    mean, var = OPS.channel_statistics(x)
    with pytest.raises(RuntimeError, match=r"x is Half; allowed: float32, bfloat16, float64"):
        OPS.channel_statistics(x.half())
    with pytest.raises(RuntimeError, match="x is not in channels_last"):
        OPS.channel_statistics(x.contiguous())
    with pytest.raises(RuntimeError, match=r"x is of shape \(3, 2\); allowed: \(N, C, H, W\)"):
        OPS.channel_statistics(torch.randn(3, 2))
    with pytest.raises(RuntimeError, match=r"batch_norm_act: mean is of shape \(2,\); allowed: \(3,\)"):
        OPS.batch_norm_act(x, mean[:2], var, None, None, 1e-5, 0, None, None)
    with pytest.raises(RuntimeError, match="act is 5; allowed: 0 identity"):
        OPS.batch_norm_act(x, mean, var, None, None, 1e-5, 5, None, None)
    with pytest.raises(RuntimeError, match=r"gate is of shape \(3, 3\); allowed: \(2, 3\)"):
        OPS.batch_norm_act(x, mean, var, None, None, 1e-5, 0, torch.ones(3, 3), None)
    with pytest.raises(RuntimeError, match="weight is Double; allowed: float32, or float64 where x is"):
        OPS.batch_norm_act(x, mean, var, mean.double(), None, 1e-5, 0, None, None)
    with pytest.raises(RuntimeError, match="dy is BFloat16; allowed: x's dtype"):
        OPS.batch_norm_act_backward_sums(x.bfloat16(), x, mean, var, None, None, 1e-5, 0, None)
    with pytest.raises(RuntimeError, match="running_statistics_: count is -1; allowed: 0 and more"):
        OPS.running_statistics_(mean.clone(), var.clone(), torch.tensor(0), mean, var, 0.1, -1)


def test_autocast_changes_nothing() -> None:
    norm = norm_of(4, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        x = images((2, 4, 3, 3), dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found = batch_norm_act(x, norm, "hswish")
        assert torch.equal(found, batch_norm_act(x, norm, "hswish"))
        assert found.dtype == dtype


def arguments(
    shape: tuple[int, ...] = (2, 5, 3, 3),
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor, float, int]]:
    x = images(shape, torch.float32)
    mean, var = OPS.channel_statistics(x)
    norm = norm_of(5, torch.float32).requires_grad_(False)
    return x, (mean, var, norm.weight, norm.bias, 1e-5, 2)


def test_operators_keep_torchs_rules() -> None:
    x, norm = arguments()
    gate, dpool, sums = torch.rand(2, 5), torch.rand(2, 5), torch.rand(2, 5)
    dy = images(x.shape, torch.float32, seed=2)
    running = (torch.zeros(5), torch.ones(5), torch.tensor(0))
    for name, given in (
        ("channel_statistics", (x,)),
        ("running_statistics_", (*running, norm[0], norm[1], None, 18)),
        ("batch_norm_act", (x, *norm, gate, dy)),
        ("batch_norm_act_backward_sums", (dy, x, *norm, gate[:, :1].contiguous())),
        ("batch_norm_act_backward", (dy, x, *norm, gate, dpool, sums, 18.0)),
        ("batch_norm_act_pool", (x, *norm)),
        ("batch_norm_act_gate_sums", (dy, x, *norm)),
    ):
        torch.library.opcheck(getattr(OPS, name).default, given)


@pytest.mark.filterwarnings("ignore")
def test_it_compiles_in_one_graph() -> None:
    x = images((2, 5, 3, 3), torch.float32)
    norm = norm_of(5, torch.float32)

    def compute(x: Tensor, modules: list[nn.Module]) -> Tensor:
        return batch_norm_act(x, modules[0], "hswish", x, torch.ones(2))

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(results(compiled, x, [norm]), results(compute, x, [norm]), strict=True):
        assert torch.equal(mine, eager)


def test_no_values_at_all() -> None:
    for shape in ((0, 3, 2, 2), (2, 3, 0, 4)):
        x = torch.empty(shape).contiguous(memory_format=LAST)
        mean, var = OPS.channel_statistics(x)
        assert torch.equal(torch.stack([mean, var]), torch.zeros(2, 3))
        assert OPS.batch_norm_act(x, mean, var, None, None, 1e-5, 1, None, x).shape == shape
        sums = OPS.batch_norm_act_backward_sums(x, x, mean, var, None, None, 1e-5, 1, torch.ones(shape[0], 1))
        assert torch.equal(sums, torch.zeros(2, 3))


SCRIPT = """
import sys, torch
from norms import ACTS, images, norm_of, results
from pynas.ops.batch_norm import batch_norm_act
from pynas.ops.squeeze_excite import batch_norm_act_se
from pynas.ops import rules
rules.MEASURED = False
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for shape in ((3, 24, 40, 41), (2, 17, 9, 9)):
        c = shape[1]
        x, keep = images(shape, dtype), torch.rand(shape[0])
        convs = [torch.nn.Conv2d(c, 8, 1), torch.nn.Conv2d(8, c, 1)]
        for act in ACTS:
            for threads in (1, 2, 2):
                torch.set_num_threads(threads)
                torch.full_like(x, float("nan"))  # what memory holds before a kernel writes to it
                found = results(lambda x, m: batch_norm_act(x, m[0], act, x, keep), x, [norm_of(c, dtype)])
                found += results(lambda x, m: batch_norm_act_se(x, m[0], act, m[1], act, m[2]), x,
                                 [norm_of(c, dtype), *convs])
                if threads == 1:
                    first = found
                assert all(torch.equal(a, b) for a, b in zip(found, first)), (dtype, shape, act, threads)
            assert all(value.isfinite().all() for value in found)
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
print("instruction set", torch.ops.pynas.instruction_set())
"""


@pytest.mark.parametrize("name", ["baseline", ""])
def test_threads_and_runs_give_the_same_bits_and_nothing_slow_is_imported(name: str) -> None:
    environment = os.environ | {"PYNAS_INSTRUCTION_SET": name, "OMP_NUM_THREADS": "2"}
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *paths])
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "instruction set" in done.stdout


def test_the_reference_is_chosen_by_name() -> None:
    x, norm = images((2, 3, 4, 4), torch.float32), norm_of(3, torch.float32)
    with using("reference"):
        assert torch.equal(batch_norm_act(x, norm, "swish"), reference.batch_norm_act(x, norm, "swish"))
