"""Batch-norm, activation and squeeze-and-excite in one: against float64 and torch's own modules."""

from __future__ import annotations

import pytest
import torch
from norms import ACTS, SHAPES, check_errors, images, norm_of, results
from torch import Tensor, nn

from pynas.nets.blocks import SqueezeExcite
from pynas.ops import available
from pynas.ops import reference_batch_norm as reference
from pynas.ops.squeeze_excite import batch_norm_act_se

pytestmark = [
    pytest.mark.usefixtures("unruled"),
    pytest.mark.skipif(not available(), reason="libpynas_ops is not built"),
]


def modules_of(channels: int, dtype: torch.dtype, hidden: int = 8) -> list[nn.Module]:
    generator = torch.Generator().manual_seed(2)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    convs = [nn.Conv2d(channels, hidden, 1, dtype=kind), nn.Conv2d(hidden, channels, 1, dtype=kind)]
    for conv in convs:
        for parameter in conv.parameters():
            nn.init.normal_(parameter, 0.0, 0.7, generator=generator)
    return [norm_of(channels, dtype), *convs]


def check(x: Tensor, modules: list[nn.Module], act: str) -> None:
    gate = "sigmoid" if act in ("swish", "relu6") else "hsigmoid"

    def with_kernels(x: Tensor, m: list[nn.Module]) -> Tensor:
        return batch_norm_act_se(x, m[0], act, m[1], act, m[2], gate)

    def plainly(x: Tensor, m: list[nn.Module]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            return reference.batch_norm_act_se(x, m[0], act, m[1], act, m[2], gate)

    def exactly(x: Tensor, m: list[nn.Module]) -> Tensor:
        return plainly(x, [module.double() for module in m])

    exact = results(exactly, x.double(), modules)
    check_errors(results(with_kernels, x, modules), results(plainly, x, modules), exact, x.dtype)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_at_most_twice_torchs(shape: tuple[int, ...], dtype: torch.dtype, act: str) -> None:
    modules = modules_of(shape[1], dtype)
    check(images(shape, dtype), modules, act)
    modules[0].eval()
    check(images(shape, dtype), modules, act)


@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_a_large_mean_costs_no_more_than_in_torchs_own(mean: float) -> None:
    check(images((4, 17, 9, 9), torch.float32, mean), modules_of(17, torch.float32), "hswish")


@pytest.mark.parametrize("act", ACTS)
def test_gradients_are_those_of_finite_differences(act: str) -> None:
    norm, reduce, expand = modules_of(3, torch.float64, 2)
    x = images((2, 3, 2, 3), torch.float64).requires_grad_()
    weights = [parameter for module in (norm, reduce, expand) for parameter in module.parameters()]
    for training in (True, False):
        norm.train(training)
        assert torch.autograd.gradcheck(
            lambda x, *_: batch_norm_act_se(x, norm, act, reduce, act, expand), (x, *weights)
        )


def test_it_is_the_networks_module() -> None:
    block = SqueezeExcite(6, 4, "hswish")
    norm = norm_of(6, torch.float32)
    x = images((3, 6, 5, 5), torch.float32)
    expected = block(nn.functional.silu(norm(x)))
    with torch.no_grad():
        torch.testing.assert_close(batch_norm_act_se(x, norm, "swish", block.reduce, "hswish", block.expand), expected)


def test_some_parameters_without_gradients() -> None:
    modules = modules_of(6, torch.float32)
    x = images((3, 6, 5, 5), torch.float32)
    whole = results(lambda x, m: batch_norm_act_se(x, m[0], "relu", m[1], "relu", m[2]), x, modules)
    modules[0].requires_grad_(False)
    modules[2].requires_grad_(False)
    some = results(lambda x, m: batch_norm_act_se(x, m[0], "relu", m[1], "relu", m[2]), x, modules)
    for mine, other in zip(some, whole, strict=True):
        assert mine is None or torch.equal(mine, other)


def test_autocast_takes_the_gate_in_float32_and_keeps_the_dtype() -> None:
    modules = modules_of(4, torch.float32)
    x = images((2, 4, 3, 3), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(lambda x, m: batch_norm_act_se(x, m[0], "relu", m[1], "relu", m[2]), x, modules)
    plain = results(lambda x, m: batch_norm_act_se(x, m[0], "relu", m[1], "relu", m[2]), x, modules)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert found[0].dtype == torch.bfloat16


def test_other_layouts_and_modules_take_the_reference() -> None:
    norm, reduce, expand = modules_of(4, torch.float32)
    x = torch.randn(2, 4, 3, 3)
    check(x, [norm, reduce, expand], "hswish")
    calls: list[int] = []
    reduce.register_forward_hook(lambda *_: calls.append(1))
    batch_norm_act_se(x.contiguous(memory_format=torch.channels_last), norm, "relu", reduce, "relu", expand)
    assert calls == [1]


def test_one_gate_for_all_channels_is_the_references() -> None:
    norm, reduce, _ = modules_of(4, torch.float32)
    check(images((2, 4, 3, 3), torch.float32), [norm, reduce, nn.Conv2d(8, 1, 1)], "relu")


def test_convolutions_of_other_channels_are_refused_as_torch_does() -> None:
    norm, reduce, expand = modules_of(4, torch.float32)
    x = images((2, 4, 3, 3), torch.float32)
    for wrong in ((nn.Conv2d(1, 8, 1), expand), (reduce, nn.Conv2d(8, 3, 1)), (reduce, nn.Conv2d(5, 4, 1))):
        with pytest.raises(RuntimeError) as ours:
            batch_norm_act_se(x, norm, "relu", wrong[0], "relu", wrong[1])
        with pytest.raises(RuntimeError) as theirs:
            reference.batch_norm_act_se(x, norm, "relu", wrong[0], "relu", wrong[1])
        assert str(ours.value) == str(theirs.value)


@pytest.mark.filterwarnings("ignore")
def test_it_compiles_in_one_graph() -> None:
    x, modules = images((2, 5, 3, 3), torch.float32), modules_of(5, torch.float32)

    def compute(x: Tensor, m: list[nn.Module]) -> Tensor:
        return batch_norm_act_se(x, m[0], "hswish", m[1], "relu", m[2])

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(results(compiled, x, modules), results(compute, x, modules), strict=True):
        torch.testing.assert_close(mine, eager)
