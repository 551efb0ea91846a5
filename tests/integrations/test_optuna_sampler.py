"""NARS under Optuna: its own tests of samplers, then budgets, failures, processes and what a pick is worth."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import FrozenTrial, Trial, TrialState

from pynas.errors import PynasError
from pynas.integrations.optuna import NARSSampler, suggest
from pynas.integrations.points import distribution_of
from pynas.search.trainings import _distribution
from pynas.space.space import load_space
from pynas.study.convert import to_distribution

optuna.logging.set_verbosity(optuna.logging.ERROR)


class _Suite(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's own tests."""


class TestAsItComes(_Suite):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return NARSSampler


class TestFromTheFirstTrialByTheModel(_Suite):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: NARSSampler(first=1, candidates=150)


def study_of(sampler: BaseSampler, **settings: Any) -> optuna.Study:
    return optuna.create_study(sampler=sampler, **settings)


def small(**settings: Any) -> NARSSampler:
    """A sampler that costs little time."""
    return NARSSampler(**{"first": 6, "candidates": 300, "seed": 0, **settings})


def mixed(trial: Trial) -> float:
    """Smallest, 0, at x = 0.3, lr = 1e-2, n = 5, kind = b."""
    x = trial.suggest_float("x", 0, 1)
    lr = trial.suggest_float("lr", 1e-4, 1, log=True)
    n = trial.suggest_int("n", 1, 12)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    away = {"a": 1.0, "b": 0.0, "c": 0.5}[kind]
    return 4 * (x - 0.3) ** 2 + (math.log10(lr) + 2) ** 2 / 4 + ((n - 5) / 6) ** 2 + away


def points(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(trial.params.items()) for trial in study.trials]


# what a pick is worth ---------------------------------------------------------------------------------------------


def test_it_comes_much_nearer_to_the_optimum_than_random_trials() -> None:
    def best(sampler: BaseSampler) -> float:
        study = study_of(sampler)
        study.optimize(mixed, n_trials=35)
        return study.best_value

    ours = [best(small(seed=seed, first=10)) for seed in range(3)]
    random = [best(RandomSampler(seed)) for seed in range(3)]
    assert np.mean(ours) < 0.5 * np.mean(random)
    assert max(ours) < 0.1


def test_maximising_the_negative_picks_the_same() -> None:
    down = study_of(small(), direction="minimize")
    down.optimize(mixed, n_trials=14)
    up = study_of(small(), direction="maximize")
    up.optimize(lambda trial: -mixed(trial), n_trials=14)
    assert points(up) == points(down)


def test_a_seed_gives_the_same_trials_also_when_resumed() -> None:
    whole = study_of(small())
    whole.optimize(mixed, n_trials=16)
    again = study_of(small())
    again.optimize(mixed, n_trials=11)
    again.sampler = small()
    again.optimize(mixed, n_trials=5)
    assert points(again) == points(whole)
    other = study_of(small(seed=1))
    other.optimize(mixed, n_trials=1)
    assert points(other) != points(whole)[:1]


def test_a_pickled_sampler_goes_on() -> None:
    study = study_of(small(space="fbnetv3_28", budgets={"small": {"flops": "2M"}}))
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(lambda trial: float(suggest(trial, SPACE).sum()), n_trials=2)
    assert len(study.trials) == 2


# tables' spaces and budgets ---------------------------------------------------------------------------------------

SPACE = load_space("fbnetv3_28")
BUDGETS = {"small": {"flops": "1M:2M"}, "large": {"flops": (2e6, 4e6), "params": 300e3}}


def joint(trial: Trial) -> float:
    genome = suggest(trial, SPACE)
    return float(SPACE.features(genome[None])[0, ::3].sum() + 1e-7 * SPACE.costs(genome[None])["flops"][0])


def costs(trial: FrozenTrial) -> dict[str, float]:
    genome = [SPACE_AXES[name].index(value) for name, value in trial.params.items()]
    counted = SPACE.costs(np.array([genome], np.uint8))
    return {name: float(column[0]) for name, column in counted.items()}


SPACE_AXES = {variable.name: list(variable.values) for variable in SPACE.variables}


def fits(trial: FrozenTrial, name: str) -> bool:
    cost = costs(trial)
    small_one = 1e6 <= cost["flops"] <= 2e6
    return small_one if name == "small" else 2e6 <= cost["flops"] <= 4e6 and cost["params"] <= 300e3


def test_a_tables_space_keeps_within_its_budgets_and_serves_each() -> None:
    sampler = small(space=SPACE, budgets=BUDGETS)
    study = study_of(sampler, direction="maximize")
    study.optimize(joint, n_trials=16)
    served = {name: sum(fits(trial, name) for trial in study.trials) for name in BUDGETS}
    assert sum(served.values()) == 16  # all of them, and the bounds meet nowhere
    assert min(served.values()) >= 6
    assert len(set(points(study))) == 16
    answers = sampler.answers(study)
    for name, answer in answers.items():
        assert answer is not None
        assert answer.value == max(t.value for t in study.trials if t.value is not None and fits(t, name))


def test_the_distributions_of_a_table_are_those_of_its_studies() -> None:
    for name in ("fbnetv3", "fbnetv3_28"):
        for variable in load_space(name).variables:
            assert distribution_of(variable) == to_distribution(variable.name, _distribution(variable))


def flops(values: dict[str, Any]) -> dict[str, float]:
    return {"flops": 1e3 * values["n"] ** 2 * values["width"], "seconds": 1e-3 * values["n"]}


WITH_COST: dict[str, BaseDistribution] = {
    "n": IntDistribution(1, 50),
    "width": IntDistribution(8, 512, log=True),
    "rate": FloatDistribution(0, 1),
}


def expensive(trial: Trial) -> float:
    params = [trial.suggest_int("n", 1, 50), trial.suggest_int("width", 8, 512, log=True)]
    return math.log(params[0] * params[1]) - (trial.suggest_float("rate", 0, 1) - 0.5) ** 2


def test_a_function_of_the_user_bounds_the_costs_from_the_first_trial_where_the_space_is_told() -> None:
    budgets = {"tiny": {"flops": (1e5, 2e5)}, "any": {"flops": "2M", "seconds": (None, 0.02)}}
    study = study_of(small(space=WITH_COST, budgets=budgets, cost=flops), direction="maximize")
    study.optimize(expensive, n_trials=14)
    told = [flops(trial.params) for trial in study.trials]
    assert all(cost["flops"] <= 2e6 and cost["seconds"] <= 0.02 for cost in told)
    assert sum(1e5 <= cost["flops"] <= 2e5 for cost in told) >= 5


def test_without_a_space_the_costs_are_bounded_once_it_is_known() -> None:
    study = study_of(
        small(budgets={"b": {"cost": 3e5}}, cost=lambda values: flops(values)["flops"]), direction="maximize"
    )
    study.optimize(expensive, n_trials=12)
    assert all(flops(trial.params)["flops"] <= 3e5 for trial in study.trials[1:])


def test_a_narrow_budget_is_found_by_going_downhill() -> None:
    narrow = {"narrow": {"flops": (123_000, 124_000)}}
    study = study_of(small(space=WITH_COST, budgets=narrow, cost=flops, candidates=100))
    study.optimize(expensive, n_trials=3)
    assert all(123_000 <= flops(trial.params)["flops"] <= 124_000 for trial in study.trials)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "all over budget": (
        {"space": WITH_COST, "cost": flops, "budgets": {"b": {"flops": 10}}},
        r"budget b: no candidate found within it \(flops=:10, found from 8k to ",
    ),
    "over a table's": ({"space": "fbnetv3_28", "budgets": {"b": {"flops": 2}}}, "flops of at most 2; genomes of this"),
    "everything listed": (
        {"space": {"n": IntDistribution(2, 5)}, "cost": lambda v: v["n"], "budgets": {"b": {"cost": 1}}},
        "found from 2 to 5",
    ),
    "no cost": ({"budgets": {"b": {"flops": 10}}}, "budgets: nothing tells what a candidate costs"),
    "unknown cost": (
        {"space": WITH_COST, "cost": flops, "budgets": {"b": {"flop": 10}}},
        "budget b: unknown cost 'flop'; allowed: flops, seconds",
    ),
    "unknown cost of a table": ({"space": "fbnetv3_28", "budgets": {"b": {"flop": 1}}}, "unknown cost 'flop'"),
    "cost of a table": ({"space": "fbnetv3_28", "cost": flops}, "cost: the costs of a table's space are counted"),
    "cost without a value": ({"space": WITH_COST, "cost": lambda _: math.nan}, "cost: .*; allowed: finite numbers"),
    "cost that gives nothing": (
        {"space": WITH_COST, "cost": lambda _: None, "budgets": {"b": {"flops": 10}}},
        "cost: {'cost': None} for .*; allowed: finite numbers",
    ),
    "no costs": (
        {"space": WITH_COST, "cost": lambda _: {}, "budgets": {"b": {"flops": 10}}},
        "cost: {} for .*; allowed",
    ),
    "bounds": ({"cost": flops, "budgets": {"b": {"flops": (3, 1)}}}, "the lower bound 3 is above the upper bound 1"),
    "budget": ({"cost": flops, "budgets": {"b": 3}}, "budget b: 3; allowed: a mapping"),
    "first": ({"first": 0}, "first 0; allowed: whole numbers of at least 1"),
    "candidates": ({"candidates": 1.5}, "candidates 1.5; allowed"),
    "seed": ({"seed": -1}, "seed -1; allowed"),
    "failed": ({"failed": "maybe"}, "failed 'maybe'; allowed: worst, ignored"),
    "space": ({"space": {"x": 3}}, "space x: 3; allowed: Optuna's distributions"),
    "choices": ({"space": {"x": CategoricalDistribution(range(999))}}, "space x: 999 choices; allowed: up to 256"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=list(WRONG))
def test_what_the_user_can_mend_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PynasError, match=message):
        NARSSampler(**settings)


# trials of every kind ---------------------------------------------------------------------------------------------


def test_a_small_space_is_tried_whole_before_anything_twice() -> None:
    def objective(trial: Trial) -> float:
        return trial.suggest_int("a", 0, 3) + trial.suggest_categorical("b", [10, 20, 30])

    space = {"a": IntDistribution(0, 3), "b": CategoricalDistribution([10, 20, 30])}
    study = study_of(small(space=space))
    study.optimize(objective, n_trials=14)
    assert len(set(points(study)[:12])) == 12
    assert len(study.trials) == 14


def test_values_of_every_kind_come_back_as_they_are() -> None:
    space: dict[str, BaseDistribution] = {
        "f": FloatDistribution(-1e300, 1e300),
        "many": IntDistribution(0, 2**40, step=8),
        "log": IntDistribution(1, 2**30, log=True),
        "stepped": FloatDistribution(-10.2, 10.2, step=0.1),
        "few": FloatDistribution(0, 0.3, step=0.1),
        "odd": CategoricalDistribution([None, True, "x", 2.5]),
        "one": FloatDistribution(2, 2),
    }
    study = study_of(small(first=2))
    for _ in range(8):
        trial = study.ask(space)
        for name, value in trial.params.items():
            distribution = space[name]
            assert distribution._contains(distribution.to_internal_repr(value))
            assert type(value) is {"many": int, "log": int, "odd": type(value)}.get(name, float)
        study.tell(trial, trial.params["log"] + trial.params["stepped"])


def test_failed_pruned_and_infinite_trials_teach_what_they_can() -> None:
    def objective(trial: Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        for step in range(3):
            trial.report(y + (3 - step), step)
            if y > 0.8:
                raise optuna.TrialPruned
        if x > 0.6:
            raise RuntimeError("out of memory")
        return {0: math.nan, 1: math.inf, 2: -math.inf}.get(trial.number, y - x)

    for failed in ("worst", "ignored"):
        study = study_of(small(failed=failed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.optimize(objective, n_trials=24, catch=(RuntimeError,))
        states = [trial.state for trial in study.trials]
        assert {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL} <= set(states)
        if failed == "worst":  # it has seen where trainings fail, and looks elsewhere
            assert states[-8:].count(TrialState.FAIL) <= 2


def test_trials_of_which_all_have_failed_are_followed_by_random_ones() -> None:
    study = study_of(small(space=WITH_COST, first=1))
    for _ in range(4):
        study.tell(study.ask(WITH_COST), state=TrialState.FAIL)
    assert len(set(points(study))) == 4


def test_one_trial_and_one_after_it() -> None:
    study = study_of(small(first=1))
    study.optimize(mixed, n_trials=2)
    assert len(set(points(study))) == 2


def test_a_parameter_of_the_given_space_that_is_never_asked_for_is_told() -> None:
    study = study_of(small(space={"x": FloatDistribution(0, 1), "unused": IntDistribution(0, 4)}))
    with pytest.warns(UserWarning, match="not asked for unused"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)


def test_parameters_that_come_and_go_and_ranges_that_move() -> None:
    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1 + trial.number % 2)
        depth = trial.suggest_int("depth", 1, 3)
        wide = trial.suggest_categorical("wide", [str(i) for i in range(300)])  # too many choices for the model
        return x + sum(trial.suggest_float(f"width{i}", 0, 1) for i in range(depth)) + len(wide)

    for independent in (None, RandomSampler(0)):
        study = study_of(small(independent_sampler=independent))
        study.optimize(objective, n_trials=20)
        assert len(study.trials) == 20
        shared = study.sampler.infer_relative_search_space(study, study.trials[0])
        assert list(shared) == ["depth", "width0"]


def test_what_is_enqueued_is_kept_and_the_rest_is_chosen_for_it() -> None:
    study = study_of(small(space=WITH_COST, budgets={"b": {"flops": 1e6}}, cost=flops, first=2))
    for n in (2, 2, 3, 3):
        study.enqueue_trial({"n": n})
    study.enqueue_trial({"n": 50, "width": 512})  # over budget, which goes before the budget
    study.optimize(expensive, n_trials=5)
    assert [trial.params["n"] for trial in study.trials] == [2, 2, 3, 3, 50]
    assert all(flops(trial.params)["flops"] <= 1e6 for trial in study.trials[:4])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def conditional(trial: Trial) -> float:
    layers, kind = trial.suggest_int("layers", 1, 8), trial.suggest_categorical("kind", ["a", "b"])
    wide = trial.suggest_int("width", 1, 64) if kind == "a" else trial.suggest_int("rank", 1, 8)
    return -float(layers * wide)


def test_answers_are_within_their_budgets_by_all_that_a_trial_was() -> None:
    def cost(values: dict[str, Any]) -> dict[str, float]:
        return {"flops": values["layers"] * values.get("width", values.get("rank", 1))}

    study = study_of(small(cost=cost, budgets={"s": {"flops": 100}}))
    study.optimize(conditional, n_trials=16)
    sampler = study.sampler
    assert isinstance(sampler, NARSSampler)
    answer = sampler.answers(study)["s"]
    assert answer is not None
    within = [trial for trial in study.trials if cost(trial.params)["flops"] <= 100]
    assert len(within) < 16
    assert answer.value == min(trial.value for trial in within if trial.value is not None)


def test_a_cost_function_that_fails_is_told_with_what_it_was_given() -> None:
    study = study_of(small(cost=lambda values: values["width"], budgets={"s": {"cost": 100}}))
    with pytest.raises(PynasError, match="cost: KeyError: 'width', called with"):
        study.optimize(conditional, n_trials=16)


def test_what_is_enqueued_wrongly_fails_alone() -> None:
    study = study_of(small())
    for values in ({"x": 99.0, "n": 3}, {"x": "abc"}, {"zzz": 1}, {}):
        study.enqueue_trial(values)
    study.optimize(mixed, n_trials=12, catch=ValueError)
    failed = [trial.number for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed in ([1], [0, 1])  # Optuna warns of a value out of range, and takes it


def test_another_sampler_may_fix_parameters_but_not_those_of_a_table() -> None:
    study = study_of(optuna.samplers.PartialFixedSampler({"n": 3}, small(first=2)))
    study.optimize(mixed, n_trials=5)
    assert {trial.params["n"] for trial in study.trials} == {3}
    study.sampler = optuna.samplers.PartialFixedSampler({"ema": True}, small(space=SPACE))
    with pytest.raises(PynasError, match=r"ema: fixed by another sampler; fix it by load_space\(\.\.\., pin="):
        suggest(study.ask(), SPACE)


def test_a_study_with_a_pruner_that_splits_it() -> None:
    def objective(trial: Trial) -> float:
        value = mixed(trial)
        for step in range(9):
            trial.report(value + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = study_of(small(first=3), pruner=optuna.pruners.HyperbandPruner(max_resource=9))
    study.optimize(objective, n_trials=15)
    assert len(study.trials) == 15


# at the same time -------------------------------------------------------------------------------------------------


def test_trials_under_way_are_not_picked_again_and_repel() -> None:
    space = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])}
    study = study_of(small(space=space, first=2))
    for _ in range(6):
        trial = study.ask(space)
        study.tell(trial, (trial.params["x"] - 0.5) ** 2)
    asked = [study.ask(space) for _ in range(5)]
    assert len({trial.params["x"] for trial in asked}) == 5
    # A trial that has asked for nothing yet is known by what the sampler announced of it.
    bare = study.ask()
    assert bare.relative_params
    frozen = next(trial for trial in study.trials if trial.number == bare.number)
    assert frozen.params == {}
    assert json.loads(frozen.system_attrs["nars:params:0"])["x"] == bare.relative_params["x"]


def test_threads_share_a_sampler_without_trials_that_are_the_same() -> None:
    def objective(trial: Trial) -> float:
        return sum(trial.suggest_int(name, 0, 4) for name in "abc")

    space = {name: IntDistribution(0, 4) for name in "abc"}
    study = study_of(small(space=space))
    study.optimize(objective, n_trials=24, n_jobs=2)
    assert len({tuple(sorted(point)) for point in points(study)}) == 24


def _work(path: str, seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(path))
    space = {name: IntDistribution(0, 4) for name in "abc"}
    study = optuna.load_study(study_name="shared", storage=storage, sampler=small(seed=seed, space=space))
    study.optimize(lambda trial: float(sum(trial.suggest_int(name, 0, 4) for name in "abc")), n_trials=14)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["one seed", "a seed each"])
def test_processes_share_a_journal_without_trials_that_are_the_same(tmp_path: Path, seeds: tuple[int, int]) -> None:
    path = str(tmp_path / "journal.log")
    storage = JournalStorage(JournalFileBackend(path))
    optuna.create_study(study_name="shared", storage=storage)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(path, seed)) for seed in seeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    study = optuna.load_study(study_name="shared", storage=JournalStorage(JournalFileBackend(path)))
    assert len(study.trials) == 28
    assert len({tuple(sorted(point)) for point in points(study)}) == 28
