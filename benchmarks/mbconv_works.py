"""What bench_mbconv.py times beside the seven blocks: each as {"eager": ..., "compiled": ..., "fused": ...}.

Every one compares its fused result with eager's before it is returned; "compiled" is there on a GPU alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pynas.nets.blocks import MBConv
from pynas.nets.load import load_model
from pynas.ops import mbconv_choice, using
from pynas.ops.inverted_residual import block_layers
from pynas.ops.mbconv import mbconv
from pynas.ops.reference_mbconv import Norm, NormBackward
from pynas.space.architecture import Block

Work = Callable[[], Any]
LAST = torch.channels_last
NEAR = 0.05  # relative difference of two ways of computing in bfloat16


class Fused(nn.Module):
    """A block by these steps, whatever pynas.nets would choose."""

    def __init__(self, network: MBConv, steps: Any) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, x: Tensor) -> Tensor:
        branch, norm, residual = self.network.parts()
        return mbconv(x, block_layers(branch, norm), residual, steps=self.steps)


def off_by(found: Tensor, expected: Tensor) -> float:
    """The relative difference."""
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()


def near(found: Tensor, expected: Tensor) -> None:
    off = off_by(found, expected)
    assert off < NEAR, f"off by {off:.3f}"


def check_gradients(network: nn.Module, exact: nn.Module, steps: dict[str, Callable[[], Any]]) -> None:
    """A fused step's gradients, all of them together, err at most twice as much as eager's, of those of `exact` in
    float32. One by one some are of nothing but rounding.
    """

    def gradients(of: nn.Module) -> Tensor:
        return torch.cat([value.grad.double().flatten() for value in of.parameters() if value.grad is not None])

    right, off = gradients(exact), {}
    for name, step in steps.items():
        step()
        off[name] = off_by(gradients(network), right)
    assert off["fused"] <= 2 * off["eager"] + NEAR, off


def compiled(function: Any, device: str) -> dict[str, Any]:
    return {"compiled": torch.compile(function, mode="max-autotune-no-cudagraphs")} if device == "cuda" else {}


def images(device: str, *sizes: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(sizes[1])
    return torch.randn(*sizes, generator=generator, device=device).bfloat16().contiguous(memory_format=LAST)


def depthwise_stage(
    n: int, channels: int, size: int, kernel: int, stride: int, device: str, steps: Any
) -> Iterator[tuple[str, dict[str, Work], int]]:
    """act(norm(x)), its depthwise convolution and the result's statistics; and what comes back from act(norm(y)) to x.

    The norms' statistics are given. Yields the direction, what is timed, and the bytes that the fused one moves.
    """
    x = images(device, n, channels, size, size)
    weight = torch.randn(channels, 1, kernel, kernel, device=device) / kernel
    ones, zeros = torch.ones(channels, device=device), torch.zeros(channels, device=device)
    norm = Norm(zeros, ones, ones, zeros, 1e-5, "hswish")

    def applied(x: Tensor) -> Tensor:
        return F.hardswish(F.batch_norm(x, zeros, ones, ones, zeros, eps=1e-5))

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        y = F.conv2d(applied(x), weight.bfloat16(), None, stride, kernel // 2, groups=channels)
        return y, *torch.var_mean(y, (0, 2, 3), correction=0)

    works: dict[str, Any] = {"eager": forward, **compiled(forward, device)}
    works["fused"] = lambda x: steps.depthwise(x, norm, weight, stride, kernel // 2, True)
    y = forward(x)[0]
    near(works["fused"](x)[0], y)
    moved = 2 * (x.numel() + y.numel())
    yield "forward", {name: (lambda work=work: work(x)) for name, work in works.items()}, moved
    d = images(device, *y.shape)
    given, leaf = weight.bfloat16().requires_grad_(), x.detach().requires_grad_()

    def backward(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        y = F.conv2d(applied(x), weight, None, stride, kernel // 2, groups=channels)
        return torch.autograd.grad(applied(y), (x, weight), d)

    def forward_alone(x: Tensor, weight: Tensor) -> Tensor:
        return applied(F.conv2d(applied(x), weight, None, stride, kernel // 2, groups=channels))

    after = NormBackward(norm, None, None, torch.zeros(2, channels, device=device), y.numel() // channels)

    def fused() -> tuple[Tensor, ...]:
        return steps.depthwise_backward(d, y, after, weight, x, norm, stride, kernel // 2)

    dx, dweight = backward(leaf, given)
    near(fused()[0], dx)  # the norm's scale is one
    near(fused()[1], dweight)
    # Backward alone, of a graph that is kept: what forward saved is there for all.
    works = {"eager": forward_alone, **compiled(forward_alone, device)}
    graphs = {name: work(leaf, given) for name, work in works.items()}
    timed: dict[str, Work] = {
        name: (lambda out=out: torch.autograd.grad(out, (leaf, given), d, retain_graph=True))
        for name, out in graphs.items()
    }
    yield "backward", {**timed, "fused": fused}, 2 * (2 * x.numel() + 2 * y.numel())


def split_attention(radix: int, n: int, device: str, steps: Any) -> Iterator[tuple[str, dict[str, Work]]]:
    """Training steps of blocks with Split-Attention, of shapes as FP-NAS has them."""
    for channels, size, kernel in ((24, 56, 3), (40, 28, 5), (112, 14, 5)):
        mid = channels * 4
        described = Block(0, "mbconv", kernel, 1, kernel // 2, channels, mid, channels, max(8, mid // 16 * 4 // 8 * 8),
                          "swish", size, size, 0, 0, 0, 0, radix)  # fmt: skip
        torch.manual_seed(0)
        network = MBConv(described).to(device, memory_format=LAST).train()  # type: ignore[call-overload]
        x, gradient = images(device, n, channels, size, size).requires_grad_(), images(device, n, channels, size, size)

        def step(forward: Any, x: Tensor = x, gradient: Tensor = gradient, network: nn.Module = network) -> Tensor:
            for value in (x, *network.parameters()):
                value.grad = None
            with torch.autocast(x.device.type, torch.bfloat16):
                y = forward(x)
            y.backward(gradient)
            return y

        def plain(x: Tensor, network: nn.Module = network) -> Tensor:
            with using("reference"):
                return network(x)

        forwards = {"eager": plain, **compiled(plain, device), "fused": Fused(network, steps)}
        near(step(forwards["fused"]), step(plain))
        few, some, exact = x[:8].detach().requires_grad_(), gradient[:8], copy.deepcopy(network)
        with using("reference"):
            exact(few.float()).backward(some.float())
        peers = {n: (lambda f=forwards[n], s=step, x=few, g=some: s(f, x, g)) for n in ("eager", "fused")}
        check_gradients(network, exact, peers)
        works: dict[str, Work] = {name: (lambda f=forward, s=step: s(f)) for name, forward in forwards.items()}
        yield f"{channels}@{size} k{kernel}", works


def fbnetv3_g(n: int, device: str, steps: Any) -> dict[str, Work]:
    """A training step of FBNetV3-G at its resolution: forward, cross entropy, backward."""
    network = load_model("fbnetv3_g", dropout=0.0, stochastic_depth=0.0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # those before a sum begin with zeros, which hide their branch
            nn.init.ones_(module.weight)
    network = network.to(device, memory_format=LAST).train()  # type: ignore[call-overload]
    size = 320 if device == "cuda" else 96
    x = images(device, n, 3, size, size)
    labels = torch.zeros(n, dtype=torch.long, device=device)

    def step(forward: Any, kind: Any) -> Tensor:
        network.zero_grad()
        with torch.autocast(device, torch.bfloat16), using(kind):
            loss = F.cross_entropy(forward(x), labels)
        loss.backward()
        return loss

    def fused() -> Tensor:
        before = mbconv_choice.steps_for
        mbconv_choice.steps_for = lambda x: steps
        try:
            return step(network, "fused")
        finally:
            mbconv_choice.steps_for = before

    works: dict[str, Work] = {"eager": lambda: step(network, "reference"), "fused": fused}
    for name, forward in compiled(network, device).items():
        works[name] = lambda forward=forward: step(forward, "reference")
    near(fused().detach(), step(network, "reference").detach())
    exact = copy.deepcopy(network).float()
    exact.zero_grad()
    with using("reference"):
        F.cross_entropy(exact(x.float()), labels).backward()
    check_gradients(network, exact, {"eager": works["eager"], "fused": works["fused"]})
    return works
