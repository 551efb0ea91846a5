"""Fused layers under torch.func and forward-mode derivatives: the answers of torch's own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fused import LAST, architecture, randomised
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from pynas.errors import PynasError
from pynas.nets.attention import SplitAttention, SqueezeExcite
from pynas.nets.build import build_network
from pynas.nets.inference import folded
from pynas.ops import available, fused, using
from pynas.ops.sequence import in_sequence, norm_and_add

pytestmark = [
    pytest.mark.usefixtures("unruled"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.skipif(not available(), reason="libpynas_ops.so is not built here"),
]


class Sequence(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return in_sequence(self, input)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return norm_and_add(self.norm, x, x, torch.full(x.shape[:1], 1.25))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch-norm": lambda: Sequence(nn.BatchNorm2d(8), nn.Hardswish()),
    "batch-norm, sum": Residual,
    "batch-norm, squeeze-and-excite": lambda: Sequence(nn.BatchNorm2d(8), nn.SiLU(), SqueezeExcite(8, 4, "relu")),
    "squeeze-and-excite": lambda: SqueezeExcite(8, 4, "relu"),
    "Split-Attention": lambda: SplitAttention(4, 4, 2, "relu"),
    "depthwise": lambda: Sequence(nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False)),
    "pointwise": lambda: Sequence(nn.Conv2d(8, 6, 1)),
    "network": lambda: build_network(architecture("hswish")),
    "network of Split-Attention": lambda: build_network(architecture("relu", 2)),
}


def jvp(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    return func.jvp(layer, (x,), (tangent,))


def jvp_of_parameters(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    values = dict(layer.named_parameters())
    return func.jvp(lambda p: func.functional_call(layer, p, (x,)), (values,), (values,))


def vjp(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    y, pull = func.vjp(layer, x)
    return y, pull(torch.ones_like(y))


def grad(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    return func.grad(lambda x: layer(x).square().sum())(x)


def grad_of_parameters(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    values = {name: value.detach() for name, value in layer.named_parameters()}
    return func.grad(lambda p: func.functional_call(layer, p, (x,)).square().sum())(values)


def hessian(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    """The second derivative along the tangent, forward over reverse."""
    return func.jvp(func.grad(lambda x: layer(x).square().sum()), (x,), (tangent,))


def vmap(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    return func.vmap(lambda one: layer(one[None])[0])(x)


def vmap_of_parameters(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    several = {name: torch.stack([value, 2.0 * value]).detach() for name, value in layer.named_parameters()}
    return func.vmap(lambda p: func.functional_call(layer, p, (x,)))(several)


def gradients_of_each(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    return func.vmap(func.grad(lambda one: layer(one[None]).square().sum()))(x)


def dual_numbers(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    with forward_ad.dual_level():
        y, along = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    assert along is not None
    return y.detach(), along.detach()


def dual_numbers_backward(layer: nn.Module, x: Tensor, tangent: Tensor) -> Any:
    """The same second derivative by dual numbers and backward."""
    with forward_ad.dual_level():
        x = x.clone().requires_grad_()
        dual = forward_ad.make_dual(x, tangent)
        (gradient,) = torch.autograd.grad(layer(dual).square().sum(), dual, create_graph=True)
        y, along = forward_ad.unpack_dual(gradient)
    assert along is not None
    return y.detach(), along.detach()


EVALUATION = [
    *(jvp, jvp_of_parameters, vjp, grad, grad_of_parameters, hessian, vmap, vmap_of_parameters, gradients_of_each),
    *(dual_numbers, dual_numbers_backward),
]
TRAINING = [jvp, vjp, grad, grad_of_parameters, dual_numbers]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return randomised(LAYERS[request.param]())


def outcome(transform: Callable[[nn.Module, Tensor, Tensor], Any], layer: nn.Module, *arguments: Tensor) -> Any:
    """What the transform gives and the state it leaves; or what torch refuses."""
    torch.manual_seed(1)  # of stochastic depth
    try:
        return transform(layer, *arguments), {name: value.clone() for name, value in layer.state_dict().items()}
    except (RuntimeError, NotImplementedError) as error:
        return str(error)


@pytest.mark.parametrize(
    ("transform", "training"), [(of, False) for of in EVALUATION] + [(of, True) for of in TRAINING]
)
def test_a_transform_sees_torchs_own_modules(
    layer: nn.Module, transform: Callable[[nn.Module, Tensor, Tensor], Any], training: bool
) -> None:
    whole = len(list(layer.modules())) > 12
    x, tangent = (torch.randn((4, 3, 26, 26) if whole else (4, 8, 6, 6)).to(memory_format=LAST) for _ in range(2))
    layer.train(training)
    if training and transform is not dual_numbers:  # running statistics are changed, which torch.func refuses
        func.replace_all_batch_norm_modules_(layer)
    with using("reference"):
        expected = outcome(transform, copy.deepcopy(layer), x, tangent)
    with using("fused"):
        found = outcome(transform, copy.deepcopy(layer), x, tangent)
    if isinstance(expected, str):
        assert "Trying to use forward AD with aten::hardsigmoid_backward that does not support it" in expected
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
        assert any(value.any() for value in tree_leaves(found[0]))


@pytest.mark.parametrize("legacy", [True, False])
def test_backward_of_several_gradients_at_once(layer: nn.Module, legacy: bool) -> None:
    """The layer is called before vmap begins."""
    x = torch.randn((4, 3, 26, 26) if len(list(layer.modules())) > 12 else (4, 8, 6, 6)).to(memory_format=LAST)
    x.requires_grad_()
    found = []
    for kind in ("fused", "reference"):
        with using(kind):  # type: ignore[arg-type]
            y = layer.eval()(x)
        several = torch.stack([torch.ones_like(y), y.detach()])
        if legacy:
            found += torch.autograd.grad(y, x, several, is_grads_batched=True)
        else:
            found.append(func.vmap(lambda dy, y=y: torch.autograd.grad(y, x, dy)[0])(several))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "pointwise"])
def test_a_tangent_that_comes_to_backward_alone_is_refused(name: str) -> None:
    layer = LAYERS[name]()
    x = torch.randn((4, 3, 26, 26) if "network" in name else (4, 8, 6, 6)).to(memory_format=LAST).requires_grad_()
    y = layer(x)
    with forward_ad.dual_level(), pytest.raises(PynasError, match="backward of a fused operator: the gradient is a d"):
        torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


def test_a_folded_network_refuses_tangents() -> None:
    network = folded(build_network(architecture("relu")).eval())
    x = torch.randn(2, 3, 26, 26)
    with pytest.raises(PynasError, match="folded: images are dual numbers"):
        func.jvp(network, (x,), (x,))
    with forward_ad.dual_level():
        network(x)
        with pytest.raises(PynasError, match="folded: images are dual numbers"):
            network(forward_ad.make_dual(x, x))


def test_fused_operators_are_back_after_a_transform() -> None:
    with using("fused"):
        seen = []
        func.vmap(lambda x: seen.append(fused()) or x)(torch.ones(2))
        with forward_ad.dual_level():
            seen.append(fused())
        assert seen == [False, False]
        assert fused()


def test_the_compiler_traces_the_choice() -> None:
    layer = randomised(LAYERS["batch-norm"]().eval())
    x = torch.randn(4, 8, 6, 6).to(memory_format=LAST)

    def each(x: Tensor) -> Tensor:
        return func.vmap(lambda one: layer(one[None])[0])(x)

    for function in (layer, each):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x))
