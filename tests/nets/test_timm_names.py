"""Names of timm: every tensor of the real models has its place, both ways, and nothing is computed otherwise.

``tests/golden/timm_fbnetv3_*.json`` hold name -> shape of timm 1.0.31's models, written from the real ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from net_examples import small
from torch import Tensor, nn
from torch.nn import functional as F

from pynas.errors import PynasError
from pynas.nets.load import load_model, read_model
from pynas.nets.timm_names import from_timm, to_timm
from pynas.space.architecture import Architecture

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden"
PARAMETERS = {"b": 8_598_464, "d": 10_306_272, "g": 16_623_888}


def timm_state(letter: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dictionary of the right names and shapes, with values that keep the network's outputs of order one."""
    shapes = json.loads((GOLDEN / f"timm_fbnetv3_{letter}.json").read_text())
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(9)
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=generator, dtype=dtype) / math.sqrt(math.prod(shape[1:]))
        else:
            low = 0.5 if name.endswith(("weight", "running_var")) else -0.5
            state[name] = torch.rand(shape, generator=generator, dtype=dtype) + low
    return state


def architecture(letter: str) -> Architecture:
    return read_model(f"fbnetv3_{letter}", padding="same").architecture


@pytest.mark.parametrize("letter", PARAMETERS)
def test_every_tensor_has_its_place(letter: str) -> None:
    theirs = timm_state(letter)
    tensors = [value for name, value in theirs.items() if "running" not in name and "tracked" not in name]
    assert sum(value.numel() for value in tensors) == PARAMETERS[letter]
    network = load_model(f"fbnetv3_{letter}", padding="same")
    ours = from_timm(theirs, architecture(letter))
    network.load_state_dict(ours)
    assert not network.blocks[0].conv.bias.any()
    back = to_timm(network.state_dict(), architecture(letter))
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(back[name], value), name


def test_no_two_tensors_are_swapped() -> None:
    """timm's forward pass, written out from its names alone, against our network; in float64, to 1e-10 of the largest.

    The first tensors move random networks' outputs by little; this tells that little from rounding.
    """
    state = timm_state("b", torch.float64)
    network = load_model("fbnetv3_b", padding="same").double().eval()
    network.load_state_dict(from_timm(state, architecture("b")))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.inference_mode():
        expected = written_out(state, x)
        assert expected.std() > 0.1
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def written_out(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """timm's fbnetv3_b; strides by stage: 1, 2, 2, 2, 1, 2 in the first block."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = len(weight) if weight.shape[1] == 1 else 1
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2, 1, groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{t}"] for t in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    x = F.hardswish(norm(conv(x, "conv_stem", 2), "bn1"))
    names = dict.fromkeys(
        tuple(name.split(".")[1:3]) for name in state if name.startswith("blocks.") and "6.0" not in name
    )
    for stage, block in names:
        path = f"blocks.{stage}.{block}"
        stride = 2 if block == "0" and stage in "1235" else 1
        y = x
        if f"{path}.conv_pwl.weight" in state:
            y = F.hardswish(norm(conv(y, f"{path}.conv_pw"), f"{path}.bn1"))
            y = F.hardswish(norm(conv(y, f"{path}.conv_dw", stride), f"{path}.bn2"))
            if f"{path}.se.conv_reduce.weight" in state:
                gate = F.hardswish(conv(y.mean((2, 3), keepdim=True), f"{path}.se.conv_reduce"))
                y = y * F.hardsigmoid(conv(gate, f"{path}.se.conv_expand"))
            y = norm(conv(y, f"{path}.conv_pwl"), f"{path}.bn3")
        else:
            y = F.hardswish(norm(conv(y, f"{path}.conv_dw"), f"{path}.bn1"))
            y = norm(conv(y, f"{path}.conv_pw"), f"{path}.bn2")
        x = x + y if x.shape == y.shape else y
    x = F.hardswish(norm(conv(x, "blocks.6.0.conv"), "blocks.6.0.bn1"))
    x = F.hardswish(conv(x.mean((2, 3), keepdim=True), "conv_head"))
    return F.linear(x.flatten(1), state["classifier.weight"], state["classifier.bias"])


def test_a_bias_in_the_stem_goes_into_the_batch_norm() -> None:
    network = load_model("fbnetv3_b", padding="same").double().eval()
    network.load_state_dict(from_timm(timm_state("b", torch.float64), architecture("b")))
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.inference_mode():
        without = network(x)
        nn.init.normal_(network.blocks[0].conv.bias, generator=torch.Generator().manual_seed(3))
        expected = network(x)
        network.load_state_dict(from_timm(to_timm(network.state_dict(), architecture("b")), architecture("b")))
        assert not network.blocks[0].conv.bias.any()
        scale = expected.abs().max().item()
        assert (expected - without).abs().max() > 1e-5 * scale
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10 * scale)


def test_an_architecture_without_that_bias_needs_no_fold() -> None:
    plain = architecture("b").with_(stem_bias=False)
    ours = from_timm(timm_state("b"), plain)
    assert "blocks.0.conv.bias" not in ours
    assert to_timm(ours, plain).keys() == timm_state("b").keys()


def test_errors_name_the_first_few() -> None:
    state = timm_state("b")
    with pytest.raises(PynasError, match=r"from_timm: .*lacks conv_stem.weight, bn1.weight, bn1.bias and 594 more"):
        from_timm({}, architecture("b"))
    with pytest.raises(PynasError, match=r"from_timm: .*unknown conv_stem.bias"):
        from_timm(state | {"conv_stem.bias": torch.zeros(16)}, architecture("b"))
    with pytest.raises(PynasError, match=r"from_timm: .*lacks blocks\."):
        from_timm(state, architecture("d"))
    classes = read_model("fbnetv3_b", classes=7).architecture
    with pytest.raises(PynasError, match=r"classifier.weight of shape \(1000, 1984\), the model's \(7, 1984\)"):
        from_timm(state, classes)
    with pytest.raises(PynasError, match=r"to_timm: .*lacks blocks.0.conv.weight"):
        to_timm(state, architecture("b"))
    with pytest.raises(PynasError, match="timm has no names for a network of conv, mbconv, mbconv, mbpool, fc"):
        from_timm(state, small())
