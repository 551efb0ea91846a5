"""Inverted residual blocks (Sandler et al. 2018), whoever has made their layers: computed by what is here to do it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import library, mbconv_choice
from pynas.ops.gate import Gated
from pynas.ops.mbconv import MBConvLayers, check_layers, mbconv
from pynas.ops.sequence import ACTIVATION_NAMES, in_sequence, norm_and_add
from pynas.ops.sync_batch_norm import SyncBatchNorm


class InvertedResidual(nn.Module):
    """x + norm(branch(x)), or without x: (N, C, H, W) to (N, C', H', W').

    On a GPU whole blocks are fused (`pynas.ops.mbconv`) where kernels take them, else layer after layer with fused
    operators where there are some (`pynas.ops.sequence`); `pynas.ops.use("reference")` calls every layer.
    """

    def parts(self) -> tuple[list[nn.Module], nn.Module, bool]:
        """The branch: [convolution, norm, activation] once or twice, a gate if any, convolution; the norm after it; and
        whether x is added."""
        raise NotImplementedError

    def kept(self, x: Tensor) -> Tensor | None:
        """What each sample's branch is multiplied by (stochastic depth), (N,) as x; None for ones."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        branch, norm, residual = self.parts()
        steps = mbconv_choice.steps_for(x)
        if steps is not None:
            layers = _known(branch, norm)
            if layers is not None and mbconv_choice.takes(x, layers, residual):
                return mbconv(x, layers, residual, self.kept(x) if residual else None, steps=steps)
        y = in_sequence(branch, x)
        return norm_and_add(norm, y, x, self.kept(y)) if residual else norm_and_add(norm, y)


def block_layers(branch: Sequence[nn.Module], norm: nn.Module) -> MBConvLayers:
    """The layers of `InvertedResidual.parts` by what they are for. Raises PynasError for what is no such block."""
    left = [layer for layer in branch if not isinstance(layer, nn.Identity)]
    gated = left[-2] if len(left) > 1 and isinstance(left[-2], Gated) else None
    gate = gated.gate_layers() if isinstance(gated, Gated) else None
    if gated is not None and gate is None:
        raise PynasError(f"gate {type(gated).__name__} has an activation that no operator computes")
    stages = [*left[: -2 if gated is not None else -1], left[-1], norm]
    kinds = (nn.Conv2d, (nn.BatchNorm2d, SyncBatchNorm), tuple(ACTIVATION_NAMES))
    if len(stages) not in (5, 8):
        raise PynasError(f"{len(stages)} layers beside the gate; allowed: 5, or 8 with an expansion")
    for i, layer in enumerate(stages):
        kind = kinds[i % 3]
        if type(layer) not in (kind if isinstance(kind, tuple) else (kind,)):
            allowed = ", ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise PynasError(f"layer {type(layer).__name__}; allowed: {allowed}")
    acts = {ACTIVATION_NAMES[type(act)] for act in stages[2::3]}
    if len(acts) > 1:
        raise PynasError(f"activations {', '.join(sorted(acts))}; allowed: the same for both")
    expand, first = stages[:2] if len(stages) == 8 else (None, None)
    depthwise, between, _, project, last = stages[-5:]
    found = MBConvLayers(expand, first, depthwise, between, gate, project, last, acts.pop())  # type: ignore[arg-type]
    check_layers(found)
    return found


def _known(branch: Sequence[nn.Module], norm: nn.Module) -> MBConvLayers | None:
    """Those layers, where calling them does no more than their classes say."""
    if library.has_hooks(*(inner for layer in branch for inner in layer.modules()), norm):
        return None
    try:
        return block_layers(branch, norm)
    except PynasError:
        return None
