"""A training's directory: killed, stopped and damaged trainings go on bit for bit, and nothing finished is lost."""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_examples import small

from pynas.data import memory
from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec
from pynas.train.config import TrainingRecipe
from pynas.train.directory import RunDirectory
from pynas.train.log import read_log
from pynas.train.loop import Evaluation, Trainer
from pynas.train.run import train_model
from pynas.train.signals import Stopped

SPEC = ModelSpec.of(small(), name="net")
DATA = DataConfig(name="digits", train=256)
RECIPE = TrainingRecipe(
    epochs=3, batch_size=16, lr=0.01, optimizer="RMSProp", dropout=0.2, stochastic_depth=0.2, mixup=0.2
)
LONG = RECIPE.model_copy(update={"epochs": 5})
MORE = DATA.model_copy(update={"train": 640})
"""A training of a few seconds, to be disturbed."""


def states(path: Path) -> dict[str, torch.Tensor]:
    return load_file(RunDirectory(path).weights)


def assert_same_bits(one: Path, other: Path) -> None:
    left, right = states(one), states(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    results = [json.loads(RunDirectory(path).result.read_text()) for path in (one, other)]
    for key in ("curve", "raw_curve", "test_accuracy"):
        assert results[0][key] == results[1][key]
    assert losses(one) == losses(other)


def losses(path: Path) -> dict[int, float]:
    return {row["epoch"]: row["loss"] for row in read_log(path / "log.jsonl") if row["event"] == "epoch"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    train_model(SPEC, LONG, MORE, path)
    return path


def train_here(path: Path) -> None:
    try:
        train_model(SPEC, LONG, MORE, path)
    except Stopped as stopped:
        os._exit(128 + stopped.signal)


def start(path: Path) -> BaseProcess:
    """The training in a process of its own; forked, because a new interpreter takes longer to import torch."""
    process = multiprocessing.get_context("fork").Process(target=train_here, args=(path,))
    process.start()
    return process


def wait_for(condition: Callable[[], object], process: BaseProcess) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_again_and_again_it_ends_in_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    for delay in (0.03, 0.11, 0.2):
        before = set(directory.checkpoints.glob("step_*.pt"))
        process = start(directory.path)
        wait_for(lambda before=before: set(directory.checkpoints.glob("step_*.pt")) - before, process)  # type: ignore[misc]
        time.sleep(delay)
        process.kill()
        process.join()
        assert not directory.result.exists()
    train_model(SPEC, LONG, MORE, directory.path)
    assert_same_bits(undisturbed, directory.path)
    rows = read_log(directory.log)
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [1, 2, 3, 4, 5]  # once, whatever was cut off
    assert len([row for row in rows if row["event"] == "resumed"]) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_of_an_epoch_it_goes_on_from_that_step(
    number: int, undisturbed: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    process = start(directory.path)
    wait_for(lambda: any(directory.checkpoints.glob("step_*.pt")), process)
    time.sleep(0.05)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    train_model(SPEC, LONG, MORE, directory.path)
    stopped, resumed = (
        next(row for row in read_log(directory.log) if row["event"] == e) for e in ("stopped", "resumed")
    )
    assert stopped["step"] == resumed["step"]
    assert stopped["step"] % 40  # in the middle of an epoch
    assert_same_bits(undisturbed, directory.path)


def test_a_stop_cuts_evaluating_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten seconds' notice, evaluating a large network on all of ImageNet's validation images would take all."""
    taken = []
    evaluate = Trainer.evaluate

    def told_to_stop(self: Trainer, network: torch.nn.Module, batches: Iterable[Any]) -> Evaluation:
        def passed_on() -> Iterator[Any]:
            for batch in batches:
                os.kill(os.getpid(), signal.SIGTERM)
                taken.append(batch)
                yield batch

        return evaluate(self, network, passed_on())

    monkeypatch.setattr(memory, "EVALUATION_BATCH", 60)  # three of them
    monkeypatch.setattr(Trainer, "evaluate", told_to_stop)
    with pytest.raises(Stopped):
        train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    assert len(taken) == 1


def test_sigusr1_writes_a_checkpoint_and_the_training_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    process = start(directory.path)
    wait_for(lambda: any(directory.checkpoints.glob("step_*.pt")), process)
    assert process.pid
    os.kill(process.pid, signal.SIGUSR1)
    process.join()
    assert process.exitcode == 0
    assert [row for row in read_log(directory.log) if row["event"] == "saved"]
    assert_same_bits(undisturbed, directory.path)


def test_the_run_directory_holds_what_it_should(tmp_path: Path) -> None:
    result = train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    rows = read_log(directory.log)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert 0 <= row["data_wait"] <= 1
        assert row["images_per_second"] > 0
        assert {"lr", "loss", "validation_loss", "accuracy", "raw_accuracy"} <= row.keys()
    assert rows[0]["lr"] > rows[2]["lr"]
    assert result["curve"] == [row["accuracy"] for row in rows]
    assert result == directory.read_result()
    assert list(directory.tensorboard.glob("events.out.tfevents.*"))
    assert len(list(directory.checkpoints.glob("step_*.pt"))) == 2
    inode = directory.result.stat().st_ino
    assert train_model(SPEC, RECIPE, DATA, tmp_path / "run") == result  # finished: nothing is trained again
    assert directory.result.stat().st_ino == inode


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    events = EventAccumulator(str(RunDirectory(tmp_path / "run").tensorboard)).Reload()
    assert {"train/loss", "train/lr", "validation/accuracy", "validation/raw_accuracy"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("validation/accuracy")] == pytest.approx(result["curve"])


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    train_model(SPEC, RECIPE, DATA, tmp_path / "whole")
    train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    directory.result.unlink()
    newest, _ = sorted(directory.checkpoints.glob("step_*.pt"), reverse=True)
    os.truncate(newest, newest.stat().st_size // 2)
    train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_another_training_is_not_mixed_up_with_what_is_there(tmp_path: Path) -> None:
    train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    changed = RECIPE.model_copy(update={"lr": 0.02})
    with pytest.raises(PynasError, match=r"began with other settings: recipe\.lr \(0\.01 -> 0\.02\)\. Name another"):
        train_model(SPEC, changed, DATA, tmp_path / "run")
    with pytest.raises(PynasError, match=r"seed \(0 -> 1\)"):
        train_model(SPEC, RECIPE, DATA, tmp_path / "run", seed=1)
    with pytest.raises(PynasError, match=r"data\.train \(256 -> 128\)"):
        train_model(SPEC, RECIPE, DATA.model_copy(update={"train": 128}), tmp_path / "run")
    with pytest.raises(PynasError, match=r"teacher \(null -> "):
        train_model(SPEC, RECIPE, DATA, tmp_path / "run", teacher=SPEC)
    train_model(SPEC, RECIPE.model_copy(update={"workers": 1, "device": "cpu"}), DATA, tmp_path / "run")


def test_a_finished_training_moves_and_its_weights_come_back(tmp_path: Path) -> None:
    train_model(SPEC, RECIPE, DATA, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    weights = RunDirectory(tmp_path / "moved").weights
    assert train_model(SPEC, RECIPE, DATA, tmp_path / "moved")["weights"] == str(weights)
    before = weights.read_bytes()
    weights.unlink()
    train_model(SPEC, RECIPE, DATA, tmp_path / "moved")
    assert weights.read_bytes() == before


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """Files may not grow beyond 60 kB in a process of its own."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        try:
            train_model(SPEC, RECIPE, DATA, tmp_path / "run")
        except PynasError as error:
            os._exit(7 if "cannot be written: File too large" in str(error) else 8)

    process = multiprocessing.get_context("fork").Process(target=limited)
    process.start()
    process.join()
    assert process.exitcode == 7
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_one_process_at_a_time(tmp_path: Path) -> None:
    process = start(tmp_path / "run")
    try:
        wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step_*.pt")), process)
        with pytest.raises(PynasError, match=f"is being driven by process {process.pid}"):
            train_model(SPEC, LONG, MORE, tmp_path / "run")
    finally:
        process.kill()
        process.join()


def test_a_training_that_diverges_says_where_and_what_is_left(tmp_path: Path) -> None:
    wild = RECIPE.model_copy(update={"lr": 1e30, "warmup_epochs": 0, "optimizer": "SGD"})
    with pytest.raises(
        PynasError, match=r"net: loss is (nan|inf) in epoch 1, step \d+ of 16, lr .*there is no checkpoin"
    ):
        train_model(SPEC, wild, DATA, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_the_last_good_checkpoint_is_named_and_none_is_written_after_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    rising = RECIPE.model_copy(
        update={"lr": 1e-3, "optimizer": "SGD", "momentum": 0.0, "weight_decay": 2500.0, "epochs": 40, "lr_decay": 1.0}
    )
    with pytest.raises(PynasError, match=r"the last good checkpoint is (\S+step_\d+\.pt)") as caught:
        train_model(SPEC, rising, DATA, tmp_path / "run")
    named = str(caught.value).split("checkpoint is ")[1].split(";")[0].split(". ")[0]
    state = torch.load(named, weights_only=True)["state"]["trainer"]["network"]
    assert all(torch.isfinite(value.double()).all() for value in state.values())


def test_models_and_teachers_that_do_not_fit(tmp_path: Path) -> None:
    wrong = ModelSpec.of(small(classes=7), name="seven")
    with pytest.raises(PynasError, match="model seven: got 7 classes, the data have 10 classes"):
        train_model(wrong, RECIPE, DATA, tmp_path / "run")
    with pytest.raises(PynasError, match="teacher seven: got 7 classes, the data have 10 classes"):
        train_model(SPEC, RECIPE, DATA, tmp_path / "other", teacher=wrong)
    with pytest.raises(PynasError, match="batch_size: got 300, allowed are at most the 256 training images"):
        train_model(SPEC, RECIPE.model_copy(update={"batch_size": 300}), DATA, tmp_path / "third")
    (tmp_path / "file").write_text("")
    with pytest.raises(PynasError, match="file: cannot be made a directory"):
        train_model(SPEC, RECIPE, DATA, tmp_path / "file")
