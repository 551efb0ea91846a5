"""Networks folded for inference: the same answers as layer by layer, and the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from test_fused import LAST, architecture, randomised
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.nets.build import Network, build_network
from pynas.nets.inference import FoldedConv, folded, for_inference
from pynas.nets.resnet import resnet18
from pynas.ops import available, using
from pynas.ops.sync_batch_norm import SyncBatchNorm

needs_library = pytest.mark.skipif(not available(), reason="libpynas_ops.so is not built here")


def trained(network: nn.Module) -> nn.Module:
    """In evaluation mode, with batch-norms whose statistics and weights are not the identity's."""
    with torch.no_grad():
        randomised(network).train()(images(8))
    return network.eval()


def images(n: int, size: int = 26) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)


def small(act: str = "hswish", se: object = True) -> Network:
    return build_network(architecture(act, se))


@torch.no_grad()
def checked(network: nn.Module, quick: nn.Module, x: Tensor) -> None:
    """Errors against float64 at most three times those layer by layer: folding rounds each weight once more.

    Some twenty roundings of 6e-8 make 3e-7, which layer by layer may by chance be far less.
    """
    with using("reference"):
        exact = copy.deepcopy(network).double()(x.double())
        eager = (network(x) - exact).norm().item()
    found = (quick(x) - exact).norm().item()
    assert found <= 3 * max(eager, 3e-7 * exact.norm().item())


@pytest.mark.parametrize("act", ["hswish", "relu", "swish"])
@pytest.mark.parametrize("se", [False, True, 2, 4], ids=["plain", "se", "sa2", "sa4"])
def test_answers_are_those_of_the_layers(act: str, se: object) -> None:
    network = trained(small(act, se))
    quick = folded(network)
    for n in (5, 1, 0, 7):  # weights are packed for the first
        checked(network, quick, images(n))
    checked(network, quick, images(2, 33))


def test_every_convolution_and_batch_norm_is_folded() -> None:
    network = trained(small(se=False))
    found = [type(module) for module in folded(network).modules()]
    assert not {nn.Conv2d, nn.BatchNorm2d, nn.Hardswish} & set(found)
    assert found.count(FoldedConv) == [type(module) for module in network.modules()].count(nn.Conv2d)


def test_a_resnet_whose_activation_follows_the_sum() -> None:
    network = trained(resnet18(classes=10))
    checked(network, folded(network), images(3, 64))


def test_images_with_channels_first() -> None:
    network = trained(small())
    checked(network, folded(network), images(3).contiguous())


def test_the_network_stays_what_it_was_and_trains_on() -> None:
    network = trained(small())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick = folded(network)
    with torch.no_grad():
        first = quick(images(2)).clone()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.train()(images(4)).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0.0
    assert not torch.allclose(folded(network.eval())(images(2)), first)


class Odd(nn.Module):
    """Convolutions that are called twice, whose sums are broadcast, whose names differ by a dot alone, with a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norms = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.wide, self.one = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 1, 1)
        self.a, self.a_b = nn.ModuleDict({"b": nn.Conv2d(8, 8, 1)}), nn.Conv2d(8, 8, 1)
        self.heard = nn.Conv2d(8, 8, 1)
        self.heard.register_forward_hook(lambda module, given, y: y + 1)
        self.relu, self.scale = nn.ReLU(), nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.twice(x)) + self.norms[1](self.twice(x)).relu()
        y = self.relu(self.twice(y)) + torch.sigmoid(self.twice(input=y))
        y = self.wide(y) + self.one(x)
        y = self.a["b"](y) + self.a_b(y) + (self.heard(y) + self.scale)
        return self.wide(x) + self.scale + y


def test_what_has_its_own_ways_stays_right() -> None:
    torch.manual_seed(0)
    network = trained(Odd())
    checked(network, folded(network), images(3))
    copied = copy.deepcopy(folded(network))
    with torch.no_grad():
        expected = folded(network)(images(2))
        assert torch.equal(copied(images(2)), expected)
        assert torch.equal(copy.deepcopy(copied)(images(2)), expected)  # after weights have been packed


@pytest.mark.parametrize("act", ["hswish", "relu", "swish"])
def test_nan_comes_through(act: str) -> None:
    network = trained(small(act))
    x = images(2)
    x[1, 0, 5, 5] = float("nan")
    with torch.no_grad():
        found = folded(network)(x)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_images_that_need_gradients_are_refused() -> None:
    quick = folded(trained(small()))
    with pytest.raises(PynasError, match=r"images need gradients, allowed are those that do not, or torch.no_grad\(\)"):
        quick(images(2).requires_grad_())


def test_statistics_of_several_ranks_are_folded_too() -> None:
    network = trained(small())
    ranks = copy.deepcopy(network)
    for module in list(ranks.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                norm = SyncBatchNorm(child.num_features)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm.eval())
    with torch.no_grad():
        assert torch.equal(folded(ranks)(images(3)), folded(network)(images(3)))


def test_what_cannot_be_folded_says_why() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(PynasError, match="the network is in training mode, allowed is evaluation mode"):
        folded(small().train())
    one_trains = small().eval()
    one_trains.blocks[1].norm.train()  # type: ignore[union-attr]
    with pytest.raises(PynasError, match=r"its layer blocks.1.norm is in training mode"):
        folded(one_trains)
    with pytest.raises(PynasError, match="the network is of meta float32, allowed is cpu float32"):
        folded(small().eval().to("meta"))
    with pytest.raises(PynasError, match="the network is of cpu bfloat16, allowed is cpu float32"):
        folded(small().eval().bfloat16())
    with pytest.raises(PynasError, match=r"got str, allowed is an nn\.Module"):
        folded("resnet18")  # type: ignore[arg-type]
    with pytest.raises(PynasError, match="Branching cannot be traced: symbolically traced variables"):
        folded(Branching().eval())


def test_images_that_a_convolution_cannot_take_are_refused_with_what_is_allowed() -> None:
    quick = folded(trained(small()))
    for wrong, message in (
        (torch.randn(2, 4, 26, 26), r"images of shape \(2, 4, 26, 26\), allowed is \(N, 3, H, W\)"),
        (torch.randn(3, 26, 26), r"images of shape \(3, 26, 26\), allowed is \(N, 3, H, W\)"),
        (images(2).to("meta"), "images on meta, allowed is cpu"),
        (images(2).double(), "images of float64, allowed is float32"),
        (images(2).bfloat16(), "images of bfloat16, allowed is float32"),
        ("cat.jpg", "got str, allowed is a tensor"),
    ):
        with pytest.raises(PynasError, match=message):
            quick(wrong)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert quick(images(2).bfloat16()).isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("called_before", [False, True])
def test_it_compiles_in_one_graph(called_before: bool) -> None:
    for network, x in ((trained(small()), images(2)), (trained(resnet18(classes=10)), images(2, 64))):
        quick = folded(network)
        with torch.no_grad():
            if called_before:
                quick(x)
            found = torch.compile(quick, fullgraph=True, backend="aot_eager")(x)
            torch.testing.assert_close(found, quick(x), rtol=1e-3, atol=1e-4)
            torch._dynamo.reset()


@needs_library
def test_only_networks_of_pynas_that_nobody_listens_to_are_folded_by_themselves() -> None:
    network = trained(small())
    with using("fused"):
        assert for_inference(network) is not network
        other = resnet18().eval()
        assert for_inference(other) is other
        hook = network.blocks[1].norm.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
        assert for_inference(network) is network
        hook.remove()
    with using("reference"):
        assert for_inference(network) is network


class InPlace(nn.Module):
    """A convolution, batch-norm, a second convolution; between them an operation in place."""

    def __init__(self, where: str, change: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Hardtanh(-0.1, 0.1, inplace=True)
        self.where, self.change = where, change

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        h = self.first(x)
        self.changed("input", x)
        self.changed("made", h)
        y = self.norm(h)
        self.changed("late input", x)
        self.changed("normed", y)
        z = self.second(y)
        self.changed("read", y)
        return z + y + x

    def changed(self, where: str, x: Tensor) -> None:
        if where == self.where:
            self.change(self, x)


def increased(_: nn.Module, x: Tensor) -> None:
    other = x
    other += 1.0


CHANGES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "relu_": lambda _, x: x.relu_(),
    "functional": lambda _, x: nn.functional.relu(x, inplace=True),
    "functional_": lambda _, x: nn.functional.relu_(x),
    "module": lambda network, x: network.relu(x),
    "hardtanh": lambda network, x: network.drop(x),
    "add_": lambda _, x: x.add_(1),
    "view": lambda _, x: x[:, :1].mul_(3),
    "out": lambda _, x: torch.mul(x, 3, out=x),
    "aten": lambda _, x: torch.ops.aten.mul_.Scalar(x, 3),
    "packet": lambda _, x: torch.ops.aten.mul_(x, 3),
    "+=": increased,
}


@pytest.mark.parametrize("where", ["input", "made", "late input", "normed", "read"])
@pytest.mark.parametrize("change", CHANGES)
def test_operations_in_place_stay_where_they_are(where: str, change: str) -> None:
    torch.manual_seed(0)
    network = InPlace(where, CHANGES[change])
    with torch.no_grad():
        randomised(network).eval()
    checked(network, folded(network), images(3))


def test_weights_that_forward_changes_are_not_folded() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.conv.weight.mul_(2)
            return self.norm(self.conv(x))

    network = Growing().eval()
    expected = copy.deepcopy(network)
    quick = folded(network)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(quick(images(2)), expected(images(2)))


def test_activations_in_place_and_sums_in_place_still_fold() -> None:
    class Block(nn.Module):
        """As timm's and torchvision's are."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 1)
            self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.act, self.relu = nn.Hardswish(inplace=True), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
            y += self.relu(self.bn3(self.conv3(x)))
            return self.relu(y)

    network = trained(Block())
    quick = folded(network)
    checked(network, quick, images(3))
    kinds = [type(module) for module in quick.modules()]
    assert kinds.count(FoldedConv) == 3
    assert not {nn.Conv2d, nn.BatchNorm2d, nn.Hardswish} & set(kinds)
