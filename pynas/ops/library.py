"""libpynas_ops.so: found, loaded, and whether its operators are used.

``pynas.ops.use("fused")`` or ``use("reference")`` decides for the process, before that the environment's PYNAS_OPS.
Without either the operators are fused wherever the library was built.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from pynas.errors import PynasError

PATH = Path(os.environ.get("PYNAS_OPS_LIBRARY") or Path(__file__).parents[1] / "libpynas_ops.so")
KINDS = ("fused", "reference")

Kind = Literal["fused", "reference"]
_chosen: str | None = None

_is_compiling = torch.compiler.is_compiling
_is_exporting = torch.compiler.is_exporting
_is_transforming = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # as is_grads_batched makes them
_below_autograd = torch._C._AutoDispatchBelowAutograd


@functools.cache
def why_missing() -> str:
    """Why the library's operators cannot be called; empty where they can, for they are loaded by now."""
    if not PATH.is_file():
        return f"{PATH} is not there: it is built where torch is installed, by pip install --no-build-isolation -e ."
    try:
        torch.ops.load_library(str(PATH))
    except OSError as error:
        return f"{PATH} cannot be loaded: {error}"
    return ""


def available() -> bool:
    """Whether the library's operators can be called; loads them."""
    return not why_missing()


def use(kind: Kind) -> None:
    """Choose the operators of this process: "fused" kernels, or the plain torch that defines what is right.

    Raises PynasError for another name, and for "fused" where the library is not there.
    """
    global _chosen
    _chosen = _checked(kind, "ops.use")


@contextmanager
def using(kind: Kind) -> Iterator[None]:
    """`use(kind)` for a block."""
    global _chosen
    before = _chosen
    use(kind)
    try:
        yield
    finally:
        _chosen = before


@functools.cache
def has_gpu_kernels(index: int | None) -> bool:
    """Whether the library has kernels for this GPU: for those of compute capability 8.0 and more."""
    return bool(torch.ops.pynas.has_cuda()) and torch.cuda.get_device_capability(index) >= (8, 0)


def fused() -> bool:
    """Whether fused operators are to be used where there are such for the tensors.

    Never in what is exported, within a transform of `torch.func`, nor while dual numbers are computed with
    (`torch.autograd.forward_ad`): fused operators have gradients, but neither tangents nor rules for vmap.
    """
    if _chosen is None:
        _choose()
    return _chosen == "fused" and not _is_exporting() and forward_ad._current_level < 0 and not _is_transforming()


def _choose() -> None:
    """By the environment, or what is built."""
    global _chosen
    given = os.environ.get("PYNAS_OPS")
    _chosen = _checked(given, "PYNAS_OPS") if given else ("fused" if available() else "reference")
    if not given and not available() and PATH.is_file():
        warnings.warn(f"fused operators are left out: {why_missing()}", stacklevel=2)


def without_autograd() -> AbstractContextManager[None]:
    """For calls of operators whose gradients the caller sees to, or of which none are wanted.

    Registered autograd is Python that torch calls even where nothing needs a gradient, for some 8 us; this takes 1.
    """
    return torch.no_grad() if _is_compiling() else _below_autograd()  # the compiler cannot trace the latter


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is a dual number: what fused operators would lose in silence."""
    return forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def gradient_in_channels_last(gradient: Tensor) -> Tensor:
    """A gradient that comes to a fused operator's backward, in channels_last; itself where it is.

    Raises PynasError for a dual number: the operator was called before, without knowing of the transform.
    """
    check_gradient(gradient)
    return in_channels_last(gradient)


def in_channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last, itself where it is."""
    if not _is_compiling() and (_is_transforming() or _is_batched(x)):  # vmap cannot tell the layout of one
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def begins_a_vector(x: Tensor) -> bool:
    """Whether x begins at a multiple of 16 bytes, which kernels for GPUs read at once; of what is compiled they see."""
    return _is_compiling() or x.storage_offset() * x.element_size() % 16 == 0


def check_gradient(gradient: Tensor) -> None:
    """As `gradient_in_channels_last`, of a gradient of any shape."""
    if has_tangent(gradient):
        raise PynasError(
            "backward of a fused operator: the gradient is a dual number; allowed: one without a tangent, or to call "
            "the operator, too, within forward_ad.dual_level() or the transform, or ops.use('reference') before"
        )


def refuse_batches(gradient: Tensor, where: str) -> None:
    """Raises PynasError for several gradients at once, as `is_grads_batched` makes them."""
    if not _is_compiling() and _is_batched(gradient):
        raise PynasError(
            f"backward of {where}: several gradients at once; allowed: one, or ops.use('reference') before"
        )


def has_hooks(*modules: nn.Module) -> bool:
    """Whether calling one of the modules does more than its class says: hooks, as profilers and counters have them,
    those of all modules included, and a `forward` of the module's own.
    """
    return _has_any_global_hook() or any(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def of_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    """An operator's fake that refuses tensors of several devices, with RuntimeError.

    torch takes the fake wherever one argument is on the meta device, and would return its tensor without values.
    """

    @functools.wraps(fake)
    def checked(*arguments: Any, **named: Any) -> Any:
        given = [
            value
            for argument in (*arguments, *named.values())
            for value in (argument if isinstance(argument, (list, tuple)) else (argument,))
            if isinstance(value, Tensor)
        ]
        if len({value.device.type for value in given}) > 1:
            devices = sorted({str(value.device) for value in given})
            raise RuntimeError(f"pynas: arguments are on {devices}; allowed: one device")
        return fake(*arguments, **named)

    return checked


def _checked(kind: str, where: str) -> str:
    if kind not in KINDS:
        raise PynasError(f"{where}: got {kind!r}, allowed are {', '.join(KINDS)}")
    if kind == "fused" and not available():
        raise PynasError(f"{where}: fused operators are not here: {why_missing()}")
    return kind


with suppress(PynasError):  # of a wrong name in the environment, which the first call tells of
    _choose()  # now, for torch.compile cannot trace how it is found out
