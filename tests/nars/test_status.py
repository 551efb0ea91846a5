"""`pynas status`: what it tells of a study whose driver runs, has died or is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run_pynas
from search_examples import EXAMPLES, start

from pynas.errors import PynasError
from pynas.runtime import progress
from pynas.runtime.task import TaskFolder
from pynas.search.config import dump_config, read_config, with_executor
from pynas.search.status import Status, as_lines, read_status
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial

REASON = "RuntimeError: the loss is not finite after step 17; " + "and so on " * 30


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    """A study of five candidates, the third of which has failed, and that nobody drives."""
    directory = StudyDirectory.create(tmp_path / "study")
    config = read_config(EXAMPLES / "study.yaml")
    with directory:
        directory.config.write_text(dump_config(config))
        study = Study.open(directory)
        trials = [Trial(1, index, [0], epochs=3, seed=0, costs={"flops": 1}) for index in range(5)]
        study.record(trials, [{}] * 5, {})
        study.finish("1/0", {"accuracy": 0.5, "curve": [0.25, 0.25, 0.5], "epochs": 3, "seconds": 12.0})
        study.progress("1/1", 1, 0.25)
        study.fail("1/2", REASON)
    return directory


def folder(directory: StudyDirectory, key: str) -> TaskFolder:
    found = TaskFolder(directory.tasks, f"candidates/{key}")
    found.path.mkdir(parents=True, exist_ok=True)
    return found


def states(status: Status) -> str:
    return " ".join(candidate.state for candidate in status.candidates)


def command(*arguments: str) -> str:
    done = run_pynas("status", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_with_a_driver_the_journal_is_believed(directory: StudyDirectory) -> None:
    with directory:
        status = read_status(directory.path)
    assert status.driver is not None
    assert status.driver.startswith("process ")
    assert states(status) == "finished running failed waiting waiting"
    assert [candidate.accuracy for candidate in status.candidates] == [0.5, 0.25, None, None, None]
    assert [candidate.epoch for candidate in status.candidates] == [3, 1, 0, 0, 0]
    assert status.counts == {"running": 1, "waiting": 2, "finished": 1, "failed": 1}


def test_without_a_driver_nothing_runs_and_results_wait_for_the_next(directory: StudyDirectory) -> None:
    result = {"accuracy": 0.75, "curve": [0.5, 0.75], "seconds": 3.0}
    folder(directory, "1/3").result.write_text(
        json.dumps({"function": "a:b", "digest": "", "seconds": 3.0, "value": result})
    )
    status = read_status(directory.path)
    assert status.driver is None
    assert states(status) == "finished waiting failed finished waiting"
    assert [candidate.recorded for candidate in status.candidates] == [True, False, True, False, False]
    assert status.candidates[3].accuracy == 0.75
    last = as_lines(status, 80)[-1]
    assert last == "no driver is running, 1 results are to be taken in; go on with the command that began the study"


def test_jobs_that_go_on_without_their_driver_are_told_by_their_files(directory: StudyDirectory) -> None:
    """No Slurm is asked here; what it says comes on top, see tests/slurm."""
    config = with_executor(read_config(directory.config), "slurm")
    directory.config.write_text(dump_config(config))
    for index, key in enumerate(("1/1", "1/3", "1/4")):
        task = folder(directory, key)
        task.job.write_text(json.dumps({"job": f"999999{index}_4", "array": "t", "attempt": 1}))
    progress.begin(folder(directory, "1/3"))
    progress.append(folder(directory, "1/3"), {"epoch": 2, "accuracy": 0.625})
    folder(directory, "1/4").failure.write_text(json.dumps({"reason": "ValueError: no", "kind": "exception"}))
    status = read_status(directory.path)
    assert states(status) == "finished running failed running failed"
    third = status.candidates[3]
    assert (third.epoch, third.accuracy, third.job) == (2, 0.625, "9999991_4")
    assert third.news is not None
    assert status.candidates[4].reason == "ValueError: no"
    assert "2 jobs go on by themselves" in as_lines(status, 80)[-1]


def test_the_table_fits_a_terminal_and_names_the_reasons(directory: StudyDirectory) -> None:
    lines = as_lines(read_status(directory.path), 80)
    assert max(len(line) for line in lines[:-1] if str(directory.path) not in line) <= 80
    text = "\n".join(lines)
    assert "RuntimeError: the loss is not finite" in text
    assert "1/2/log.txt" in text
    only = "\n".join(as_lines(read_status(directory.path), 80, ["failed"]))
    assert "1/2" in only
    assert "1/0" not in only


def test_json_is_one_value_with_everything(directory: StudyDirectory) -> None:
    found: dict[str, Any] = json.loads(command(str(directory.path), "--json"))
    assert found["driver"] is None
    assert not found["finished"]
    assert [candidate["key"] for candidate in found["candidates"]] == [f"1/{index}" for index in range(5)]
    assert found["candidates"][2]["reason"] == REASON
    assert Path(found["candidates"][2]["log"]) == folder(directory, "1/2").log


def test_looking_changes_nothing_and_leaves_the_lock_free(directory: StudyDirectory) -> None:
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    read_status(directory.path)
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before
    with directory:
        pass


def test_a_folder_without_a_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(PynasError, match="is not the directory of a study"):
        read_status(tmp_path)


def test_a_search_is_followed_and_its_death_noticed(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    process = start(EXAMPLES / "study.yaml", directory)
    try:
        text = ""
        while "running" not in text:
            assert process.poll() is None
            time.sleep(0.1)
            if (directory / "journal.log").exists():
                text = command(str(directory))
        assert f"driven by process {process.pid} on " in text
    finally:
        process.kill()
        process.communicate()
    text = command(str(directory))
    assert "no driver is running" in text
    assert "running" not in text.replace("no driver is running", "")
