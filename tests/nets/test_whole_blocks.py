"""Networks whose blocks are computed whole, as on a GPU, by the plan in plain torch; and what decides that they are."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from net_examples import varied
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pynas.nets.blocks import MBConv
from pynas.nets.build import build_network
from pynas.nets.load import load_model
from pynas.ops import library, mbconv_choice, reference_mbconv, using
from pynas.ops.inverted_residual import block_layers
from pynas.ops.sync_batch_norm import convert_sync_batchnorm
from pynas.space.architecture import Recipe

LAST = torch.channels_last


RECIPE = Recipe(lr=0.1, optimizer="sgd", ema=False, mixup=0.0, weight_decay=0.0, dropout=0.2, stochastic_depth=0.5)


class Counted:
    """Steps, and how many blocks they have computed."""

    def __init__(self) -> None:
        self.blocks = 0

    def steps_for(self, x: Tensor) -> Any:
        def counted(name: str) -> Any:
            def called(*given: Any) -> Any:
                self.blocks += 1
                return getattr(reference_mbconv, name)(*given)

            return called

        once = {name: counted(name) for name in ("depthwise", "depthwise_applied")}
        return SimpleNamespace(**{**vars(reference_mbconv), **once})


def step(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits, gradients and buffers of a training step, then logits in evaluation."""
    network, x = copy.deepcopy(network).train(), x.clone().requires_grad_()
    torch.manual_seed(2)  # of stochastic depth and dropout
    logits = network(x)
    logits.square().sum().backward()
    with torch.no_grad():
        evaluated = network.eval()(x)
    found = [logits.detach(), evaluated, x.grad, *(value.grad for value in network.parameters()), *network.buffers()]
    return [value.double() for value in found if value is not None]


def check(network: nn.Module, size: int, channels: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # those before a sum start at zero, which hides their branch
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    network.double().to(memory_format=LAST)  # type: ignore[call-overload]
    x = torch.randn(4, channels, size, size, generator=generator, dtype=torch.float64).contiguous(memory_format=LAST)
    with using("reference"):
        expected = step(network, x)
    counted = Counted()
    monkeypatch.setattr(mbconv_choice, "steps_for", counted.steps_for)
    found = step(network, x)
    assert counted.blocks == 2 * blocks  # in training, then in evaluation
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6 * max(1.0, right.abs().max().item()))


@pytest.mark.parametrize("name", [f"fbnetv3_{letter}" for letter in "abcdefg"])
def test_fbnetv3_trains_and_infers_as_layer_by_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_model(name, resolution=96, classes=10, dropout=0.2, stochastic_depth=0.3)
    every = [block for block in network.modules() if isinstance(block, MBConv)]
    check(network, 96, 3, len(every), monkeypatch)


@pytest.mark.parametrize("splits", [2, 4])
def test_split_attention_trains_and_infers_as_layer_by_layer(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(varied("swish", splits), RECIPE)
    every = [block for block in network.modules() if isinstance(block, MBConv)]
    check(network, 19, 1, sum(conv_fits(block) for block in every), monkeypatch)


def conv_fits(block: MBConv) -> bool:
    """Whether channels are whole vectors."""
    convs = [layer for layer in block.branch if isinstance(layer, nn.Conv2d)]
    depthwise = next(conv for conv in convs if conv.groups > 1)
    channels = (convs[0].in_channels, depthwise.in_channels, convs[-1].out_channels)
    return all(count % 4 == 0 for count in channels)


def test_hooks_and_other_layouts_are_computed_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_model("fbnetv3_a", resolution=128, classes=10).eval()
    counted = Counted()
    monkeypatch.setattr(mbconv_choice, "steps_for", counted.steps_for)
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    network(x)
    assert counted.blocks == 0
    seen: list[Any] = []
    first = next(block for block in network.modules() if isinstance(block, MBConv))
    hook = first.branch[0].register_forward_hook(lambda *_: seen.append(1))
    x = x.contiguous(memory_format=LAST)
    network(x)
    every = counted.blocks
    assert seen == [1]
    hook.remove()
    network(x)
    assert counted.blocks == 2 * every + 1
    conv = first.branch[0]
    odd = torch.empty(conv.weight.numel() + 1)[1:].view_as(conv.weight).copy_(conv.weight)
    conv.weight = nn.Parameter(odd)  # kernels read 16 bytes at once
    network(x)
    assert counted.blocks == 3 * every + 1


# --- the trial that kernels have to pass on a GPU ---


@pytest.mark.parametrize("dtype", mbconv_choice.DTYPES)
def test_right_steps_pass_the_trial_and_wrong_ones_do_not(dtype: torch.dtype) -> None:
    cpu, before = torch.device("cpu"), torch.random.get_rng_state()
    assert mbconv_choice.trial(reference_mbconv, cpu, dtype) == ""
    assert torch.equal(torch.random.get_rng_state(), before)

    def with_wrong(name: str, wrong: Any) -> Any:
        return SimpleNamespace(**{**vars(reference_mbconv), name: wrong})

    def off(*given: Any) -> Any:
        dz, dweight, sums = reference_mbconv.depthwise_backward(*given)
        return dz, dweight * 1.1, sums

    def failing(*_: Any) -> Any:
        raise RuntimeError("pynas::mbconv_expand: no kernel image\nmore")

    with torch.no_grad():
        assert "were off by" in mbconv_choice.trial(with_wrong("depthwise_backward", off), cpu, dtype)
        found = mbconv_choice.trial(with_wrong("expand", failing), cpu, dtype)
    assert found == f"failed on cpu in {dtype}: pynas::mbconv_expand: no kernel image"


def test_what_a_trial_said_is_a_constant_of_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbconv_choice, "_found", {(0, torch.float32): True})
    asked = torch.compile(lambda x: x + mbconv_choice._trusted(0, torch.float32), backend="eager", fullgraph=True)
    assert asked(torch.zeros(1)) == 1


def test_a_trial_is_nothing_to_whom_it_comes_in_between() -> None:
    seen: list[Any] = []

    def pack(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)  # as checkpointing sets some
    with hooks, torch.device("meta"), FakeTensorMode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert mbconv_choice.trial(reference_mbconv, torch.device("cpu"), torch.float32) == ""
    assert not seen


def test_kernels_that_one_rank_refuses_are_used_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbconv_choice, "_found", dict.fromkeys(((0, dtype) for dtype in mbconv_choice.DTYPES), True))
    other = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    reducer: Any = SimpleNamespace(all_reduce=lambda tensor: tensor.add_(other))
    mbconv_choice._agree(0, torch.device("cpu"), reducer)
    assert [mbconv_choice._found[0, dtype] for dtype in mbconv_choice.DTYPES] == [True, False, True]


def test_a_rank_without_images_meets_the_others_between_the_steps() -> None:
    network = load_model("fbnetv3_a", resolution=128, classes=10)
    x = torch.empty(0, 3, 32, 32).contiguous(memory_format=LAST)
    reducer: Any = SimpleNamespace(size=2, all_reduce=lambda _: None)
    for shared in (False, True):
        for block in network.modules():
            if isinstance(block, MBConv):
                branch, norm, residual = block.parts()
                layers = block_layers(branch, norm)
                of = (layers.expand or layers.depthwise).in_channels
                empty = x.new_empty(0, of, 32, 32).contiguous(memory_format=LAST)
                assert mbconv_choice.takes(empty, layers, residual) == shared
        network = convert_sync_batchnorm(network, reducer)


def test_images_of_other_channels_are_refused_as_torch_refuses_them() -> None:
    network = load_model("fbnetv3_g", resolution=128, classes=10)
    block = next(block for block in network.modules() if isinstance(block, MBConv))
    x = torch.randn(1, 16, 9, 9).contiguous(memory_format=LAST)
    with pytest.raises(RuntimeError, match=r"expected input.* to have 32 channels, but got 16"):
        block(x)


def test_what_a_trial_says_is_told_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbconv_choice, "_found", {})
    monkeypatch.setattr(library, "has_gpu_kernels", lambda _: True)
    monkeypatch.setattr(mbconv_choice, "trial", lambda *_: "were off by 1")
    with pytest.warns(UserWarning, match="blocks are computed layer by layer: the fused kernels were off by 1"):
        assert not mbconv_choice._tried(0, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not mbconv_choice._tried(0, torch.float32)
