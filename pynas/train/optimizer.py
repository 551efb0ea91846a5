"""The optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pynas.ops.arena import has_kernels
from pynas.ops.optimizer import SGDEMA, RMSpropEMA
from pynas.train.config import TrainingRecipe
from pynas.train.ema import WeightAverage

RMSPROP_DECAY = 0.9  # of the running square average, as in MobileNetV3 and EfficientNet
RMSPROP_EPS = 1e-3


class _Optimizer(torch.optim.Optimizer):
    """torch's, less a wrapper around these methods that imports torch._dynamo: two seconds of each training."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; returns the closure's loss where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                grads = [p.grad for p in params]
                if group["weight_decay"]:
                    grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
                self._update(params, grads, group)
        return loss

    def _update(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update `params` of one group, whose `grads` include the weight decay, in place."""
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent with heavy-ball momentum, as `torch.optim.SGD` without dampening and Nesterov."""

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


class RMSPropTF(_Optimizer):
    """RMSProp as TensorFlow defines it, which the learning rates of Table 2 are meant for.

        s <- decay s + (1 - decay) g^2        s starts at one
        b <- momentum b + lr g / sqrt(s + eps)
        w <- w - b                            g includes weight_decay w

    Three differences from `torch.optim.RMSprop`: eps is inside the root, s starts at one and not at zero (so that the
    first steps are not tenfold), and lr is inside the momentum, so that its decay does not rescale past steps.
    All tensors of a group are updated by a few grouped operations: the networks are so small that one call a tensor
    would cost more than the arithmetic.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay: float = RMSPROP_DECAY,
        eps: float = RMSPROP_EPS,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay": decay, "eps": eps}
        super().__init__(params, defaults)

    def _update(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["square_average"] = torch.ones_like(p)
                self.state[p]["momentum"] = torch.zeros_like(p)
        squares = [self.state[p]["square_average"] for p in params]
        buffers = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(squares, group["decay"])
        torch._foreach_addcmul_(squares, grads, grads, value=1.0 - group["decay"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcdiv_(buffers, grads, roots, value=group["lr"])
        torch._foreach_sub_(params, buffers)


def parameter_groups(
    network: nn.Module, weight_decay: float, batch_norm_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Two groups: batch-norm's gamma and beta with a weight decay of their own (A.5: none), everything else.

    A parameter that several modules share stands in one group once.
    """
    norm: list[Tensor] = []
    rest: list[Tensor] = []
    seen: set[int] = set()
    for module in network.modules():
        new = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, new))
        (norm if isinstance(module, _BatchNorm) else rest).extend(new)
    groups = [(rest, weight_decay), (norm, batch_norm_weight_decay)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def make_optimizer(
    network: nn.Module, recipe: TrainingRecipe, average: WeightAverage | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters of `network`, as `average` does its source.

    SGD is plain heavy-ball momentum: the paper says "SGD" and names no Nesterov. Both optimizers add weight decay to
    the gradient (L2), as the releases of that time did. `recipe.lr` is taken as it is: Table 2's factor 4 for SGD is
    applied where a genome is decoded. Where there are kernels for it, one pass over memory does the step and the
    average's; else `average.update()` is left to the caller (`averages`).
    """
    groups = parameter_groups(network, recipe.weight_decay, recipe.batch_norm_weight_decay)
    settings: dict[str, Any] = {"momentum": recipe.momentum}
    if not _fusible(network):
        return (RMSPropTF if recipe.optimizer == "RMSProp" else SGD)(groups, recipe.lr, **settings)
    if average is not None:
        settings |= {"module": network, "average": average.network, "average_decay": average.decay}
    return (RMSpropEMA if recipe.optimizer == "RMSProp" else SGDEMA)(groups, recipe.lr, **settings)


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step includes the average's."""
    return isinstance(optimizer, (RMSpropEMA, SGDEMA))


def _fusible(network: nn.Module) -> bool:
    parameters = list(network.parameters())
    devices, dtypes = {p.device for p in parameters}, {p.dtype for p in parameters}
    return len(devices) == 1 and dtypes <= {torch.float32, torch.bfloat16} and has_kernels(devices.pop())
