"""NARS as a sampler of Optuna: the predictor and the aimed selection for a study that is Optuna's own.

    study = optuna.create_study(direction="maximize", sampler=NARSSampler("fbnetv3_28", budgets={"small": "flops=2M"}))

Every draw is keyed by the seed and the number of the trial, and hyperparameters are tuned at fixed counts of labels: a
study that is resumed goes on as if it had not been interrupted, and processes that share one may share the seed.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pynas.errors import PynasError
from pynas.integrations.points import MOST_CHOICES, Axis, CostFunction, Ground, Points, distribution_of, keys
from pynas.nars.aimed import aimed_picks, best_within, first_picks
from pynas.predict.gaussian_process import Hyperparameters
from pynas.predict.models import ProcessModel, fit_model
from pynas.randomness import generator
from pynas.space.budget import Bounds, Budget, read_bounds
from pynas.space.space import Space, check_seed, load_space

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

_ANNOUNCED = "nars:params"  # system attributes of a trial: what it was given, before it has asked for all of it
_LONGEST = 2045  # characters of an attribute in a relational storage
_GROUNDS = 4  # search spaces that are remembered
_CLIMBS = 3  # times that the neighbours of the best candidates become candidates
_ATTEMPTS, _PAUSE = 12, 0.05  # to pick what no other process has picked; seconds between them, times their number
_CLIMBERS = 8  # of the best
_FEW = 1000  # labels beyond which candidates become fewer: a prediction costs the square of the labels
_PARENTS = 5  # best trials of each budget whose neighbours are candidates


class NARSSampler(BaseSampler):
    """Picks each trial for one of several budgets, in turns, by a Gaussian process on all trials before it.

    space: a table's space or its name, then the objective calls `suggest`; or distributions by name; or None, for the
    parameters that all finished trials share, as in Optuna's own samplers. Others are sampled one by one.
    budgets: bounds on costs by the budget's name; without any there is one that admits everything.
    cost: the costs of a candidate from its values in the search space, ``{"flops": 3e6}`` or a single number, named
    "cost". It is called for thousands of candidates. A table's costs are counted.
    first: random trials before the first fit. candidates: random ones each pick chooses from, beside neighbours.
    failed: a failed trial counts as the "worst" value, or is "ignored".
    independent_sampler: for parameters outside of the search space, in place of random values.

    Raises PynasError for arguments out of range, and for a budget within which no candidate is found.
    """

    def __init__(
        self,
        space: Space | str | Path | Mapping[str, BaseDistribution] | None = None,
        *,
        budgets: Mapping[str, Budget | Mapping[str, Any] | str] | None = None,
        cost: CostFunction | None = None,
        first: int = 16,
        candidates: int = 4000,
        seed: int | None = None,
        failed: str = "worst",
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        for name, number in (("first", first), ("candidates", candidates)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise PynasError(f"{name} {number!r}; allowed: whole numbers of at least 1")
        if failed not in ("worst", "ignored"):
            raise PynasError(f"failed {failed!r}; allowed: worst, ignored")
        if cost is not None and not callable(cost):
            raise PynasError(f"cost {cost!r}; allowed: a function of a candidate's values")
        self.seed = secrets.randbits(63) if seed is None else check_seed(seed)
        self._first, self._candidates, self._failed, self._cost = first, candidates, failed, cost
        self._independent = independent_sampler
        self._space: Space | None = None
        self._distributions: dict[str, BaseDistribution] | None = None
        if isinstance(space, str | Path):
            space = load_space(space)
        if isinstance(space, Space):
            self._space = space
            self._distributions = {variable.name: distribution_of(variable) for variable in space.variables}
        elif space is not None:
            self._distributions = _checked(space)
        if self._space is not None and cost is not None:
            raise PynasError("cost: the costs of a table's space are counted; allowed with other spaces")
        self._budgets = self._read_budgets(budgets)
        self._begin()
        if self._distributions is not None:
            ground = self._ground(self._distributions)
            ground.costs(ground.pool)  # a budget that cannot be met is told at once

    def _read_budgets(
        self, budgets: Mapping[str, Budget | Mapping[str, Any] | str] | None
    ) -> dict[str, dict[str, Bounds]]:
        if not budgets:
            return {"any": {}}
        if not isinstance(budgets, Mapping):
            raise PynasError(f"budgets {budgets!r}; allowed: bounds by name, such as {{'small': {{'flops': 4e8}}}}")
        if self._space is not None:
            counted = {name: Budget.of(budget) for name, budget in budgets.items()}
            for budget in counted.values():
                budget.arrays()  # refuses latency
            return {name: dict(budget.bounds) for name, budget in counted.items()}
        if self._cost is None:
            raise PynasError("budgets: nothing tells what a candidate costs; give a table's space, or cost=function")
        read = {}
        for name, bounds in budgets.items():
            if isinstance(bounds, Budget):
                bounds = dict(bounds.bounds)
            if not isinstance(bounds, Mapping):
                raise PynasError(f"budget {name}: {bounds!r}; allowed: a mapping such as {{'flops': (4e8, 5e8)}}")
            read[name] = {cost: read_bounds(cost, bound) for cost, bound in bounds.items()}
        return read

    # what Optuna asks -----------------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        _one_objective(study)
        if self._distributions is not None:
            return dict(self._distributions)
        shared = intersection_search_space(study.get_trials(deepcopy=False), include_pruned=True)
        return {name: distribution for name, distribution in shared.items() if not _too_many(distribution)}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        _one_objective(study)
        if not search_space:
            return {}
        if self._space is not None and len(search_space) < len(self._space.variables):
            hidden = next(v.name for v in self._space.variables if v.name not in search_space)
            raise PynasError(f"{hidden}: fixed by another sampler; fix it by load_space(..., pin={{{hidden!r}: ...}})")
        with self._lock:
            ground = self._ground(search_space)
            seen = self._seen(ground, study, trial)
            for attempt in range(_ATTEMPTS):
                if attempt:  # two that clash must not go on in step: each would find the other at its next pick, too
                    pause = generator(self.seed, "pause", trial.number, attempt).random()
                    time.sleep(_PAUSE * attempt * pause)
                    seen = self._seen(ground, study, trial)
                point = self._pick(ground, seen, trial)
                values = ground.values(point)
                self._announce(ground, study, trial, values)
                # A process beside this one may have announced the same meanwhile, and even be done with it.
                before, seen = seen.keys, self._seen(ground, study, trial)
                if keys(point[None])[0] not in seen.keys - before:
                    break
            return values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        _one_objective(study)
        if self._independent is not None:
            return self._independent.sample_independent(study, trial, param_name, param_distribution)
        axis = Axis(param_name, param_distribution)
        random = generator(self.seed, "independent", trial.number, param_name)
        return axis.value(float(axis.draw(1, random)[0]))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self._independent is not None:
            self._independent.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        unasked = [name for name in self._distributions or () if name not in trial.params]
        if unasked and state == TrialState.COMPLETE:
            warnings.warn(
                f"trial {trial.number} has not asked for {', '.join(unasked)}, of the space given to the sampler: "
                "nothing can be learnt from it",
                stacklevel=2,
            )
        if self._independent is not None:
            self._independent.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Draws are keyed by the number of the trial, so threads do not share any; only the other sampler's may."""
        if self._independent is not None:
            self._independent.reseed_rng()

    # what is asked beside -------------------------------------------------------------------------------------------

    def answers(self, study: Study) -> dict[str, FrozenTrial | None]:
        """For each budget the best of the complete trials within it; None where there is none."""
        _one_objective(study)
        trials = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        with self._lock:
            ground = self._ground(self.infer_relative_search_space(study, None))  # type: ignore[arg-type]
            placed = [(trial, point) for trial in trials if (point := ground.point(trial.params)) is not None]
            if not placed:
                return dict.fromkeys(self._budgets)
            points = np.stack([point for _, point in placed])
            values = np.array([trial.value for trial, _ in placed], np.float64)
            signed = values if study.direction == StudyDirection.MAXIMIZE else -values
            # By all that a trial was, of which the search space may be a part.
            costs = ground.costs_of([trial.params for trial, _ in placed]) if self._cost else ground.costs(points)
            best = best_within(signed, ground.within(costs, len(points)))
        found = [None if index is None else placed[index][0] for index in best]
        return dict(zip(self._budgets, found, strict=True))

    # state ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._grounds: list[Ground] = []
        self._tuned: tuple[bytes, Hyperparameters] | None = None

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_lock", "_grounds", "_tuned", "_space")
        state = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return {**state, "table": self._space and self._space.table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        table = state.pop("table")
        self.__dict__.update(state, _space=table and Space(table))
        self._begin()

    def _ground(self, distributions: Mapping[str, BaseDistribution]) -> Ground:
        for ground in self._grounds:
            if ground.distributions == distributions:
                return ground
        shared: dict[str, Any] = {"candidates": self._candidates, "seed": self.seed, "space": self._space}
        ground = Ground(distributions, budgets=self._budgets, cost=self._cost, **shared)
        self._grounds = [ground, *self._grounds][:_GROUNDS]
        return ground

    # picks ----------------------------------------------------------------------------------------------------------

    def _seen(self, ground: Ground, study: Study, trial: FrozenTrial) -> _Seen:
        """The other trials, those that have ended in the order in which they did."""
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        ended, pending = [], []
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number:
                continue
            if not other.state.is_finished():
                if (point := _promised(ground, other)) is not None:
                    pending.append(point)
                continue
            key = (other.number, other.datetime_start, other.datetime_complete)
            if (point := ground.remembered_point(key, other.params)) is not None:
                failed = other.state == TrialState.FAIL
                label = np.nan if failed else sign * _value(other)
                ended.append((other.datetime_complete, other.number, point, label, failed))
        ended.sort(key=lambda row: row[:2])
        width = (0, len(ground.axes))
        points = [point for *_, point, _, _ in ended]
        counted = [i for i, row in enumerate(ended) if not row[4] or self._failed == "worst"]
        return _Seen(
            np.array(points or np.empty(width)),
            np.array(counted, np.intp),
            _finite(np.array([ended[i][3] for i in counted], np.float64)),
            np.array(pending or np.empty(width)),
        )

    def _pick(self, ground: Ground, seen: _Seen, trial: FrozenTrial) -> Points:
        taken, fixed = seen.keys, _fixed(ground, trial)
        trained = seen.ended[seen.counted]
        if len(trained) < self._first or not np.isfinite(seen.labels).any():
            return self._first_pick(ground, trial.number, taken, fixed)
        model = self._model(ground, trained, seen.labels)
        if len(seen.pending):
            model = model.believing(ground.batch(seen.pending, ground.costs(seen.pending)))

        random = generator(self.seed, "neighbours", trial.number)
        share = min(1.0, (_FEW / len(trained)) ** 2)
        points = ground.fresh(trial.number)
        if ground.everything is None:
            points = points[:: max(1, round(1 / share))]
            parents = self._parents(ground, trained, seen.labels)
            more = max(1, int(share * self._candidates / 4))
            points = np.concatenate([points, ground.mutants(parents, more, random)])
        chosen = _Choice(ground, model, fixed)
        chosen.add(points)
        for _ in range(0 if ground.everything is not None else _CLIMBS):
            best = chosen.pick(trial.number, self.seed, seen.keys, _CLIMBERS)
            chosen.add(ground.mutants(chosen.points[best], max(1, more // 2), random))
        return chosen.points[chosen.pick(trial.number, self.seed, seen.keys)[0]]

    def _first_pick(self, ground: Ground, number: int, taken: set[bytes], fixed: Mapping[int, float]) -> Points:
        """The trial's place in one order of random candidates, or what comes after it."""
        points = _with_fixed(ground.pool, fixed)
        within = _admitted(ground.within(ground.costs(points), len(points)), fixed)
        free = np.array([key not in taken for key in keys(points)])
        order = first_picks(within, max(2 * self._first, 64), seed=self.seed)
        turn = number % len(order)
        for index in (*order[turn:], *order[:turn]):
            if free[index]:
                return points[index]
        rest = first_picks(within, 1, seed=self.seed, free=free)
        return points[rest[0] if rest else order[turn]]

    def _parents(self, ground: Ground, trained: Points, labels: NDArray[np.float64]) -> Points:
        """The best of each budget."""
        order = np.argsort(-np.where(np.isfinite(labels), labels, -np.inf), kind="stable")
        within = ground.within(ground.costs(trained), len(trained))[:, order]
        best = [order[np.flatnonzero(admitted)[:_PARENTS]] for admitted in within]
        rows = np.concatenate(best)
        return trained[rows if len(rows) else order[:_PARENTS]]

    def _model(self, ground: Ground, points: Points, labels: NDArray[np.float64]) -> ProcessModel:
        """Conditioned on all labels; its hyperparameters are those of the last count of labels at which to tune."""
        unlabelled = ground.batch(ground.pool, ground.costs(ground.pool))
        batch = ground.batch(points, ground.costs(points))

        def fit(n: int, **settings: Any) -> ProcessModel:
            settings["seed"] = self.seed
            model = fit_model("gaussian_process", ground.domain, unlabelled, batch[:n], labels[:n], **settings)
            assert isinstance(model, ProcessModel)
            return model

        mark = self._first
        while (following := mark + max(1, mark // 10)) <= len(labels):
            mark = following
        if not np.isfinite(labels[:mark]).any():
            mark = len(labels)
        key = repr(list(ground.distributions.items())).encode() + points[:mark].tobytes() + labels[:mark].tobytes()
        if self._tuned is None or self._tuned[0] != key:
            self._tuned = (key, fit(mark).process.at)
        return fit(len(labels), begin=self._tuned[1], tune=False)

    def _announce(self, ground: Ground, study: Study, trial: FrozenTrial, values: Mapping[str, Any]) -> None:
        """Tell others what this trial is, which has no parameters until the objective has asked for them."""
        text = json.dumps(ground.numbers(values))
        for i in range(0, len(text), _LONGEST):
            key = f"{_ANNOUNCED}:{i // _LONGEST}"
            study._storage.set_trial_system_attr(trial._trial_id, key, text[i : i + _LONGEST])


@dataclass(frozen=True)
class _Seen:
    ended: Points
    counted: NDArray[np.intp]  # which of them have labels
    labels: NDArray[np.float64]  # the higher the better, between -1 and 1; NaN is a failed trial
    pending: Points

    @cached_property
    def keys(self) -> set[bytes]:
        return {*keys(self.ended), *keys(self.pending)}


class _Choice:
    """Candidates of one pick with what is known of them."""

    def __init__(self, ground: Ground, model: ProcessModel, fixed: Mapping[int, float]) -> None:
        self.ground, self.model, self.fixed = ground, model, fixed
        self.points = np.empty((0, len(ground.axes)))
        self.posterior = np.empty((2, 0))
        self.within = np.empty((len(ground.budgets), 0), np.bool_)
        self.keys: list[bytes] = []

    def add(self, points: Points) -> None:
        points = _with_fixed(points, self.fixed)
        costs = self.ground.costs(points)
        within = _admitted(self.ground.within(costs, len(points)), self.fixed)
        rows = np.flatnonzero(within.any(axis=0))
        batch = self.ground.batch(points[rows], {name: column[rows] for name, column in costs.items()})
        self.points = np.concatenate([self.points, batch.points])
        self.posterior = np.concatenate([self.posterior, np.array(self.model.posterior(batch))], axis=1)
        self.within = np.concatenate([self.within, within[:, rows]], axis=1)
        self.keys += keys(batch.points)

    def pick(self, turn: int, seed: int, taken: set[bytes], n: int = 1) -> list[int]:
        """The best `n` for one turn. What was tried is picked again only where there is nothing else."""
        free = np.array([key not in taken for key in self.keys], np.bool_)
        mean, deviation = self.posterior
        picks: list[int] = []
        for _ in range(n):
            picks += aimed_picks(mean, deviation, self.within, 1, turn=turn, seed=seed, free=free)
            free[picks] = False
        return picks or aimed_picks(mean, deviation, self.within, 1, turn=turn, seed=seed)


def suggest(trial: Trial, space: Space) -> NDArray[np.uint8]:
    """Ask a trial for every variable of a table's space; returns the genome, uint8 ``(variables,)``."""
    genome = []
    for variable in space.variables:
        match distribution := distribution_of(variable):
            case IntDistribution(low=low, high=high, step=step):
                genome.append((trial.suggest_int(variable.name, low, high, step=step) - low) // step)
            case _:
                value = trial.suggest_categorical(variable.name, variable.values)
                genome.append(int(distribution.to_internal_repr(value)))
    return np.array(genome, np.uint8)


def _one_objective(study: Study) -> None:
    if len(study.directions) > 1:
        raise PynasError(f"NARSSampler: {len(study.directions)} objectives; allowed: one, and budgets on costs")


def _too_many(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution) and len(distribution.choices) > MOST_CHOICES


def _checked(distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    if not isinstance(distributions, Mapping) or not distributions:
        raise PynasError(f"space {distributions!r}; allowed: a Space, the name of a table, or distributions by name")
    for name, distribution in distributions.items():
        if not isinstance(distribution, BaseDistribution):
            raise PynasError(f"space {name}: {distribution!r}; allowed: Optuna's distributions")
        if _too_many(distribution):
            raise PynasError(f"space {name}: {len(distribution.choices)} choices; allowed: up to {MOST_CHOICES}")  # type: ignore[attr-defined]
    return dict(distributions)


def _value(trial: FrozenTrial) -> float:
    """A pruned trial counts as what it reported last; NaN where it has reported nothing."""
    if trial.value is not None:
        return float(trial.value)
    reported = trial.intermediate_values
    return float(reported[max(reported)]) if reported else np.nan


def _finite(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Infinite labels as the best or worst finite one, and all of them as parts of the largest."""
    finite = labels[np.isfinite(labels)]
    if len(finite) == 0:
        return np.full(len(labels), np.nan)
    clipped = np.clip(labels, finite.min(), finite.max())  # NaN stays
    return clipped / max(np.abs(finite).max(), np.finfo(float).tiny)


def _promised(ground: Ground, trial: FrozenTrial) -> Points | None:
    """The point of a trial that has not ended, as far as it is known."""
    attributes = trial.system_attrs
    values = {**attributes.get("fixed_params", {}), **trial.params}
    if (point := ground.point(values)) is not None:
        return point
    parts: list[str] = []
    while (part := attributes.get(f"{_ANNOUNCED}:{len(parts)}")) is not None:
        parts.append(part)
    try:
        numbers = json.loads("".join(parts)) if parts else {}
    except json.JSONDecodeError:  # half of it is written
        return None
    named = [axis for axis in ground.axes if axis.name in values]
    try:
        known = {axis.name: axis.distribution.to_internal_repr(values[axis.name]) for axis in named}
    except ValueError:  # enqueued with what its distribution cannot have: that trial will fail, not this one
        return None
    return ground.point_of({**numbers, **known})


def _fixed(ground: Ground, trial: FrozenTrial) -> dict[int, float]:
    """Coordinates that were fixed when the trial was enqueued."""
    values = trial.system_attrs.get("fixed_params", {})
    fixed = {}
    for i, axis in enumerate(ground.axes):
        if axis.name in values:
            try:
                number = axis.distribution.to_internal_repr(values[axis.name])
            except ValueError:
                continue
            if axis.distribution._contains(number):
                fixed[i] = float(axis.points(np.array([float(number)]))[0])
    return fixed


def _with_fixed(points: Points, fixed: Mapping[int, float]) -> Points:
    points = points.copy() if fixed else points
    for i, value in fixed.items():
        points[:, i] = value
    return points


def _admitted(within: NDArray[np.bool_], fixed: Mapping[int, float]) -> NDArray[np.bool_]:
    """What somebody has fixed goes before the budgets, where no candidate has both."""
    return np.ones_like(within) if fixed and not within.any() else within
