"""Optimizers whose step is one pass over memory, with the moving average of the weights in the same pass.

They are RMSPropTF and SGD of pynas/train/optimizer.py: same groups, same state by the same names, so that each loads
the other's `state_dict`. All lies in an `Arena`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import unwrap
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from pynas.errors import PynasError
from pynas.ops import reference_arena
from pynas.ops.arena import (
    FINITE,
    Arena,
    Watch,
    checked_rate,
    floats,
    has_kernels,
    in_shared_memory,
    overlapping,
    with_version,
)

MASTER = "master"
NOT_DONE = ("nesterov", "dampening", "maximize", "centered", "differentiable")  # of torch's SGD and RMSprop


class _FusedOptimizer(torch.optim.Optimizer):
    """What both share. A parameter without gradient is left alone in a step, except that its average follows it.

    params: as torch's optimizers take them; float32 and bfloat16, on one device. A bfloat16 parameter has a float32
    master, kept in its state, which is updated and from which the parameter is rounded; where the parameter is set to
    something else, the master follows.
    module, average: a module and a copy of it, whose parameters and floating buffers follow the module's after each
    step by average <- average_decay average + (1 - average_decay) value, and are float32 from now on.
    gradient_views: see `Arena`; `zero_grad` then sets gradients to zero, and to None only those of frozen parameters.
    So one that is trained and that backward does not reach has a gradient of zero, as `zero_grad(False)` leaves it.

    What moves or replaces tensors of parameters, module or average (`Module.to`, `p.data = `,
    `load_state_dict(assign=True)`, a new buffer by an old name) is noticed in the next step, which lays all out anew;
    a module by an old name is not.
    Raises PynasError, in a step too, for parameters that an arena does not take, for an average of another structure or
    whose tensors share memory, for rates outside their range, for a group with an option of torch's optimizers that is
    not done here (NOT_DONE) and for a module whose parameters are no longer the optimizer's.
    """

    initial: ClassVar[dict[str, float]]  # the state's names and initial values, in the kernel's order
    rates: ClassVar[dict[str, float]]  # a group's, each from 0 to this, in the kernel's order

    add_param_group_of_torch = unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict_of_torch = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad_of_torch = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)  # torch's wrappers import torch._dynamo

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        module: nn.Module | None,
        average: nn.Module | None,
        average_decay: float,
        gradient_views: bool,
    ) -> None:
        if (module is None) != (average is None):
            raise PynasError("optimizer: got one of module and average; allowed: both or none")
        if module is not None and average is not None:
            shared = len(set(map(id, floats(module))) & set(map(id, floats(average))))
            if shared or average is module:
                raise PynasError(f"optimizer: average has {shared} tensors of module's; allowed: a copy of module")
        self._module, self._average = module, average
        self.average_decay = checked_rate("optimizer: average_decay", average_decay)
        self._gradient_views = gradient_views
        self._arena: Arena | None = None
        super().__init__(params, defaults)
        arena = self._lay_out()
        if gradient_views and all(p.grad is None for p in arena.parameters):
            arena.zero_gradients()

    # --- layout ---

    @property
    def arena(self) -> Arena:
        """Where all lies; laid out anew where one of its tensors, or of the average's, was moved or replaced."""
        arena = self._arena
        if arena is None or not (arena.in_place() if self._watch is None else self._watch.undisturbed()):
            return self._lay_out()
        return arena

    def _lay_out(self) -> Arena:
        """A new arena with the present values of parameters, state and average, wherever these are."""
        arena = Arena(
            self._module, [group["params"] for group in self.param_groups], gradient_views=self._gradient_views
        )
        self._flat_state = [arena.flat(value) for value in self.initial.values()]
        views = [arena.views(flat) for flat in self._flat_state]
        masters = arena.views(arena.weights)
        self._views: dict[Tensor, dict[str, Tensor]] = {}
        for i, p in enumerate(arena.parameters):
            new = {name: of[i] for name, of in zip(self.initial, views)}
            if arena.is_low[i]:
                new[MASTER] = masters[i]
            for name, old in self.state.get(p, {}).items():
                if name in new:
                    _copy(new[name], old, f"state {name!r}")
            self._views[p] = new
        for p in self.state:
            if p in self._views:
                self.state[p] = self._views[p]
        self._without_state = [p for p in arena.parameters if p not in self.state]
        self._watch: Watch | None = None  # of all that the average depends on; without one the arena's own does
        self._flat_average: Tensor | None = None
        self._averages: list[Tensor] = []
        self._outside: tuple[list[Tensor], list[Tensor]] = ([], [])
        if self._average is not None:
            self._lay_out_average(arena, self._average)
        self._arena = arena
        return arena

    def _lay_out_average(self, arena: Arena, average: nn.Module) -> None:
        assert self._module is not None
        values, averages = floats(self._module), floats(average)
        if [v.shape for v in values] != [a.shape for a in averages]:
            raise PynasError("optimizer: average is a module of other parameters or buffers; allowed: a copy of module")
        if any(a.is_meta for a in averages):
            raise PynasError("optimizer: average has a tensor on the meta device; allowed: a copy of module")
        follows = dict(zip(map(id, values), averages))
        missing = sum(id(p) not in follows for p in arena.parameters)
        if missing:
            raise PynasError(f"optimizer: {missing} parameters are not the module's; allowed: parameters of module")
        moved = [follows[id(value)] for value in arena.tensors]
        if overlapping(moved) or any(map(in_shared_memory, moved)):
            raise PynasError(
                "optimizer: average has parameters or buffers that share memory, with each other or with processes; "
                "allowed: memory of its own for each"
            )
        self._averages = with_version(moved)  # a tensor with other memory no longer tells how it was made
        self._flat_average = arena.flat(0.0)
        with torch.no_grad():
            for mean, place in zip(moved, arena.views(self._flat_average)):
                mean.data = place.copy_(mean)
        self._outside = ([follows[id(value)] for value in arena.outside], arena.outside)
        self._watch = Watch((self._module, average), arena.gradients)

    # --- torch.optim.Optimizer ---

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient, and of the average; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = [self._rates(group) for group in self.param_groups]
        checked_rate("optimizer: average_decay", self.average_decay)
        arena = self.arena
        if self._gradient_views:
            arena.forget_frozen()
        if self._without_state:
            self._begin_states()
        if has_kernels(arena.device):
            of_all = [rate for of_group in rates for rate in of_group]
            try:
                self._fused_step(arena, of_all, arena.chunks_and_gradients())
            except RuntimeError:  # of a gradient with gaps or of another dtype, before anything was changed
                self._fused_step(arena, of_all, arena.chunks_and_ordered_gradients())
            torch.autograd.graph.increment_version(arena.stepped)
        else:
            self._reference_step(arena)
        torch.autograd.graph.increment_version(self._averages)  # that changed by way of their arena
        if self._outside[0]:
            reference_arena.ema_update(*self._outside, self.average_decay)
        return loss

    def _begin_states(self) -> None:
        for p in self._without_state:
            if p.grad is not None:
                self.state[p] = self._views[p]
        self._without_state = [p for p in self._without_state if p not in self.state]

    def _rates(self, group: Mapping[str, Any], where: str = "optimizer") -> list[float]:
        for name in NOT_DONE:
            if group.get(name):
                raise PynasError(f"{where}: {name} is {group[name]}; allowed: none, for it is not done here")
        return [checked_rate(f"{where}: {name}", group.get(name), most) for name, most in self.rates.items()]

    def _fused_step(self, arena: Arena, rates: list[float], gradients: tuple[Tensor, list[Tensor]]) -> None:
        raise NotImplementedError

    def _reference_update(
        self, weights: list[Tensor], gradients: list[Tensor], state: list[list[Tensor]], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError

    def _reference_step(self, arena: Arena) -> None:
        every = [p for group in self.param_groups for p in group["params"] if p in self._views]
        masters = {p: self._views[p][MASTER] for p in every if MASTER in self._views[p]}
        for p, master in masters.items():
            master.copy_(reference_arena.master_of(master, p))
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p in self._views]
            if not params:
                continue
            state = [[self._views[p][name] for p in params] for name in self.initial]
            self._reference_update(
                [masters.get(p, p) for p in params], [p.grad.to(torch.float32) for p in params], state, group
            )
            for p in params:
                if p in masters:
                    p.copy_(masters[p])
        if self._flat_average is not None:
            reference_arena.ema_update([self._flat_average], [arena.weights], self.average_decay)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients become None, or zero where they are views of the arena; those of frozen parameters None."""
        if self._gradient_views:
            self.arena.zero_gradients()
        else:
            self.zero_grad_of_torch(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._rates({**self.defaults, **param_group})
        self.add_param_group_of_torch(param_group)
        added = self.param_groups[-1]["params"]
        if len(set(added)) < len(added):
            self.param_groups.pop()
            raise PynasError(
                f"optimizer: got {len(added) - len(set(added))} parameters more than once; allowed: each parameter once"
            )
        self._arena = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also that of the optimizer in pynas/train/optimizer.py. State is copied into the arena, in float32.

        Raises ValueError for other groups, PynasError for what is no such state, for state of other shapes, for rates
        outside their range, and for groups of torch's optimizers that ask for what is not done here (NOT_DONE); all is
        as it was then.
        """
        given, groups = _parts(state_dict)
        new: dict[Tensor, dict[str, Any]] = {}
        if [len(group["params"]) for group in groups] == [len(group["params"]) for group in self.param_groups]:
            for group, mine in zip(groups, self.param_groups):
                self._rates(group, "load_state_dict")
                for number, p in zip(group["params"], mine["params"]):
                    if number in given:
                        if not isinstance(given[number], Mapping):
                            raise PynasError(f"load_state_dict: state is {given[number]!r}; allowed: a dictionary")
                        new[p] = dict(given[number])
                        for name in (*self.initial, *({MASTER} & new[p].keys())):
                            _check(p.shape, new[p].get(name), f"load_state_dict: state {name!r}")
        self.load_state_dict_of_torch({**state_dict, "state": {}})  # refuses other groups
        for p, state in new.items():
            self.state[p] = state
        self._lay_out()

    def __getstate__(self) -> dict[str, Any]:
        mine = {name: self.__dict__[name] for name in ("_module", "_average", "average_decay", "_gradient_views")}
        return {**super().__getstate__(), **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._arena = None


class RMSpropEMA(_FusedOptimizer):
    """RMSProp as TensorFlow defines it; see RMSPropTF in pynas/train/optimizer.py, and the base class for the rest."""

    initial: ClassVar = {"square_average": 1.0, "momentum": 0.0}
    rates: ClassVar = {"lr": FINITE, "weight_decay": FINITE, "momentum": 1.0, "decay": 1.0, "eps": FINITE}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay: float = 0.9,
        eps: float = 1e-3,
        module: nn.Module | None = None,
        average: nn.Module | None = None,
        average_decay: float = 0.0,
        gradient_views: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay": decay, "eps": eps}
        super().__init__(params, defaults, module, average, average_decay, gradient_views)

    def _fused_step(self, arena: Arena, rates: list[float], gradients: tuple[Tensor, list[Tensor]]) -> None:
        squares, momentum = self._flat_state
        torch.ops.pynas.rmsprop_ema_step.default(
            arena.weights, squares, momentum, self._flat_average, arena.low, *gradients, rates, self.average_decay
        )

    def _reference_update(
        self, weights: list[Tensor], gradients: list[Tensor], state: list[list[Tensor]], group: dict[str, Any]
    ) -> None:
        reference_arena.rmsprop_step(weights, gradients, state[0], state[1], group)


class SGDEMA(_FusedOptimizer):
    """Heavy-ball momentum, as SGD in pynas/train/optimizer.py; see the base class for the rest."""

    initial: ClassVar = {"momentum_buffer": 0.0}
    rates: ClassVar = {"lr": FINITE, "weight_decay": FINITE, "momentum": 1.0}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        module: nn.Module | None = None,
        average: nn.Module | None = None,
        average_decay: float = 0.0,
        gradient_views: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, module, average, average_decay, gradient_views)

    def _fused_step(self, arena: Arena, rates: list[float], gradients: tuple[Tensor, list[Tensor]]) -> None:
        groups = [rate for i in range(0, len(rates), 3) for rate in (*rates[i : i + 3], 0.0, 0.0)]
        torch.ops.pynas.sgd_ema_step.default(
            arena.weights, self._flat_state[0], self._flat_average, arena.low, *gradients, groups, self.average_decay
        )

    def _reference_update(
        self, weights: list[Tensor], gradients: list[Tensor], state: list[list[Tensor]], group: dict[str, Any]
    ) -> None:
        reference_arena.sgd_step(weights, gradients, state[0], group)


def _parts(state_dict: Any) -> tuple[Mapping[Any, Any], list[dict[str, Any]]]:
    where, allowed = "load_state_dict", "what an optimizer's state_dict() returned"
    if not isinstance(state_dict, Mapping):
        raise PynasError(f"{where}: got {type(state_dict).__name__}; allowed: {allowed}")
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, (list, tuple)):
        names = ", ".join(map(str, state_dict)) or "nothing"
        raise PynasError(f"{where}: got a dictionary of {names}; allowed: {allowed}, with state and param_groups")
    if not all(isinstance(group, Mapping) and "params" in group for group in groups):
        raise PynasError(f"{where}: got a group of param_groups without params; allowed: {allowed}")
    return state, list(groups)


def _copy(to: Tensor, value: Any, what: str) -> None:
    _check(to.shape, value, what)
    with torch.no_grad():
        to.copy_(value)


def _check(shape: torch.Size, value: Any, what: str) -> None:
    if not isinstance(value, Tensor) or value.shape != shape:
        came = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise PynasError(f"{what} is {came}; allowed: a tensor of its parameter's shape, {tuple(shape)}")
