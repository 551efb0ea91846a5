"""`fuse(model)`: the inverted residual blocks of timm's and torchvision's networks, computed by fused operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops.gate import Gated, GateLayers
from pynas.ops.inverted_residual import InvertedResidual, block_layers
from pynas.ops.reference_batch_norm import GATES
from pynas.ops.sequence import ACTIVATION_NAMES


class Fused(NamedTuple):
    """What `fuse` did: names of modules, and why the others stay what they are."""

    replaced: list[str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} blocks fused, {len(self.left)} left"]
        return "\n".join(lines + [f"  {name or 'the model'}: {why}" for name, why in self.left.items()])


def fuse(model: nn.Module) -> Fused:
    """Have the inverted residual blocks of `model` computed by fused operators; says which, and why not the others.

    Blocks of timm's EfficientNet, MobileNetV3, FBNetV3 and their like (`InvertedResidual`, `DepthwiseSeparableConv`)
    and of torchvision's MobileNetV2, V3 and EfficientNet. They stay the objects that they are, with their parameters,
    buffers, names and hooks, so optimizers, state dicts and checkpoints do not notice: only their class changes, and
    that of their norms and gates. Outputs and gradients are the same but for rounding; in training they draw the same
    stochastic depth.

    The model should be in channels_last: `model.to(memory_format=torch.channels_last)`. What kernels there are not for
    (a dtype, a device, a number of channels) is computed layer by layer, as `pynas.nets` does.

    Raises PynasError for what is no module. Modules that occur several times are named once.
    """
    if not isinstance(model, nn.Module):
        raise PynasError(f"fuse: got {type(model).__name__}, allowed is an nn.Module")
    found = Fused([], {})
    for name, module in model.named_modules():
        kind = _FAMILIES.get(_origin(module))
        if kind is None:
            if _origin(module) in _OTHERS:
                found.left[name] = _OTHERS[_origin(module)]
            continue
        try:
            _convert(module, kind)
        except PynasError as why:
            found.left[name] = str(why)
        else:
            found.replaced.append(name)
    return found


def _origin(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _convert(module: nn.Module, kind: type[_Foreign]) -> None:
    """Change the classes of a block, its norms and its gate; of none of them where one cannot be."""
    changed = [(module, type(module))]
    try:
        for inner in module.modules():
            new = _PARTS.get(_origin(inner))
            if new is not None:
                changed.append((inner, type(inner)))
                inner.__class__ = new(inner)
        module.__class__ = kind
        assert isinstance(module, _Foreign)
        for other in (one for one in module.modules() if "forward" in one.__dict__):
            raise PynasError(f"{type(other).__name__} has a forward of its own")
        module.check()
        block_layers(*module.parts()[:2])
    except (PynasError, AttributeError) as error:
        for inner, before in changed:
            inner.__class__ = before
        raise PynasError(str(error)) from error


# --- parts of blocks ---


class _Squeeze(Gated):
    """A squeeze-and-excite of others: two 1x1 convolutions of means over pixels."""

    def gate_layers(self) -> GateLayers | None:
        reduce, act, expand, gate = self.gate_parts()
        name = ACTIVATION_NAMES.get(type(act))
        function = _GATES.get(type(gate)) or _GATE_NAMES.get(type(gate).__name__)
        return None if name is None or function is None else GateLayers(reduce, name, expand, function)

    def gate_parts(self) -> tuple[nn.Conv2d, nn.Module, nn.Conv2d, nn.Module]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        reduce, act, expand, gate = self.gate_parts()
        return x * gate(expand(act(reduce(x.mean((2, 3), keepdim=True)))))


class TimmSqueezeExcite(_Squeeze):
    def gate_parts(self) -> tuple[nn.Conv2d, nn.Module, nn.Conv2d, nn.Module]:
        return self.conv_reduce, self.act1, self.conv_expand, self.gate  # type: ignore[return-value]


class TorchvisionSqueezeExcitation(_Squeeze):
    def gate_parts(self) -> tuple[nn.Conv2d, nn.Module, nn.Conv2d, nn.Module]:
        return self.fc1, self.activation, self.fc2, self.scale_activation  # type: ignore[return-value]


_GATES: dict[type[nn.Module], str] = {nn.Hardsigmoid: "hsigmoid", nn.Sigmoid: "sigmoid"}
_GATE_NAMES = {"HardSigmoid": "hsigmoid", "Sigmoid": "sigmoid"}  # timm's own
assert set(_GATES.values()) == set(GATES)


def _plain_norm(norm: nn.Module) -> type[nn.Module]:
    """timm's norm and activation in one: the norm alone, whose activation the block calls."""
    if not isinstance(getattr(norm, "drop", None), nn.Identity):
        raise PynasError(f"{type(norm).__name__} with {type(norm.drop).__name__}; allowed: without dropout")
    return nn.BatchNorm2d


_PARTS: dict[str, Callable[[nn.Module], type[nn.Module]]] = {
    "timm.layers.norm_act.BatchNormAct2d": _plain_norm,
    "timm.models._efficientnet_blocks.SqueezeExcite": lambda _: TimmSqueezeExcite,
    "torchvision.ops.misc.SqueezeExcitation": lambda _: TorchvisionSqueezeExcitation,
}


# --- blocks ---


class _Foreign(InvertedResidual):
    def check(self) -> None:
        """Raises PynasError for what `parts` leaves out and is not nothing."""


class _Timm(_Foreign):
    def check(self) -> None:
        if self.conv_s2d is not None:
            raise PynasError("space to depth before the block")
        if not isinstance(self.aa, nn.Identity):
            raise PynasError(f"anti-aliasing {type(self.aa).__name__} after the depthwise convolution")
        if not isinstance(self.drop_path, nn.Identity) and type(self.drop_path).__name__ != "DropPath":
            raise PynasError(f"{type(self.drop_path).__name__}; allowed: DropPath")

    def kept(self, x: Tensor) -> Tensor | None:
        drop: Any = self.drop_path
        return None if isinstance(drop, nn.Identity) else _kept(x, drop, drop.drop_prob, drop.scale_by_keep)


class TimmInvertedResidual(_Timm):
    def parts(self) -> tuple[list[nn.Module], nn.Module, bool]:
        of: Any = self
        branch = [of.conv_pw, of.bn1, of.bn1.act, of.conv_dw, of.bn2, of.bn2.act, of.se, of.conv_pwl]
        return branch, of.bn3, of.has_skip


class TimmDepthwiseSeparable(_Timm):
    def check(self) -> None:
        super().check()
        if self.has_pw_act:
            raise PynasError("activation after the last convolution")

    def parts(self) -> tuple[list[nn.Module], nn.Module, bool]:
        of: Any = self
        return [of.conv_dw, of.bn1, of.bn1.act, of.se, of.conv_pw], of.bn2, of.has_skip


class TorchvisionInvertedResidual(_Foreign):
    """MobileNetV2's, whose layers are `conv`, and MobileNetV3's and EfficientNet's, `block`."""

    def check(self) -> None:
        drop = getattr(self, "stochastic_depth", None)
        if drop is not None and drop.mode != "row":
            raise PynasError(f"stochastic depth of mode {drop.mode!r}; allowed: 'row'")

    def parts(self) -> tuple[list[nn.Module], nn.Module, bool]:
        of: Any = self
        layers = of.conv if "conv" in self._modules else of.block
        flat = [inner for layer in layers for inner in (layer if isinstance(layer, nn.Sequential) else (layer,))]
        return flat[:-1], flat[-1], of.use_res_connect

    def kept(self, x: Tensor) -> Tensor | None:
        drop: Any = self._modules.get("stochastic_depth")
        return None if drop is None else _kept(x, drop, drop.p, True)


def _kept(x: Tensor, drop: nn.Module, rate: float, scaled: bool) -> Tensor | None:
    """What samples are multiplied by, drawn as timm's DropPath and torchvision's StochasticDepth draw it."""
    if not rate or not drop.training:
        return None
    kept = x.new_empty(x.shape[0]).bernoulli_(1.0 - rate)
    return kept.div_(1.0 - rate) if scaled and rate < 1.0 else kept


_FAMILIES: dict[str, type[_Foreign]] = {
    "timm.models._efficientnet_blocks.InvertedResidual": TimmInvertedResidual,
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": TimmDepthwiseSeparable,
    "torchvision.models.mobilenetv2.InvertedResidual": TorchvisionInvertedResidual,
    "torchvision.models.mobilenetv3.InvertedResidual": TorchvisionInvertedResidual,
    "torchvision.models.efficientnet.MBConv": TorchvisionInvertedResidual,
}
_OTHERS = {
    "timm.models._efficientnet_blocks.EdgeResidual": "its first convolution is not 1x1 and followed by a depthwise one",
    "timm.models._efficientnet_blocks.CondConvResidual": "its kernels depend on the image",
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": "a depthwise convolution may stand before the first",
    "timm.models._efficientnet_blocks.ConvBnAct": "one convolution, no inverted residual",
    "torchvision.models.efficientnet.FusedMBConv": "its first convolution is not 1x1 and followed by a depthwise one",
}
