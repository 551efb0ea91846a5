"""`fuse(model)`: the inverted residual blocks of timm's and torchvision's networks, computed by fused operators.

A block stays its library's in all but `forward`, and takes that again whenever something about it is not as the library
made it: hooks within it, layers put in or taken out, tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import library, mbconv_choice
from pynas.ops.batch_norm import batch_norm_act
from pynas.ops.depthwise import depthwise_conv2d
from pynas.ops.gate import GateLayers
from pynas.ops.mbconv import MBConvLayers, check_layers, mbconv
from pynas.ops.pointwise import pointwise_conv2d
from pynas.ops.sequence import ACTIVATION_NAMES
from pynas.ops.squeeze_excite import batch_norm_act_se
from pynas.ops.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct

_Norm = TypeVar("_Norm", bound=nn.Module)


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
    buffers, names, hooks and classes (each becomes a subclass of its own), so optimizers, state dicts and checkpoints
    do not notice. Outputs and gradients are the same but for rounding; in training they draw the same stochastic depth.

    A block with a hook inside, with layers changed since, or that is traced (torch.fx, torch.jit) is computed by its
    library's own forward. What is lost is a second derivative (gradients of gradients) and `torch.jit.script`:
    `pynas.ops.use("reference")` gives the former back.

    The model should be in channels_last: `model.to(memory_format=torch.channels_last)`. What kernels there are not for
    (a dtype, a device, a number of channels) is computed layer by layer. Raises PynasError for what is no module.
    Modules that occur several times are named once.
    """
    if not isinstance(model, nn.Module):
        raise PynasError(f"fuse: got {type(model).__name__}, allowed is an nn.Module")
    found = Fused([], {})
    for name, module in model.named_modules():
        if isinstance(module, FusedBlock):
            continue
        origin = _origin(type(module))
        if origin in _FAMILIES:
            why = _convert(module, _FAMILIES[origin])
            if why:
                found.left[name] = why
            else:
                found.replaced.append(name)
        elif origin in _OTHERS:
            found.left[name] = _OTHERS[origin]
        elif any(_origin(kind) in _FAMILIES for kind in type(module).__mro__):
            found.left[name] = f"{type(module).__name__} is a class of its own, made of such a block's"
        elif getattr(module, "original_name", None) in ("InvertedResidual", "DepthwiseSeparableConv", "MBConv"):
            found.left[name] = "it is scripted"
    return found


def _origin(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _convert(module: nn.Module, describe: Callable[[Any], _Block]) -> str:
    """Makes a block a `FusedBlock`, or returns why not."""
    kind = type(module)
    own = kind.forward
    if "forward" in module.__dict__ or (own.__module__, own.__qualname__) != (
        kind.__module__,
        f"{kind.__name__}.forward",
    ):
        return "it has a forward of its own"
    try:
        describe(module)
    except PynasError as why:
        return str(why)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return f"it is not as its library makes it: {error}"
    module.__class__ = _fused_class(kind, describe)
    return ""


class _Block(NamedTuple):
    layers: MBConvLayers
    residual: bool
    kept: Callable[[Tensor], Tensor | None]
    """What each sample's branch is multiplied by (stochastic depth), (N,) as its argument."""


class FusedBlock(nn.Module):
    """Before a block's own class: `forward` by pynas's operators where the block is as its library made it."""

    _original: type[nn.Module]
    _described: Callable[[Any], _Block]

    def forward(self, *given: Any, **named: Any) -> Any:
        """x alone, as a network calls it: (N, C, H, W) to (N, C', H', W')."""
        x = given[0] if len(given) == 1 and not named else None
        if not _is_plain(x) or (block := self._known()) is None or not _takes(block.layers, x):
            return super().forward(*given, **named)
        layers, residual, kept = block
        steps = mbconv_choice.steps_for(x)
        if steps is not None and mbconv_choice.takes(x, layers, residual):
            return mbconv(x, layers, residual, kept(x) if residual else None, steps=steps)
        if not x.is_cpu or torch.compiler.is_compiling():  # views of modules are nothing for the compiler
            return super().forward(*given, **named)
        return _by_layers(x, layers, residual, kept)

    def _known(self) -> _Block | None:
        if library.has_hooks(*(module for module in self.modules() if module is not self)):
            return None
        try:
            return self._described(self)
        except (PynasError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _remade, (self._original,), self.__dict__


def _is_plain(x: Any) -> TypeGuard[Tensor]:
    """Whether x is a tensor that is computed with: nothing traces, and fused operators are wanted."""
    return isinstance(x, Tensor) and library.fused() and not torch.jit.is_tracing()


def _takes(layers: MBConvLayers, x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] == (layers.expand or layers.depthwise).in_channels


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(kind: type[nn.Module], describe: Callable[[Any], _Block]) -> type[nn.Module]:
    if kind not in _classes:
        about = {"__module__": __name__, "_original": kind, "_described": staticmethod(describe)}
        _classes[kind] = type(f"Fused{kind.__name__}", (FusedBlock, kind), about)
    return _classes[kind]


def _remade(kind: type[nn.Module]) -> nn.Module:
    """A block without state, for copies and files."""
    made = _fused_class(kind, _FAMILIES[_origin(kind)])
    return made.__new__(made)


def _by_layers(x: Tensor, layers: MBConvLayers, residual: bool, kept: Callable[[Tensor], Tensor | None]) -> Tensor:
    y, act, gate = x, layers.act, layers.gate
    if layers.expand is not None and layers.expand_norm is not None:
        y = batch_norm_act(pointwise_conv2d(x, layers.expand.weight), _plain(layers.expand_norm), act)
    stride, padding = layers.depthwise.stride, layers.depthwise.padding
    y = depthwise_conv2d(y, layers.depthwise.weight, stride, padding)  # type: ignore[arg-type]
    if gate is None:
        y = batch_norm_act(y, _plain(layers.norm), act)
    else:
        y = batch_norm_act_se(y, _plain(layers.norm), act, gate.reduce, gate.act, gate.expand, gate.function)
    y = pointwise_conv2d(y, layers.project.weight)
    norm = _plain(layers.project_norm)
    return batch_norm_act(y, norm, "identity", x, kept(y)) if residual else batch_norm_act(y, norm)


def _plain(norm: _Norm) -> _Norm | nn.BatchNorm2d:
    """A norm without the activation that is one with it: a view, whose state is the norm's own."""
    if type(norm) in (nn.BatchNorm2d, SyncBatchNorm):
        return norm
    kind = SyncBatchNorm if isinstance(norm, SyncBatchNorm) else nn.BatchNorm2d
    view = kind.__new__(kind)
    object.__setattr__(view, "__dict__", norm.__dict__)
    return view  # type: ignore[return-value]


# --- what layers have to be ---


def _of(layer: Any, *allowed: str | type, what: str) -> Any:
    """The layer, if it is of just these classes, given by their full names where a library may not be here."""
    kind = type(layer)
    if kind in allowed or _origin(kind) in allowed:
        return layer
    names = ", ".join(one.rpartition(".")[2] if isinstance(one, str) else one.__name__ for one in allowed)
    raise PynasError(f"{what} {kind.__name__}; allowed: {names}")


def _activation(*layers: Any) -> str:
    """The name of all of these activations."""
    names = {ACTIVATION_NAMES[type(_of(layer, *ACTIVATION_NAMES, what="activation"))] for layer in layers}
    if len(names) > 1:
        raise PynasError(f"activations {', '.join(sorted(names))}; allowed: the same for both")
    return names.pop()


def _gate(reduce: Any, act: Any, expand: Any, gate: Any) -> GateLayers:
    kinds = {nn.Hardsigmoid: "hsigmoid", nn.Sigmoid: "sigmoid"}
    own = {f"timm.layers.activations.{name}": function for name, function in
           (("HardSigmoid", "hsigmoid"), ("HardSigmoidJit", "hsigmoid"), ("Sigmoid", "sigmoid"))}  # fmt: skip
    own |= {"timm.layers.activations_me.HardSigmoidMe": "hsigmoid"}
    _of(gate, *kinds, *own, what="gate's function")
    function = kinds.get(type(gate)) or own[_origin(type(gate))]
    for conv in (reduce, expand):
        _of(conv, nn.Conv2d, what="gate's layer")
    return GateLayers(reduce, _activation(act), expand, function)


def _block(
    convs: Iterable[Any], norms: Iterable[Any], acts: Iterable[Any], gate: GateLayers | None, residual: Any, kept: Any
) -> _Block:
    """Of [expand,] depthwise and project, their norms, and the activations after all but the last."""
    convolutions = [_of(conv, nn.Conv2d, what="convolution") for conv in convs]
    act = _activation(*acts)
    expand = convolutions[0] if len(convolutions) == 3 else None
    of_norms = list(norms)
    first = of_norms[0] if len(of_norms) == 3 else None
    rest = (gate, convolutions[-1], of_norms[-1], act)
    found = MBConvLayers(expand, first, convolutions[-2], of_norms[-2], *rest)
    check_layers(found)
    return _Block(found, bool(residual), kept)


def _kept(x: Tensor, drop: nn.Module, rate: float, scaled: bool) -> Tensor | None:
    """What samples are multiplied by, drawn as timm's DropPath and torchvision's StochasticDepth draw it."""
    if not rate or not drop.training:
        return None
    kept = x.new_empty(x.shape[0]).bernoulli_(1.0 - rate)
    return kept.div_(1.0 - rate) if scaled and rate < 1.0 else kept


# --- timm ---

_TIMM = "timm.models._efficientnet_blocks."
_NORM_ACT = ("timm.layers.norm_act.BatchNormAct2d", SyncBatchNormAct)


def _timm(of: Any, convs: list[Any], norms: list[Any]) -> _Block:
    if of.conv_s2d is not None:
        raise PynasError("space to depth before the block")
    _of(of.aa, nn.Identity, what="anti-aliasing")
    for norm in norms:
        _of(norm, *_NORM_ACT, what="norm")
        _of(norm.drop, nn.Identity, what="dropout in a norm")
    _of(norms[-1].act, nn.Identity, what="activation after the last norm")
    gate = None
    if type(of.se) is not nn.Identity:
        _of(of.se, f"{_TIMM}SqueezeExcite", what="attention")
        gate = _gate(of.se.conv_reduce, of.se.act1, of.se.conv_expand, of.se.gate)
    drop = _of(of.drop_path, nn.Identity, "timm.layers.drop.DropPath", what="stochastic depth")

    def kept(x: Tensor) -> Tensor | None:
        return None if type(drop) is nn.Identity else _kept(x, drop, drop.drop_prob, drop.scale_by_keep)

    return _block(convs, norms, [norm.act for norm in norms[:-1]], gate, of.has_skip, kept)


def _timm_inverted(of: Any) -> _Block:
    return _timm(of, [of.conv_pw, of.conv_dw, of.conv_pwl], [of.bn1, of.bn2, of.bn3])


def _timm_separable(of: Any) -> _Block:
    return _timm(of, [of.conv_dw, of.conv_pw], [of.bn1, of.bn2])


# --- torchvision ---


def _torchvision(of: Any) -> _Block:
    """MobileNetV2's layers are `conv`, MobileNetV3's and EfficientNet's `block`."""
    stages = ("torchvision.ops.misc.Conv2dNormActivation", nn.Sequential)
    layers = _of(of.conv if "conv" in of._modules else of.block, nn.Sequential, what="branch")
    flat: list[Any] = []
    gate = None
    for layer in layers:
        if _origin(type(layer)) == "torchvision.ops.misc.SqueezeExcitation":
            _of(layer.avgpool, nn.AdaptiveAvgPool2d, what="gate's pool")
            gate = _gate(layer.fc1, layer.activation, layer.fc2, layer.scale_activation)
            continue
        flat += (
            [layer] if type(layer) in (nn.Conv2d, nn.BatchNorm2d, SyncBatchNorm) else _of(layer, *stages, what="layer")
        )
    for norm in flat[1::3]:
        _of(norm, nn.BatchNorm2d, SyncBatchNorm, what="norm")
    if len(flat) not in (5, 8):
        raise PynasError(f"{len(flat)} layers; allowed: 5, or 8 with an expansion")
    drop = of._modules.get("stochastic_depth")
    if drop is not None:
        _of(drop, "torchvision.ops.stochastic_depth.StochasticDepth", what="stochastic depth")
        if drop.mode != "row":
            raise PynasError(f"stochastic depth of mode {drop.mode!r}; allowed: 'row'")

    def kept(x: Tensor) -> Tensor | None:
        return None if drop is None else _kept(x, drop, drop.p, True)

    return _block(flat[0::3], flat[1::3], flat[2::3], gate, of.use_res_connect, kept)


_FAMILIES: dict[str, Callable[[Any], _Block]] = {
    f"{_TIMM}InvertedResidual": _timm_inverted,
    f"{_TIMM}DepthwiseSeparableConv": _timm_separable,
    "torchvision.models.mobilenetv2.InvertedResidual": _torchvision,
    "torchvision.models.mobilenetv3.InvertedResidual": _torchvision,
    "torchvision.models.efficientnet.MBConv": _torchvision,
}
_DENSE = "its first convolution is not 1x1 and followed by a depthwise one"
_OTHERS = {
    f"{_TIMM}EdgeResidual": _DENSE,
    f"{_TIMM}CondConvResidual": "its kernels depend on the image",
    f"{_TIMM}UniversalInvertedResidual": "a depthwise convolution may stand before the first",
    f"{_TIMM}MobileAttention": "it is attention between pixels",
    f"{_TIMM}ConvBnAct": "one convolution, no inverted residual",
    "torchvision.models.efficientnet.FusedMBConv": _DENSE,
}
