"""`pynas search` with ``method: fpnas``: what a study leaves behind, and what it survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import run_pynas
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import pynas
import pynas.fpnas.study
from pynas.errors import SearchStopped
from pynas.fpnas.config import FPNASConfig
from pynas.fpnas.study import SEARCH, search_budget
from pynas.listener import Silent
from pynas.runtime.executor import Done, Event, Executor, Failed, Progress
from pynas.search.config import read_config
from pynas.space.space import load_architecture, load_design

EXAMPLES = Path(__file__).parent.parent / "examples"
BUDGETS = {"cheap": 20e3, "dear": 30e3}
EPOCHS = 4
PATIENCE = 240.0


def study(folder: Path, *changes: tuple[str, str]) -> Path:
    shutil.copy(EXAMPLES / "small.yaml", folder)
    text = (EXAMPLES / "supernet.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def search(path: Path, directory: Path, *options: str) -> dict[str, Any]:
    done = run_pynas("search", str(path), "--dir", str(directory), "--json", *options, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def timeless(results: Any) -> Any:
    """Results without what differs between two runs of one search: seconds, and where they lie."""
    if isinstance(results, dict):
        return {k: timeless(v) for k, v in results.items() if k not in ("seconds", "directory", "report")}
    return [timeless(value) for value in results] if isinstance(results, list) else results


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fpnas")
    return folder / "directory", search(study(folder), folder / "directory")


def test_every_budget_has_a_search_and_its_mode_is_the_winner(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, results = finished
    for name, target in BUDGETS.items():
        found, winner = results["searches"][name], results["winners"][name]
        assert found["targets"] == {"flops": target}
        assert [row["epoch"] for row in found["history"]] == [1, 2, 3, 4]
        assert found["samples"] == sum(row["samples"] for row in found["history"])
        assert winner["genome"] == found["genome"] == found["history"][-1]["genome"]
        assert 0 <= winner["final"]["accuracy"] <= 1
        assert 0 <= winner["final"]["test_accuracy"] <= 1
        assert winner["baseline"]["costs"]["flops"] <= winner["costs"]["flops"]
        architecture, recipe = load_design(directory / "winners" / f"{name}.yaml")
        assert architecture.cost() == winner["costs"]
        assert recipe is not None
        assert recipe.lr == 0.01
    page = (directory / "report.html").read_text()
    assert all(f"Distribution, {name}" in page for name in BUDGETS)


def test_optuna_opens_the_journal_with_a_trial_for_every_epoch(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, results = finished
    storage = JournalStorage(JournalFileBackend(str(directory / "journal.log")))
    trials = optuna.load_study(study_name="search", storage=storage).trials
    assert len(trials) == EPOCHS * len(BUDGETS)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    for trial in trials:
        row = results["searches"][trial.user_attrs["search"]]["history"][trial.user_attrs["index"]]
        assert trial.value == row["accuracy"]
        assert trial.user_attrs["entropy"] == row["entropy"]
        assert trial.user_attrs["expected_flops"] == row["costs"]["flops"]
        assert trial.user_attrs["genome"] == row["genome"]
        assert len(trial.params) == len(row["genome"])
    final = optuna.load_study(study_name="final", storage=storage).trials
    assert len(final) == 2 * len(BUDGETS)


def test_again_is_at_once_and_changes_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, results = finished
    before = {path: path.stat().st_mtime_ns for path in (directory / "searches").rglob("*") if path.name != "lock"}
    journal = (directory / "journal.log").read_bytes()
    assert search(directory.parent / "study.yaml", directory) == results
    assert journal == (directory / "journal.log").read_bytes()
    after = {path: path.stat().st_mtime_ns for path in (directory / "searches").rglob("*") if path.name != "lock"}
    assert before == after


def test_a_search_whose_directory_is_removed_is_made_again(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    directory, results = finished
    shutil.copytree(directory, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "searches" / "cheap")
    assert timeless(search(study(tmp_path), tmp_path / "copy")) == timeless(results)


def test_a_winner_trains(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, _ = finished
    winner = str(directory / "winners" / "cheap.yaml")
    settings = ("--set", "epochs=1", "--set", "batch_size=32")
    images = ("--data", "name=digits", "--data", "train=64", "--data", "validation=64")
    done = run_pynas("train", winner, *settings, *images, "--dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr


def test_networks_near_the_mode(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, results = finished
    done = run_pynas("sample", str(directory), "dear", "--top", "5", "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert answers[0]["genome"] == results["winners"]["dear"]["genome"]
    logs = [answer["log_probability"] for answer in answers]
    assert len(logs) == 5
    assert logs == sorted(logs, reverse=True)
    bound = min(answer["costs"]["flops"] for answer in answers)
    done = run_pynas("sample", str(directory), "dear", "--top", "90", "--budget", f"flops={bound}", "--json")
    within = json.loads(done.stdout)["answers"]
    assert within
    assert all(answer["costs"]["flops"] <= bound for answer in within)


def test_status_has_a_line_for_each_search_and_final_training(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, results = finished
    done = run_pynas("status", str(directory), "--json")
    found = json.loads(done.stdout)
    assert found["finished"]
    assert found["counts"]["finished"] == 6
    searches = [c for c in found["candidates"] if c["study"] == "search"]
    assert [(c["key"], c["epoch"], c["epochs"]) for c in searches] == [("cheap", 4, 4), ("dear", 4, 4)]
    assert searches[0]["accuracy"] == results["searches"]["cheap"]["accuracy"]
    assert "the search is finished" in run_pynas("status", str(directory)).stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("evolve", "DIR"), "a study of method fpnas has no predictor to evolve from"),
        (("sample", "DIR"), "has several searches; name one of cheap, dear"),
        (("sample", "DIR", "other"), "no search 'other'; allowed: cheap, dear"),
        (("sample", "DIR", "dear", "--budget", "flops=10"), "is within flops=:10"),
    ],
)
def test_what_is_asked_of_a_finished_study_in_vain(
    finished: tuple[Path, dict[str, Any]], command: tuple[str, ...], message: str
) -> None:
    done = run_pynas(*(str(finished[0]) if word == "DIR" else word for word in command))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: fpnas", "method: darts", "method: 'darts'; allowed: nars, fpnas"),
        ("{flops: 20k}", "{flops: 10k:20k}", "budgets.cheap.flops: got '10k:20k', allowed: an upper bound alone"),
        ("{flops: 20k}", "{flop: 20k}", "budget: unknown cost 'flop'"),
        ("{flops: 20k}", "{flops: 40}", "budget cheap: target flops: 40; the cheapest of small has"),
        (
            "lambda: 1.0",
            "lamda: 1.0",
            "search.lamda: unknown key; allowed: epochs, warmup_epochs, batch_size, sampling, lambda,",
        ),
        ("warmup_epochs: 1", "warmup_epochs: 4", "warmup_epochs: got 4, allowed: fewer than epochs, 4"),
        (
            "batch_size: 32, lambda",
            "batch_size: 320, lambda",
            "search.batch_size: got 320, allowed: up to the 96 images of data.train",
        ),
        (
            "validation: 96",
            "validation: 20",
            "search.batch_size: got 32, allowed: up to the 20 images of data.validation",
        ),
        ("theta: 2", "theta: 4", "search: theta: got 4, allowed: fewer than epochs, 4"),
        ("train: 96", "train: 9999", "data.train: got 9999"),
        ("seed: 0", "pool: {size: 10}", "pool: unknown key"),
        ("seed: 0", "pin: {ema: true}", "pin: ema: FP-NAS searches architectures; say it in training"),
        ("seed: 0", "resolution: 0", "resolution: 0: Input should be greater than or equal to 1"),
        ("space: small.yaml", "space: fbnetv3_28", "budget cheap: target flops: 20000; the cheapest of fbnetv3_28 has"),
    ],
)
def test_mistakes_are_one_line_and_can_be_put_right(old: str, new: str, message: str, tmp_path: Path) -> None:
    done = run_pynas("search", str(study(tmp_path, (old, new))), "--dir", str(tmp_path / "directory"))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_other_settings_on_a_study_are_refused(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = study(tmp_path, ("lambda: 1.0", "lambda: 0.5"))
    done = run_pynas("search", str(path), "--dir", str(finished[0]))
    assert done.returncode == 2
    assert "began with other settings: search" in done.stderr
    assert "only executor may change" in done.stderr


def workers(driver: int) -> Iterator[int]:
    """Worker processes of a driver."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_driver = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == driver
            if of_driver and b"pynas.runtime.worker" in path.joinpath("cmdline").read_bytes():
                yield int(path.name)
        except OSError:
            continue


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_what_is_killed_goes_on_and_finds_the_same(
    victim: str, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A driver goes on when its command is given again; a search whose worker was lost, by itself."""
    directory = tmp_path / "directory"
    command = ["search", str(study(tmp_path)), "--dir", str(directory), "--json"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "pynas", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = directory / "searches" / "cheap" / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") in (1, 2))
    os.kill(driver.pid if victim == "driver" else next(workers(driver.pid)), signal.SIGKILL)
    out, err = driver.communicate(timeout=PATIENCE)
    if victim == "driver":
        assert driver.returncode == -signal.SIGKILL
        out = json.dumps(search(tmp_path / "study.yaml", directory))
    else:
        assert driver.returncode == 0, err
        assert "search cheap: the worker was killed by signal 9" in err
        assert "it goes on after step" in err
    assert timeless(json.loads(out)) == timeless(finished[1])


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class DiesBeforeItsReports(Executor):
    """Runs tasks in this process; each dies after its epochs' checkpoints and before it tells of them, `deaths` times,
    and before its first step from then on where it is `hopeless`.
    """

    slots = 1

    def __init__(self, deaths: int, hopeless: bool) -> None:
        self.deaths, self.hopeless = deaths, hopeless
        self.events: list[Event] = []

    def submit(self, key: str, function: str, payload: Mapping[str, Any]) -> None:
        def report(row: dict[str, Any]) -> None:
            if self.deaths:
                self.deaths -= 1
                raise ConnectionResetError
            self.events.append(Progress(key, row))

        assert function == SEARCH
        if self.hopeless and not self.deaths:
            self.events.append(Failed(key, "killed anew", "died"))
            return
        try:
            self.events.append(Done(key, search_budget(payload, report)))
        except ConnectionResetError:
            self.events.append(Failed(key, "killed", "died"))

    def outcomes(self, timeout: float | None = None) -> Iterator[Event]:
        while self.events:
            yield self.events.pop(0)

    def close(self, *, cancel: bool = False) -> None:
        pass


@pytest.mark.parametrize("hopeless", [False, True])
def test_what_dies_between_a_checkpoint_and_its_report_has_got_on(
    hopeless: bool, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what has not got on since it last died is not begun for ever."""
    monkeypatch.setattr(pynas.fpnas.study, "open_executor", lambda *_, **__: DiesBeforeItsReports(2, hopeless))
    changes = ("final: {epochs: 2}", "final: {epochs: 0}"), ("  dear: {flops: 30k}\n", "")
    config, said = read_config(study(tmp_path, *changes)), Said()
    assert isinstance(config, FPNASConfig)
    if hopeless:
        with pytest.raises(SearchStopped, match="search cheap: killed anew; its log is under"):
            pynas.fpnas.study.search(config, tmp_path / "directory", listener=said)
    else:
        results = pynas.fpnas.study.search(config, tmp_path / "directory", listener=said)
        assert results is not None
        assert timeless(results["searches"]["cheap"]) == timeless(finished[1]["searches"]["cheap"])
    assert [line for line in said.lines if "killed" in line] == [
        "search cheap: killed; it goes on after step 3",
        "search cheap: killed; it goes on after step 6",
    ]


def test_the_configuration_is_kept_with_every_default(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = finished
    assert "lambda: 1.0" in (directory / "config.yaml").read_text()
    kept, given = read_config(directory / "config.yaml"), read_config(EXAMPLES / "supernet.yaml")
    assert kept.model_dump(exclude={"space"}) == given.model_dump(exclude={"space"})
    assert given.data.withhold == "half"
    assert given.final_data.withhold is None
    assert load_architecture(directory / "winners" / "dear.yaml").cost() == finished[1]["winners"]["dear"]["costs"]
    assert pynas.load_space(directory / "space.yaml").name == "small"


def test_a_search_on_some_classes_trains_its_winner_on_all(tmp_path: Path) -> None:
    """Section 5.1: the search sees 100 classes of ImageNet, the final training 1000."""
    data = "data: {name: digits, classes: 4, train: 64, validation: 64}"
    results = search(
        study(
            tmp_path,
            ("data: {name: digits, train: 96, validation: 96}", data),
            ("final: {epochs: 2}", "final: {epochs: 1, data: {name: digits, train: 64, validation: 64}}"),
            ("  dear: {flops: 30k}\n", ""),
            ("batch_size: 32, lambda", "batch_size: 16, lambda"),
        ),
        tmp_path / "directory",
    )
    architecture, _ = load_design(tmp_path / "directory" / "winners" / "cheap.yaml")
    assert architecture.classes == 10
    assert results["winners"]["cheap"]["costs"] == architecture.cost()
    assert results["searches"]["cheap"]["costs"]["params"] < architecture.cost()["params"]
    assert results["winners"]["cheap"]["final"]["accuracy"] is not None
    near = json.loads(run_pynas("sample", str(tmp_path / "directory"), "--json").stdout)["answers"][0]
    assert near["costs"] == architecture.cost()
