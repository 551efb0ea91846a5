"""Networks for inference on a CPU: batch-norm folded into convolutions, which take what follows them along.

Shapes: N batch, C channels, H = W size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pynas.errors import PynasError
from pynas.nets.attention import SplitAttention, SqueezeExcite
from pynas.nets.build import Network
from pynas.ops.library import fused, has_hooks, has_tangent, using
from pynas.ops.sync_batch_norm import SyncBatchNorm

_NORMS = (nn.BatchNorm2d, SyncBatchNorm)
# Activations as oneDNN's convolutions take them along, by the names that torch's own compiler gives them.
_ATTRIBUTES = {nn.Hardswish: "hardswish", nn.ReLU: "relu", nn.SiLU: "swish"}

_PLAIN = {"hardswish": functional.hardswish, "relu": functional.relu, "swish": functional.silu}


def folded(network: nn.Module) -> nn.Module:
    """A network for inference that computes what `network` does, on a CPU, in fewer passes over activations.

    Batch-norms become part of the convolutions before them, and activations and residual sums are computed where a
    convolution writes its output. Convolutions' weights are copied, in the layout that oneDNN computes with, when the
    first images come; everything else is shared with `network`, so fold again after training it further. Results
    differ in the last bits, as sums are taken in another order.

    `network`: in evaluation mode, on a CPU, float32, best in channels_last. Layers with hooks stay as they are. The
    returned module has no training mode, gives no gradients, and computes its convolutions in float32 under autocast.

    Raises PynasError for a network that is in training mode or has a layer that is, of another device or dtype, or that
    torch.fx cannot trace. The returned module raises it for images that need gradients or are dual numbers, and for
    what a convolution of it cannot take.

    Operations in place stay what and where they are: a convolution is not moved past one, and folds less for that.
    """
    if not isinstance(network, nn.Module):
        raise PynasError(f"folded: got {type(network).__name__}, allowed is an nn.Module")
    for name, module in network.named_modules():
        if module.training:
            what = f"its layer {name}" if name else "the network"
            raise PynasError(f"folded: {what} is in training mode, allowed is evaluation mode: network.eval()")
    kinds = {(value.device.type, value.dtype) for value in network.parameters()}
    if kinds - {("cpu", torch.float32)}:
        found = ", ".join(sorted(f"{device} {str(dtype).removeprefix('torch.')}" for device, dtype in kinds))
        raise PynasError(f"folded: the network is of {found}, allowed is cpu float32")
    try:
        with using("reference"):
            graph = _Tracer().trace(network)
    except Exception as error:  # whatever a user's forward does with what is no tensor yet
        text = " ".join(str(error).split())
        raise PynasError(f"folded: {type(network).__name__} cannot be traced: {text}") from error
    traced = fx.GraphModule(network, graph)
    modules = dict(traced.named_modules())
    fixed = {node for node in graph.nodes if _may_change_tensors(node, modules)}
    # Those whose weights the network's forward itself reads, and may change before the convolution does.
    open_ = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"} if fixed else set()
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) is nn.Conv2d:
            _fold(traced, node, modules, fixed, open_)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return Folded(traced)


def for_inference(network: nn.Module) -> nn.Module:
    """`folded(network)` where fused operators are used and `network` is one of pynas's own on a CPU, else `network`."""
    first = next(network.parameters(), None)
    known = type(network) is Network and first is not None and first.is_cpu and first.dtype == torch.float32
    return folded(network) if known and fused() and not has_hooks(*network.modules()) else network


class Folded(nn.Module):
    """What `folded` returns: the traced network, without gradients."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced.eval()
        self.eval()

    def forward(self, *images: Tensor) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in images):
            raise PynasError("folded: images need gradients, allowed are those that do not, or torch.no_grad()")
        if has_tangent(*(x for x in images if isinstance(x, Tensor))):
            raise PynasError("folded: images are dual numbers, allowed are those without tangents")
        with torch.no_grad():
            return self.traced(*images)


class FoldedConv(nn.Module):
    """act(conv(x) + residual): a convolution with the batch-norm after it folded in; act or residual may be none.

    weight: (out, in / groups, kh, kw) until the first call, then in a layout of oneDNN's own for images of its size.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | SyncBatchNorm | None, act: str | None) -> None:
        super().__init__()
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        if norm is not None:
            # In float64, so that the product is rounded once.
            values = (bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            old_bias, mean, var, scale, shift = (None if value is None else value.double() for value in values)
            assert mean is not None
            assert var is not None
            fused = fuse_conv_bn_weights(weight.double(), old_bias, mean, var, norm.eps, scale, shift)
            weight, bias = (value.detach().float() for value in fused)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.given, self.channels, self.kernel = conv.in_channels, conv.out_channels, conv.kernel_size
        self.shape: list[Any] = [list(pair) for pair in (conv.padding, conv.stride, conv.dilation)] + [conv.groups]
        self.act = act
        self._packed: Tensor | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling():  # which fuses by itself, and cannot trace oneDNN's own tensors
            return self._plainly(x, residual)
        x = self._checked(x)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.shape, list(x.shape))
        if residual is not None and self._fits(residual, x):
            return torch.ops.mkldnn._convolution_pointwise(
                x, residual, self._packed, self.bias, *self.shape, "add", 1.0, None, [], None
            )
        taken_along = self.act if self.act != "relu" else None  # oneDNN's makes zeros of NaN
        y = torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, self.bias, *self.shape, taken_along or "none", [], ""
        )
        if self.act == "relu":
            y = y.relu_()
        return y if residual is None else y + residual

    def _plainly(self, x: Tensor, residual: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.shape
        y = functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        y = _PLAIN[self.act](y) if self.act is not None else y
        return y if residual is None else y + residual

    def _checked(self, x: Any) -> Tensor:
        """x, if oneDNN takes it, which does not say what is wrong; in float32 where autocast made something else."""
        if not isinstance(x, Tensor):
            raise PynasError(f"folded: a convolution got {type(x).__name__}, allowed is a tensor")
        if x.dim() != 4 or x.shape[1] != self.given:
            allowed = f"(N, {self.given}, H, W)"
            raise PynasError(f"folded: a convolution got images of shape {tuple(x.shape)}, allowed is {allowed}")
        if not x.is_cpu:
            raise PynasError(f"folded: a convolution got images on {x.device}, allowed is cpu")
        if x.dtype is not torch.float32:
            if not x.is_floating_point() or not torch.is_autocast_enabled("cpu"):
                name = str(x.dtype).removeprefix("torch.")
                raise PynasError(f"folded: a convolution got images of {name}, allowed is float32")
            return x.float()
        return x

    def _fits(self, residual: Any, x: Tensor) -> bool:
        """Whether the residual has the shape of the convolution's output: one to be broadcast is not oneDNN's."""
        padding, stride, dilation, _ = self.shape
        spatial = [
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (self.kernel[i] - 1) - 1) // stride[i] + 1
            for i in range(2)
        ]
        return isinstance(residual, Tensor) and residual.shape == (x.shape[0], self.channels, *spatial)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # oneDNN's own tensors cannot be copied


class _Proxy(fx.Proxy):
    """Tells `x += y` from `x = x + y`, as fx's own does not: another name of x sees the sum."""


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


_IN_PLACE = {
    name: getattr(operator, name)
    for name in (
        *("iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift", "isub"),
        *("itruediv", "ixor"),
    )
}
for _name, _function in _IN_PLACE.items():
    setattr(_Proxy, f"__{_name}__", _in_place(_function))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*_NORMS, SqueezeExcite, SplitAttention)) or super().is_leaf_module(module, name)


def _may_change_tensors(node: fx.Node, modules: dict[str, Any]) -> bool:
    """Whether the operation may write to a tensor that is there before it; what is not known here may."""
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if node.op == "call_method":
        return _writes(str(node.target)) or node.target == "__setitem__"
    if node.op == "call_module":
        module = modules[str(node.target)]
        return any(getattr(part, "inplace", False) for part in module.modules()) or has_hooks(*module.modules())
    if node.op != "call_function":
        return False
    target: Any = node.target
    if target in _IN_PLACE.values() or target in (operator.setitem, setattr):
        return True
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    if isinstance(target, torch._ops.OpOverloadPacket):
        return any(getattr(target, name)._schema.is_mutable for name in target.overloads())
    home = str(getattr(target, "__module__", None) or "torch")  # built-in functions of torch may have none
    return _writes(target.__name__) or home.partition(".")[0] not in ("torch", "_operator", "math", "builtins")


def _writes(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _fold(traced: fx.GraphModule, node: fx.Node, modules: dict[str, Any], fixed: set[fx.Node], open_: set[str]) -> None:
    """Puts a FoldedConv in the place of the convolution `node` and of what can be computed with it.

    fixed: operations that may change a tensor, past which it is not moved. open_: modules whose weights may change.
    """
    conv = modules[str(node.target)]
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or has_hooks(conv) or node.target in open_:
        return
    if len(node.args) != 1 or node.kwargs:
        return
    chain, norm, act = [node], None, None
    following = _only_user(chain[-1], modules)
    if isinstance(following, _NORMS) and following.running_mean is not None:
        user = next(iter(node.users))
        if user.target not in open_ and not _between(node, user, fixed):
            chain, norm = [node, user], following
            following = _only_user(user, modules)
    arguments: tuple[Any, ...] = node.args
    if chain[-1].users and not _between(node, user := next(iter(chain[-1].users)), fixed):
        if following is not None and type(following) in _ATTRIBUTES:
            chain, act = [*chain, user], _ATTRIBUTES[type(following)]
        elif (added := _residual(chain[-1])) is not None:
            chain, arguments = [*chain, user], (*node.args, added)
    name = f"{node.name}_folded"  # of the node, for a convolution may be called twice
    traced.add_module(name, FoldedConv(conv, norm, act))
    with traced.graph.inserting_after(chain[-1]):
        new = traced.graph.call_module(name, arguments)
    chain[-1].replace_all_uses_with(new)
    for replaced in reversed(chain):  # and nothing else: what no one uses may be there for what it changes
        traced.graph.erase_node(replaced)


def _between(first: fx.Node, last: fx.Node, fixed: set[fx.Node]) -> bool:
    """Whether one of `fixed` comes after the first and before the last."""
    node = first.next
    while node is not last:
        if node in fixed:
            return True
        node = node.next
    return False


def _only_user(node: fx.Node, modules: dict[str, Any]) -> nn.Module | None:
    """The module that alone takes the node's result, and nothing else."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op != "call_module" or user.args != (node,) or user.kwargs:
        return None
    module = modules[str(user.target)]
    return None if has_hooks(module) else module


def _residual(node: fx.Node) -> fx.Node | None:
    """What alone is added to the node's result."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op != "call_function" or len(user.args) != 2 or user.kwargs:
        return None
    if user.target is not operator.add and not (user.target is operator.iadd and user.args[0] is node):
        return None
    other = user.args[0] if user.args[1] is node else user.args[1]
    return other if isinstance(other, fx.Node) and other is not node else None
