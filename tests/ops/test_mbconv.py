"""The fused block: the plan of its steps against the layers, and the GPU's kernels, emulated, as its steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import tiles
import torch
import torch.nn.functional as F
from norms import check_errors, images
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import available, mbconv_choice, mbconv_kernels, mbconv_plan, reference_mbconv
from pynas.ops.gate import GateLayers
from pynas.ops.mbconv import MBConvLayers, block_shape, mbconv
from pynas.ops.reference_batch_norm import activation

LAST = torch.channels_last
has_gpu = available() and torch.cuda.is_available() and torch.ops.pynas.has_cuda()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu, reason="no GPU here, or a library without CUDA kernels")]
STEPS = ("expand", "depthwise", "pooled", "project", "norm_act", "depthwise_applied", "project_applied")
STEPS += ("norm_act_backward_sums", "project_backward", "project_weight_backward", "depthwise_backward")
STEPS += ("expand_backward", "expand_weight_backward", "gram", "expanded_backward")
EMULATED: Any = tiles

CASES: dict[str, dict[str, Any]] = {  # input, expanded and output channels
    "plain": {"widths": (16, 48, 16), "kernel": 3, "stride": 1, "hidden": 0, "act": "hswish"},
    "gated": {"widths": (8, 32, 8), "kernel": 5, "stride": 1, "hidden": 8, "act": "swish"},
    "strided": {"widths": (8, 32, 24), "kernel": 3, "stride": 2, "hidden": 8, "act": "hswish"},
    "not expanded": {"widths": (16, 16, 16), "kernel": 7, "stride": 1, "hidden": 4, "act": "relu"},
    "sigmoid": {"widths": (8, 16, 8), "kernel": 3, "stride": 1, "hidden": 8, "act": "relu6", "gate": "sigmoid"},
    "padding": {"widths": (8, 16, 8), "kernel": 3, "stride": 2, "hidden": 8, "act": "hswish", "padding": 0},
    "radix 2": {"widths": (8, 32, 8), "kernel": 3, "stride": 1, "hidden": 8, "act": "swish", "splits": 2},
    "radix 4": {"widths": (8, 16, 24), "kernel": 5, "stride": 2, "hidden": 4, "act": "hswish", "splits": 4},
}


class Layers(nn.Module):
    """A block of torch's own layers."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        kernel: int,
        stride: int,
        hidden: int,
        act: str,
        splits: int = 1,
        gate: str = "hsigmoid",
        padding: int | None = None,
    ) -> None:
        super().__init__()
        given, mid, made = widths
        self.expand = nn.Conv2d(given, mid, 1, bias=False) if mid != given else None
        self.norm1 = None if self.expand is None else nn.BatchNorm2d(mid)
        maps = mid * splits
        pad = kernel // 2 if padding is None else padding
        self.depthwise = nn.Conv2d(mid, maps, kernel, stride, pad, groups=mid, bias=False)
        self.norm2 = nn.BatchNorm2d(maps, momentum=None)
        self.reduce = nn.Conv2d(mid, hidden, 1) if hidden else None
        self.widen = nn.Conv2d(hidden, maps, 1) if hidden else None
        self.project = nn.Conv2d(mid, made, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(made)
        self.splits, self.gate = splits, "softmax" if splits > 1 else gate
        self.act, self.residual = act, stride == 1 and given == made
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in [*self.named_parameters(), *self.named_buffers()]:
                if "norm" in name and value.dim():
                    value.uniform_(0.5, 1.5, generator=generator)
        self.to(memory_format=LAST)  # type: ignore[call-overload]

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        act = activation(self.act)
        y = x if self.expand is None or self.norm1 is None else act(self.norm1(self.expand(x)))
        y = act(self.norm2(self.depthwise(y)))
        if self.reduce is not None and self.widen is not None:
            maps = y.unflatten(1, (-1, self.splits))
            logits = self.widen(act(self.reduce(maps.sum(2).mean((2, 3), keepdim=True))))
            function = {"hsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid, "softmax": lambda z: z.softmax(1)}[
                self.gate
            ]
            y = (maps * function(logits.unflatten(1, (self.splits, -1))).transpose(1, 2)).sum(2)
        y = self.norm3(self.project(y))
        y = y if keep is None else y * keep[:, None, None, None].to(y.dtype)
        return y + x if self.residual else y

    def layers(self) -> MBConvLayers:
        none = self.reduce is None or self.widen is None
        gate = None if none else GateLayers(self.reduce, self.act, self.widen, self.gate)
        rest = (self.project, self.norm3, self.act)
        return MBConvLayers(self.expand, self.norm1, self.depthwise, self.norm2, gate, *rest)


def results(block: Layers, x: Tensor, keep: Tensor | None, steps: Any, compute: Any = mbconv) -> list[Tensor]:
    """Output, gradients of x and of the parameters, buffers. steps: None for the layers themselves."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    y = block(x, keep) if steps is None else compute(x, block.layers(), block.residual, keep, steps=steps)
    (y * images(y.shape, y.dtype, seed=9).to(y.device)).sum().backward()
    found = [y.detach(), x.grad, *(parameter.grad for parameter in block.parameters()), *block.buffers()]
    return [value for value in found if value is not None and value.is_floating_point()]


def given(case: str, dtype: torch.dtype, training: bool, dropped: bool) -> tuple[Layers, Tensor, Tensor | None]:
    block = Layers(**CASES[case])
    block.train(training).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = images((4, CASES[case]["widths"][0], 9, 7), dtype)
    keep = torch.tensor([0.0, 1.25, 1.25, 0.0]).to(dtype) if dropped and block.residual else None
    return block, x, keep


@pytest.fixture(params=mbconv_plan.PLANS, autouse=True)
def plan(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test with y1 kept, and with y1 made anew."""
    with mbconv_plan.using(request.param):
        yield request.param


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_the_layers_in_float64(case: str, training: bool) -> None:
    for dropped in (False, True):
        block, x, keep = given(case, torch.float64, training, dropped)
        expected, found = results(block, x, keep, None), results(block, x, keep, reference_mbconv)
        assert len(found) == len(expected) > 8
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_kernels_as_steps_err_at_most_twice_as_much_as_torchs_layers(
    device: str, dtype: torch.dtype, case: str, training: bool
) -> None:
    block, x, keep = given(case, dtype, training, True)
    exact = results(copy.deepcopy(block).double(), x.double(), keep, None)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        eager = results(block, x, keep, None)
    if device == "cuda":
        block, x, keep = block.to(device), x.to(device), None if keep is None else keep.to(device)
    found = results(block, x, keep, mbconv_kernels if device == "cuda" else EMULATED)
    check_errors([value.cpu() for value in found], eager, exact, dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_inference_is_the_layers_in_evaluation(device: str, dtype: torch.dtype, case: str) -> None:
    block, x, _ = given(case, dtype, False, False)
    calls: list[str] = []
    source = mbconv_kernels if device == "cuda" else reference_mbconv if dtype == torch.float64 else EMULATED

    def counted(name: str) -> Any:
        return lambda *arguments: calls.append(name) or getattr(source, name)(*arguments)

    steps: Any = SimpleNamespace(**{name: counted(name) for name in STEPS})
    with torch.no_grad():
        exact = copy.deepcopy(block).double()(x.double(), None)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            eager = block(x, None)
        y = mbconv(x.to(device), block.to(device).layers(), block.residual, steps=steps)
    check_errors([y.cpu()], [eager.to(dtype)], [exact], dtype)
    assert calls[-2:] == ["depthwise_applied", "project_applied"]
    assert calls[:-2] in ([], ["expand"])


def test_gradients_that_nobody_needs_are_not_given() -> None:
    block, x, _ = given("gated", torch.float32, True, False)
    block.depthwise.weight.requires_grad_(False)
    mbconv(x, block.layers(), block.residual).sum().backward()
    assert block.depthwise.weight.grad is None
    assert block.project.weight.grad is not None
    assert x.grad is None


def test_what_is_kept_for_backward_is_x_and_what_three_convolutions_give(plan: Any) -> None:
    block, x, _ = given("gated", torch.float32, True, False)
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        mbconv(x.requires_grad_(), block.layers(), block.residual)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    expanded = 32 if plan == "stored" else 0
    assert sum(size for size in kept.values() if size >= pixels * 8) == pixels * (8 + expanded + 32 + 8)
    shape = block_shape(x, block.layers())
    assert mbconv_plan.saved_activations(shape, plan) == 4 * pixels * (8 + expanded + 32 + 8)


@pytest.mark.parametrize("dtype", mbconv_choice.DTYPES)
def test_the_gpus_arithmetic_passes_the_trial(dtype: torch.dtype, plan: str) -> None:
    if plan == "stored":  # a trial has both
        assert mbconv_choice.trial(EMULATED, torch.device("cpu"), dtype) == ""


def test_what_does_not_fit_the_layers_is_refused() -> None:
    block, x, _ = given("plain", torch.float32, True, False)
    layers, strided = block.layers(), block.layers()._replace(depthwise=nn.Conv2d(48, 48, 3, 2, 1, 1, 48, bias=False))
    for changed, image, residual, keep, message in (
        (layers, x[:, :8], True, None, r"x of shape \(4, 8, 9, 7\); allowed: \(N, 16, H, W\)"),
        (layers, x[0], True, None, r"x of shape \(16, 9, 7\)"),
        (strided, x, True, None, r"residual of shape .*; allowed: that of the result, \(N, \(16, 5, 4\)\)"),
        (layers, x, True, torch.ones(1), r"keep of shape \(1,\); allowed: \(4,\)"),
    ):
        with pytest.raises(PynasError, match=f"mbconv: {message}"):
            mbconv(image, changed, residual, keep)


@pytest.mark.parametrize("steps", [reference_mbconv, EMULATED], ids=["reference", "emulated"])
def test_backward_under_autocast_is_as_without(steps: Any) -> None:
    block, x, _ = given("gated", torch.float32, True, False)
    found = []
    for enabled in (False, True):
        own, leaf = copy.deepcopy(block), x.bfloat16().requires_grad_()
        y = mbconv(leaf, own.layers(), True, steps=steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y.float().square().sum().backward()
        found.append([leaf.grad, *(parameter.grad for parameter in own.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_several_gradients_at_once_are_refused() -> None:
    block, x, _ = given("gated", torch.float64, True, False)
    y = mbconv(x.requires_grad_(), block.layers(), True)
    with pytest.raises(PynasError, match=r"backward of mbconv: several gradients at once; allowed: one, or ops\.use"):
        torch.autograd.grad(y, x, torch.stack([y, y]).detach(), is_grads_batched=True)


def test_layers_that_no_step_computes_are_refused() -> None:
    block, x, _ = given("plain", torch.float32, True, False)
    layers = block.layers()
    for changed, message in (
        (
            layers._replace(depthwise=nn.Conv2d(48, 48, 3, 3, groups=48, bias=False)),
            "mbconv: depthwise Conv2d.*; allow",
        ),
        (layers._replace(depthwise=nn.Conv2d(48, 48, 3, padding=1, bias=False)), "mbconv: depthwise Conv2d.*; allowed"),
        (layers._replace(depthwise=nn.Conv2d(48, 48, 9, padding=4, groups=48, bias=False)), "3, 5 or 7 a channel"),
        (layers._replace(depthwise=nn.Conv2d(48, 48, 3, padding=3, groups=48, bias=False)), "padding less than they"),
        (layers._replace(depthwise=nn.Conv2d(48, 48, 3, padding="same", groups=48, bias=False)), "padding less than"),
        (layers._replace(depthwise=nn.Conv2d(48, 144, 3, padding=1, groups=48, bias=False)), "1, 2 or 4 kernels"),
        (layers._replace(depthwise=nn.Conv2d(48, 96, 3, padding=1, groups=48, bias=False)), "without a gate"),
        (
            layers._replace(gate=GateLayers(nn.Conv2d(48, 8, 1), "relu", nn.Conv2d(8, 48, 1), "softmax")),
            "1 splits: got",
        ),
        (layers._replace(gate=GateLayers(nn.Conv2d(48, 8, 1), "relu", nn.Conv2d(8, 8, 1))), "from 8 to 48 channels"),
        (layers._replace(project=nn.Conv2d(48, 16, 1)), "mbconv: Conv2d.*; allowed: 1x1"),
        (layers._replace(expand=nn.Conv2d(16, 48, 1, stride=2, bias=False)), "mbconv: Conv2d.*; allowed: 1x1"),
        (layers._replace(expand_norm=None), "expand without its norm"),
        (layers._replace(expand=nn.Conv2d(16, 24, 1, bias=False)), "to and from the depthwise one's 48"),
        (layers._replace(project_norm=nn.BatchNorm2d(8)), "norm BatchNorm2d.*; allowed: batch-norm of 16 channels"),
        (layers._replace(norm=nn.InstanceNorm2d(48)), "norm InstanceNorm2d.*; allowed: batch-norm of 48 channels"),
    ):
        with pytest.raises(PynasError, match=message):
            mbconv(x, changed, block.residual)


def test_a_single_value_a_channel_is_refused_in_training() -> None:
    block, x, _ = given("plain", torch.float32, True, False)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        mbconv(x[:1, :, :1, :1], block.layers(), block.residual)


@pytest.mark.skipif(not available(), reason="libpynas_ops is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_fakes_of_the_operators_are_of_the_results_shapes(case: str, dtype: torch.dtype) -> None:
    block, x, keep = given(case, torch.float32, True, True)
    block, x = block.to("meta"), x.to(dtype).to("meta")
    keep = None if keep is None else keep.to("meta")
    told: list[list[Any]] = []
    for steps in (mbconv_kernels, reference_mbconv):
        found = results(block, x, keep, steps)
        told.append([(value.shape, value.dtype) for value in found])
        if steps is mbconv_kernels:
            assert all(value.is_contiguous(memory_format=LAST) for value in found[:2])
    with torch.no_grad():
        inferred = [
            mbconv(x, block.eval().layers(), block.residual, steps=s) for s in (mbconv_kernels, reference_mbconv)
        ]
    told[0].append((inferred[0].shape, inferred[0].dtype))
    told[1].append((inferred[1].shape, inferred[1].dtype))
    assert inferred[0].is_contiguous(memory_format=LAST)
    assert told[0] == told[1]


@pytest.mark.skipif(not available(), reason="libpynas_ops is not built")
def test_the_operators_have_no_kernels_on_a_cpu() -> None:
    with pytest.raises(NotImplementedError, match="mbconv_expand"):
        torch.ops.pynas.mbconv_expand(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", ["gated", "radix 2"])
def test_it_compiles_in_one_graph(case: str, training: bool) -> None:
    block, x, keep = given(case, torch.float32, training, True)
    expected = results(block, x, keep, reference_mbconv)
    compiled: Any = torch.compile(mbconv, backend="aot_eager", fullgraph=True)
    found = results(block, x, keep, reference_mbconv, compiled)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)


def test_under_autocast_it_is_of_autocasts_dtype() -> None:
    block, x, _ = given("gated", torch.float32, True, False)
    with torch.autocast("cpu", torch.bfloat16):
        y = mbconv(x, block.layers(), block.residual)
        eager = block(x.bfloat16(), None)
    assert y.dtype == eager.dtype == torch.bfloat16
    torch.testing.assert_close(y, eager, rtol=0.05, atol=0.05)
