"""Networks with fused operators: the same answers, gradients, statistics, states and hooks as layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pynas.nets.build import build_network
from pynas.nets.resnet import resnet18
from pynas.ops import available, rules, using
from pynas.space.architecture import Architecture, Recipe, Row

pytestmark = [
    pytest.mark.usefixtures("unruled"),
    pytest.mark.skipif(not available(), reason="libpynas_ops.so is not built here"),
]

LAST = torch.channels_last


def architecture(act: str, se: object = True) -> Architecture:
    rows = (
        Row("conv", (3, 3), None, 16, 1, 2, False, act),
        Row("mbconv", (3, 3), (1.0, 1.0), 16, 1, 1, False, act),
        Row("mbconv", (5, 5), (4.0, 4.0), 24, 2, 2, se, act),
        Row("mbconv", (3, 3), (3.0, 3.0), 40, 2, 2, se, act),
        Row("skip", None, None, 48, 1, 1, False, act),
        Row("mbpool", None, (4.0, 4.0), 64, 1, 1, False, act),
        Row("fc", None, None, 10, 1, 1, False, ""),
    )
    return Architecture(rows, 26)


def step(network: nn.Module, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, gradients and buffers of a training step, and then logits in evaluation, of a copy in `dtype`."""
    one = copy.deepcopy(network).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 26, 26, generator=generator).to(dtype).contiguous(memory_format=LAST).requires_grad_()
    with using(kind):  # type: ignore[arg-type]
        torch.manual_seed(2)  # of stochastic depth and dropout
        logits = one(x)
        logits.square().sum().backward()
        found = {"logits": logits.detach(), "x": x.grad}
        found |= {f"gradient of {name}": p.grad for name, p in one.named_parameters()}
        found |= dict(one.named_buffers())
        with torch.no_grad():
            found["evaluated"] = one.eval()(x)
    return {name: tensor.double() for name, tensor in found.items() if tensor is not None}


def randomised(network: nn.Module) -> nn.Module:
    """Batch-norms that are not the identity: those before a sum start at zero, which hides their branch."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return network.to(memory_format=LAST)  # type: ignore[call-overload]


NETWORKS = {
    "hswish": lambda: build_network(architecture("hswish")),
    "swish": lambda: build_network(architecture("swish")),
    "relu, Split-Attention": lambda: build_network(architecture("relu", 2)),
    "resnet": lambda: resnet18(classes=10, stochastic_depth=0.3, dropout=0.2),
}


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_as_exact_as_torchs_own(name: str, measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fused kernels wherever there are some, and with those that the rules choose."""
    monkeypatch.setattr(rules, "MEASURED", measured)
    network = randomised(NETWORKS[name]())
    exact = step(network, "reference", torch.float64)
    stock, ours = (step(network, kind, torch.float32) for kind in ("reference", "fused"))
    assert ours.keys() == stock.keys() == exact.keys()
    for key, value in exact.items():
        scale = value.norm() + 1e-3
        error, its = ((found[key] - value).norm() / scale for found in (ours, stock))
        assert error <= max(3.0 * its, 1e-5), key


def test_stochastic_depth_draws_the_same() -> None:
    recipe = Recipe(lr=0.1, optimizer="SGD", ema=False, dropout=0.0, stochastic_depth=0.5, mixup=0.0, weight_decay=0.0)
    network = randomised(build_network(architecture("relu"), recipe))
    ours, stock = (step(network, kind, torch.float64) for kind in ("fused", "reference"))
    for key, value in stock.items():
        torch.testing.assert_close(ours[key], value, msg=key)


def test_every_hook_is_called_and_nothing_else_changes() -> None:
    network = randomised(NETWORKS["hswish"]())
    x = torch.randn(2, 3, 26, 26).contiguous(memory_format=LAST)
    network.eval()
    with using("reference"):
        expected = network(x)
    called: set[str] = set()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with using("fused"):
        torch.testing.assert_close(network(x), expected)
    leaves = {name for name, module in network.named_modules() if not list(module.children())}
    assert called >= leaves - {name for name in leaves if name.endswith("drop")}  # identities in evaluation


def test_what_is_not_its_class_alone_is_called() -> None:
    """A `forward` of a layer's own, as wrappers set it, and hooks of all modules."""
    network = randomised(NETWORKS["relu, Split-Attention"]()).eval()
    x = torch.randn(2, 3, 26, 26).contiguous(memory_format=LAST)
    called: list[type[nn.Module]] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x, old=module.forward: old(x) + 1.0  # type: ignore[method-assign]
    with using("reference"):
        expected = network(x)
    with using("fused"):
        torch.testing.assert_close(network(x), expected)
    plain = NETWORKS["relu, Split-Attention"]().eval()
    with using("fused"), nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(type(m))):
        plain(x)
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU):
        assert called.count(kind) == [type(module) for module in plain.modules()].count(kind)
