"""Checkpoints: whole or absent, the newest good one is used, and strangers are refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pynas.errors import PynasError
from pynas.train.checkpoint import KEEP, Checkpoints


def written(folder: Path, steps: range) -> Checkpoints:
    checkpoints = Checkpoints(folder, "this training")
    for step in steps:
        checkpoints.write(step, {"weight": torch.full((3,), float(step)), "history": [{"epoch": step}]})
    return checkpoints


def restored(checkpoints: Checkpoints) -> tuple[list[dict[str, Any]], list[str]]:
    states: list[dict[str, Any]] = []
    said: list[str] = []
    checkpoints.restore(states.append, said.append)
    return states, said


def test_the_last_ones_are_kept_and_the_newest_is_restored(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, range(1, 5))
    assert [path.name for path in checkpoints.paths()] == ["step_000000004.pt", "step_000000003.pt"]
    assert KEEP == 2
    (state,), said = restored(checkpoints)
    assert torch.equal(state["weight"], torch.full((3,), 4.0))
    assert said == []
    assert restored(Checkpoints(tmp_path / "none", "x")) == ([], [])


@pytest.mark.parametrize("kept", [0, 1, 100, 700, -1])
def test_a_truncated_one_is_passed_over_for_the_one_before(tmp_path: Path, kept: int) -> None:
    checkpoints = written(tmp_path, range(1, 3))
    newest = checkpoints.paths()[0]
    newest.write_bytes(newest.read_bytes()[:kept])
    (state,), (said,) = restored(checkpoints)
    assert state["history"] == [{"epoch": 1}]
    assert said.startswith(f"checkpoint passed over: {newest}: is truncated or no checkpoint (")


def test_what_was_passed_over_never_costs_a_good_one(tmp_path: Path) -> None:
    """Files that claim to be newer than they are must not push good checkpoints out."""
    checkpoints = written(tmp_path, range(1, 3))
    for step in (98, 99):
        torch.save({"state_dict": {}}, tmp_path / f"step_0000000{step}.pt")
    (state,), said = restored(checkpoints)
    assert (state["history"], len(said)) == ([{"epoch": 2}], 2)
    checkpoints.write(3, {"history": [{"epoch": 3}]})
    assert [path.name for path in checkpoints.paths()] == ["step_000000003.pt", "step_000000002.pt"]
    assert len(list(tmp_path.glob("*.passed-over"))) == 2
    (state,), said = restored(checkpoints)
    assert (state["history"], said) == ([{"epoch": 3}], [])


def test_foreign_ones_are_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path, range(1, 3))
    with pytest.raises(PynasError, match="is of another training: its network, recipe"):
        Checkpoints(tmp_path, "another training").restore(lambda state: None, lambda text: None)
    for path in tmp_path.glob("step_*.pt"):
        torch.save({"state_dict": {}}, path)
    with pytest.raises(PynasError, match="is no checkpoint of this version of pynas"):
        Checkpoints(tmp_path, "this training").restore(lambda state: None, lambda text: None)


def test_one_that_does_not_load_is_passed_over(tmp_path: Path) -> None:
    said: list[str] = []

    def load(state: dict[str, Any]) -> None:
        if state["history"] == [{"epoch": 2}]:
            raise RuntimeError("size mismatch")

    found = written(tmp_path, range(1, 3)).restore(load, said.append)
    assert found is not None
    assert found.name == "step_000000001.pt"
    assert said == [f"checkpoint passed over: {tmp_path / 'step_000000002.pt'}: size mismatch"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, range(1, 2))
    with pytest.raises(Exception, match="pickle"):
        checkpoints.write(2, {"state": lambda: None})
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_reading_one_runs_no_code(tmp_path: Path) -> None:
    """A checkpoint from somewhere else must not be able to do anything when it is looked at."""

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": Evil()}, tmp_path / "step_000000001.pt")
    with pytest.raises(PynasError, match="no checkpoint can be used"):
        Checkpoints(tmp_path, "x").restore(lambda state: None, lambda text: None)
    assert not (tmp_path / "ran").exists()
