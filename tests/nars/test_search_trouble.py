"""Searches that are interrupted, that lose a worker, or whose settings or candidates are wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from command_line import run_pynas
from search_examples import EXAMPLES, run, short_study, start, trainings

from pynas.study.directory import StudyDirectory
from pynas.study.study import Study

PATIENCE = 240.0  # seconds; a search begins within ten on a machine that does nothing else


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(tmp_path: Path) -> None:
    study = short_study(tmp_path)
    directory = tmp_path / "study"
    # What runs in the background of a shell ignores Ctrl-C, and so would whatever it starts.
    attend = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(study, directory, start_new_session=True, preexec_fn=attend)
    deadline = time.monotonic() + PATIENCE
    while not trainings(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and its workers alike
    _, err = process.communicate(timeout=PATIENCE)
    # Python itself ends by the signal, which a shell calls 130 too, where the interrupt came within an import's exec.
    assert process.returncode in (130, -signal.SIGINT), err
    assert f"Go on with: pynas search {study} --dir {directory}" in err
    assert "Traceback" not in err
    kept = trainings(directory)
    assert kept
    run(study, directory)
    assert kept.items() <= trainings(directory).items()


def _at_work(directory: Path) -> bool:
    """Whether a candidate is trained now, and is not the first: importing torch is over."""
    logs = [*(directory / "tasks").rglob("log.txt")]
    return any(not log.with_name("result.json").exists() for log in logs) and bool(trainings(directory))


def test_a_killed_worker_fails_its_candidate_and_the_search_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    process = start(short_study(tmp_path), directory)
    deadline = time.monotonic() + PATIENCE
    while not _at_work(directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # for the driver to hear of it: a worker that dies before has cost no candidate
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    trials = Study.open(StudyDirectory.open(directory), read_only=True).trials()
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(failed) == 1
    assert "SIGKILL" in (failed[0].reason or "")
    assert f"candidate {failed[0].key} failed: " in err
    assert list(json.loads(out)["winners"]) == ["small", "large"]


def test_a_mistake_can_be_put_right_before_the_first_training(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    study = tmp_path / "study.yaml"
    good = (EXAMPLES / "study.yaml").read_text()
    for wrong, message in {
        good.replace(":60k", "1:2"): "pynas: budget small: tiny: ",
        good.replace("pool:", "pin: {emma: true}\npool:"): f"{tmp_path / 'tiny.yaml'}: pin: unknown variable 'emma'",
        good.replace("train: 200", "train: 9999"): "pynas: data.train: got 9999, digits has 1437",
    }.items():
        study.write_text(wrong)
        done = run_pynas("search", str(study), "--dir", str(tmp_path / "directory"))
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    run(short_study(tmp_path), tmp_path / "directory")


def test_most_candidates_failing_ends_the_search_with_the_reason(tmp_path: Path) -> None:
    table = (EXAMPLES / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(table.replace("(20, 30) * 1e-3", "(20, 30) * 1e15"))  # diverges at once
    shutil.copy(EXAMPLES / "study.yaml", tmp_path)
    done = run_pynas("search", str(tmp_path / "study.yaml"), "--dir", str(tmp_path / "directory"))
    assert done.returncode == 1
    assert "the search stopped: iteration 1 of 2: 3 of 4 candidates failed" in done.stderr
    assert "FloatingPointError" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_do_not_fit_the_networks_are_refused_before_training(tmp_path: Path) -> None:
    table = (EXAMPLES / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(table.replace("| 10         |", "| 3          |"))
    shutil.copy(EXAMPLES / "study.yaml", tmp_path)
    done = run_pynas("search", str(tmp_path / "study.yaml"), "--dir", str(tmp_path / "directory"))
    assert done.returncode == 2
    assert done.stderr == "pynas: architecture: got 3 classes, digits has 10\n"
