"""The study's directory and the record of what it ran on."""

from __future__ import annotations

import json

import pytest

from pynas.errors import PynasError
from pynas.study.directory import StudyDirectory
from pynas.study.versions import current_versions, record_versions


def test_paths(tmp_path):
    directory = StudyDirectory(tmp_path)
    found = {name: getattr(directory, name).name for name in dir(StudyDirectory) if name in PATHS}
    assert found == PATHS


PATHS = {
    "journal": "journal.log",
    "torn": "journal.torn",
    "lock": "lock",
    "config": "config.yaml",
    "versions": "versions.json",
    "space": "space.yaml",
    "predictor": "predictor.npz",
    "tasks": "tasks",
    "winners": "winners",
    "report": "report.html",
}


def test_creating_takes_new_and_empty_directories_and_studies(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        with StudyDirectory.create(path) as directory:
            assert directory.held
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(PynasError, match=r"holds no study but other things \(thesis\.tex\)"):
        StudyDirectory.create(tmp_path / "other")
    with pytest.raises(PynasError, match="File exists"):
        StudyDirectory.create(tmp_path / "other" / "thesis.tex")


def test_versions_are_recorded_once_per_environment(tmp_path, monkeypatch):
    path = tmp_path / "versions.json"
    now = current_versions()
    assert set(now) == {"pynas", "python", "torch", "numpy", "optuna", "platform", "cpu"}
    assert all(now.values())
    record_versions(path)
    assert record_versions(path) == [now]
    other = {**now, "torch": "9.0"}
    monkeypatch.setattr("pynas.study.versions.current_versions", lambda: other)
    record_versions(path)
    assert json.loads(path.read_text()) == [now, other]
