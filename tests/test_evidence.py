"""The tables of trainings in benchmarks/: their plans, and what they make of results."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pynas
from pynas.data.config import DataConfig
from pynas.fpnas.config import SupernetConfig
from pynas.nets.load import ModelSpec
from pynas.train.config import TrainingRecipe

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ("harness", "trainings", "table8_ema_distillation", "table6_swapped_recipes", "table1_recipes")
NAMES += ("supernets", "table5_sampling", "table4_search_space_size")
NAMES += ("search_settings", "table7_split_attention", "search_methods")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    from importlib import import_module

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")  # put back what harness sets
        yield {name: import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def results_of(planned: Sequence[Any], accuracies: dict[str, float], noise: float) -> dict[tuple[str, int], Any]:
    def result(training: Any) -> dict[str, Any]:
        value = accuracies[training.cell] + noise * training.seed
        curve = [value - 0.1, value - 0.05, value - 0.02, value]
        return {"test_accuracy": value, "curve": curve, "raw_curve": [0.9 * entry for entry in curve]}

    return {(training.cell, training.seed): result(training) for training in planned}


def checked(planned: Sequence[Any]) -> None:
    """Every planned training is one that pynas accepts."""
    for training in planned:
        ModelSpec.from_dict(training.model)
        TrainingRecipe(**training.recipe)
        DataConfig(**training.data)


def test_difference_is_told_only_beyond_the_noise(scripts: dict[str, ModuleType]) -> None:
    difference = scripts["trainings"].Difference
    clear = difference.of([0.82, 0.83, 0.84], [0.80, 0.81, 0.8201])
    assert clear.mean == pytest.approx(0.01997, abs=1e-5)
    assert clear.half == pytest.approx(4.3027 * 5.7735e-5 / 3**0.5, rel=1e-3)
    assert [clear.verdict(paper) for paper in (1.3, -1.3)] == ["agrees", "the opposite"]
    assert difference.of([0.82, 0.80, 0.81], [0.80, 0.82, 0.80]).verdict(1.3) == "cannot tell"
    assert difference.of([0.9], [0.8]).verdict(1.3) == "cannot tell"
    assert difference.of([0.9, 0.9], [0.9, 0.9]).verdict(1.3) == "cannot tell"


def test_table8(scripts: dict[str, ModuleType]) -> None:
    script = scripts["table8_ema_distillation"]
    spec = script.network()
    assert 2.39e6 < spec.architecture.cost()["flops"] <= 2.4e6
    planned = script.plan(spec, 3, quick=False)
    checked(planned)
    assert {(training.cell, training.teacher) for training in planned} == {("labels", None), ("distilled", "labels")}
    results = results_of(planned, {"labels": 0.8, "distilled": 0.85}, noise=0.01)
    rows, claims, remark = script.evaluate(results, 3)
    assert {len(row) for row in rows} == {5}
    assert rows[2][1] == "72.90 (sd 0.90)"
    assert "Baseline < Dist < EMA < Dist+EMA; the paper's: Baseline < Dist < EMA < Dist+EMA" in remark
    verdicts = [claim.verdict for claim in claims]
    assert verdicts == ["agrees"] * 6 + ["the opposite"]  # here EMA brings the most at the end


def test_table6(scripts: dict[str, ModuleType]) -> None:
    script = scripts["table6_swapped_recipes"]
    space = pynas.load_space("fbnetv3_28")
    genomes = space.sample(2, seed=0)
    designs = [space.decode(genome) for genome in genomes]
    found = {
        name: ModelSpec.of(architecture, recipe=recipe)
        for name, (architecture, recipe) in zip(("small", "large"), designs)
    }
    training = script.TrainingConfig(epochs=2, batch_size=32)
    planned = script.plan(found, training, {"name": "fashion-mnist", "train": 100}, 3, False)
    checked(planned)
    assert len(planned) == 12
    own = {f"{a} with {b}": 0.8 + 0.02 * (a == b) for a in found for b in found}
    rows, claims = script.evaluate(results_of(planned, own, noise=0.01), 3)
    assert [row[3] for row in rows] == ["+1.3", "+2.00 ± 0.00", "+0.5", "+2.00 ± 0.00"]
    assert [claim.verdict for claim in claims] == ["agrees", "agrees"]
    assert set(script.compared(found)) <= set(found["small"].recipe.to_dict())


def test_table1(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts["table1_recipes"]
    spec = pynas.nets.load.read_model("resnet18_2x_depth", classes=10, input_channels=1)
    monkeypatch.setattr(script, "model_for_data", lambda name, data: spec)
    planned = script.plan(3, quick=False)
    checked(planned)
    assert {training.recipe["epochs"] for training in planned} == {3, 9}
    assert {training.recipe["lr"] for training in planned} == {0.025}
    cells = {training.cell: 0.7 for training in planned} | {"2x depth with Recipe-2": 0.75}
    rows, claims = script.evaluate(results_of(planned, cells, noise=0.01), 3)
    assert {len(row) for row in rows} == {3}
    assert [claim.verdict for claim in claims] == ["cannot tell", "agrees", "agrees", "cannot tell", "agrees"]


def found_by(searches: Sequence[Any], samples: dict[str, int], seeds: int) -> dict[tuple[str, int], Any]:
    """Results of searches that all find the first random genome below 0.6 MFLOPs of their space."""
    from supernets import random_genomes

    genomes = {search.space: random_genomes(search.space, 1, (0.4e6, 0.6e6), 0)[0] for search in searches}

    def result(search: Any) -> dict[str, Any]:
        drawn = samples[search.arm] + search.seed
        rows = [{"samples": drawn, "entropy": 5.0, "costs": {"flops": 6e5}}] * search.config["epochs"]
        cost = {"samples": drawn, "seconds": float(drawn), "cpu_seconds": float(drawn), "entropy": 5.0}
        return {"genome": genomes[search.space], "history": rows, "accuracy": 0.3, **cost}

    assert {search.seed for search in searches} == set(range(seeds))
    return {(search.arm, search.seed): result(search) for search in searches}


def test_tables_of_searches(scripts: dict[str, ModuleType]) -> None:
    shared = scripts["supernets"]
    for name, verdicts in (
        ("table5_sampling", ["agrees"] * 18),
        ("table4_search_space_size", ["agrees", "agrees", "agrees"]),
    ):
        script = scripts[name]
        searches = shared.plan_searches(script.ARMS, 3, False)
        for search in searches:
            SupernetConfig(**search.config)
            DataConfig(**search.data)
            assert shared.plan_searches(script.ARMS, 3, True)[0].config["epochs"] == 3
        assert len({search.folder for search in searches}) == len(searches)
        samples = {arm: 1000 - 100 * i for i, arm in enumerate(script.ARMS)}
        found = found_by(searches, samples, 3)
        planned = shared.plan_trainings(script.ARMS, found, 3, False)
        checked(planned)
        random = {f"random {i}": 0.6 + 0.05 * i for i in range(len(shared.RANDOM))}
        better = {arm: 0.5 + 0.1 * (arm == "fine: lambda = 0.54, joint") for arm in script.ARMS}
        trained = results_of(planned, random | better, noise=0.01)
        told = shared.tell(planned, found, trained)
        rows, claims, *remarks = script.evaluate(told)
        assert all("mean of all arms: -" in remark for remark in remarks)
        assert {len(row) for row in rows} == {len(shared.COLUMNS)}
        assert [claim.verdict for claim in claims] == verdicts


def test_trend_is_a_line_in_the_logarithm_of_flops(scripts: dict[str, ModuleType]) -> None:
    shared = scripts["supernets"]
    told = {}
    for seed in range(2):
        for i, flops in enumerate((4e5, 7e5, 1e6)):
            told[f"random {i}", seed] = {"flops": flops * (1 + seed), "accuracy": 0.1 * math.log(flops) + 0.2 * seed}
        told["arm", seed] = {"flops": 5e5 * (1 + seed), "accuracy": 0.1 * math.log(5e5) + 0.2 * seed + 0.03}
    trend = shared.Trend.of(told)
    assert trend.slope == pytest.approx(0.1)
    assert trend.beyond(told, "arm").values == pytest.approx((0.03, 0.03))


def test_equal_is_told_only_within_a_point(scripts: dict[str, ModuleType]) -> None:
    equal, difference = scripts["supernets"].Equal, scripts["trainings"].Difference
    cases = ((0.001, 0.002, 0.003), (0.02, 0.021, 0.022), (-0.02, 0.01, 0.03))
    verdicts = [equal("", 0.0, difference(values)).verdict for values in cases]
    assert verdicts == ["agrees", "the opposite", "cannot tell"]


def genomes_by(arms: dict[str, str], seeds: int) -> dict[tuple[str, int], Any]:
    """A genome of each arm's space for every seed, with squeeze-and-excite in every row."""
    found = {}
    for arm, table in arms.items():
        space = pynas.load_space(table)
        for seed, genome in enumerate(space.sample(seeds, seed=1)):
            for i, variable in enumerate(space.variables):
                genome[i] = 1 if variable.name.endswith(".se") else genome[i]
            found[arm, seed] = {"genome": genome.tolist(), "cpu_seconds": 9.0, "passes": 2e9, "trained": 6}
    return found


def test_table7(scripts: dict[str, ModuleType]) -> None:
    script = scripts["table7_split_attention"]
    planned = script.plan(genomes_by(script.SEARCHED, 3), 3, quick=False)
    checked(planned)
    assert [training.cell for training in planned[:4]] == ["FP-NAS", "2 splits", "4 splits", "FP-NAS++"]
    rows = [ModelSpec.from_dict(training.model).architecture.rows for training in planned[:3]]
    flops = [ModelSpec.from_dict(training.model).architecture.cost()["flops"] for training in planned[:3]]
    assert flops[0] < flops[1] < flops[2]
    for first, two, four in zip(*rows, strict=True):
        assert (first.se, two.se, four.se) in ((True, 2, 4), (False, False, False))
        assert first.k == two.k == four.k
    cells = {"FP-NAS": 0.80, "2 splits": 0.81, "4 splits": 0.79, "FP-NAS++": 0.80}
    results = results_of(planned, cells, noise=0.01)
    rows, claims = script.evaluate(planned, results, 3)
    assert {len(row) for row in rows} == {6}
    assert [claim.verdict for claim in claims] == ["agrees", "the opposite", "cannot tell", "the opposite", "agrees"]
    assert set(rows[4][5]) <= set("01- ")


def test_search_methods(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    script = scripts["search_methods"]
    space = pynas.load_space(str(script.table(tmp_path / "space.yaml")))
    assert space.size["recipes"] == 1
    shipped = pynas.load_space(script.SPACE)
    assert [v.name for v in space.variables] == [v.name for v in shipped.variables]
    assert space.decode(space.sample(1)[0])[1].to_dict() == script.RECIPE
    warmed = {"epoch": 1, "samples": 10, "costs": {"flops": 100.0}}
    assert script.supernet_passes({"history": [warmed, {**warmed, "epoch": 2}]}, 1, 8) == 10 * 8 * 100 * (3 + 4)
    assert script.candidate_passes(100.0, 50, 3) == 100 * 50 * (3 * 3 + 1)
    found = genomes_by(dict.fromkeys(script.METHODS, script.SPACE), 3)
    settings = scripts["search_settings"]
    planned = [
        scripts["supernets"].from_scratch(method, seed, script.SPACE, result["genome"], *settings.final(seed, False))
        for (method, seed), result in found.items()
    ]
    checked(planned)
    results = results_of(planned, {"FP-NAS": 0.8, "NARS": 0.81, "random": 0.79}, noise=0.01)
    rows, differences = script.evaluate(found, results, 3)
    assert {len(row) for row in rows} == {7}
    assert [str(difference) for difference in differences.values()] == ["+1.00 ± 0.00", "+2.00 ± 0.00", "-1.00 ± 0.00"]


def test_report_says_what_came_out(
    scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shared = scripts["trainings"]
    claims = [
        shared.Claim("a over b", 1.3, shared.Difference((0.02, 0.021))),
        shared.Claim("c over d", 0.5, shared.Difference((0.02, -0.01))),
        shared.Claim("e over f", 1, shared.Difference((-0.02, -0.021)), sign_only=True),
    ]
    around = scripts["harness"].machine()
    options = argparse.Namespace(seeds=2, quick=False, json=tmp_path / "table.json", results=False)
    shared.report("table", options, around, ("", "x"), [("row", "1.0")], claims, {("x", 0): {}}, {"data": "few"})
    last = capsys.readouterr().out.splitlines()[-1]
    assert "beyond the noise and with the paper's sign: a over b; " in last
    assert "beyond the noise and opposite to the paper: e over f; " in last
    assert last.endswith("cannot tell from noise (the mean has the paper's sign in 1 of 1): c over d.")
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["conclusion"] == last
    assert [target["reached"] for target in document["targets"]] == [True, False, False]
