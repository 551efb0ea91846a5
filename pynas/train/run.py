"""A training in a directory of its own: begun, watched, stopped and gone on with; `pynas train` on one network.

RUN/run.json             what is trained: network, recipe, data, seed, teacher
RUN/checkpoints/         see `checkpoint.py`
RUN/log.jsonl            a row an epoch
RUN/tensorboard/         the same as scalars
RUN/model.safetensors    the evaluated weights of the last epoch
RUN/result.json          what came of it; there once the training is finished
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from pynas.data.batches import Data
from pynas.data.config import DataConfig
from pynas.data.open import open_data
from pynas.errors import PynasError
from pynas.files import FileLock, write_whole
from pynas.nets.load import ModelSpec
from pynas.nets.weights import save_model
from pynas.randomness import derive_seed
from pynas.train.candidate import input_size
from pynas.train.checkpoint import Checkpoints
from pynas.train.config import EXECUTION, TrainingRecipe
from pynas.train.device import choose_device
from pynas.train.distill import Teacher, check_outputs
from pynas.train.log import TrainingLog
from pynas.train.loop import Trainer, preserved_random_state

Item = TypeVar("Item")


class Listener(Protocol):
    """Whoever shows a training as it goes (`pynas.watch.Watch` does)."""

    def begin(self, bar: str, total: float) -> None: ...
    def advance(self, bar: str, done: float, note: str = "") -> None: ...
    def end(self, bar: str) -> None: ...
    def say(self, text: str) -> None: ...


class Silent:
    """A `Listener` that shows nothing."""

    def begin(self, bar: str, total: float) -> None: ...
    def advance(self, bar: str, done: float, note: str = "") -> None: ...
    def end(self, bar: str) -> None: ...
    def say(self, text: str) -> None: ...


class Stopped(Exception):
    """A signal ended the training after a checkpoint; `signal` is its number."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {checkpoint} is where it goes on")
        self.signal = number


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a training."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished training, else None."""
        try:
            return json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def train_model(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    data: DataConfig,
    path: str | Path,
    *,
    seed: int = 0,
    teacher: ModelSpec | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train `spec` in the directory `path`, or go on where that was; returns what `result.json` holds.

    On a CPU a training that was killed, stopped or crashed and then gone on with ends in the same bits as one that was
    not. SIGTERM and SIGINT write a checkpoint and raise `Stopped`, SIGUSR1 writes one and goes on. Raises PynasError
    for what does not fit together, for a training that diverges, and for a directory that holds another training.
    """
    directory = RunDirectory(Path(path).absolute())
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PynasError(f"{path}: cannot be made a directory: {error.strerror}") from None
    with FileLock(directory.path / "lock", f"training {directory.path}"):
        identity = _settle(directory, _settings(spec, recipe, data, seed, teacher))
        result = directory.read_result()
        if result is not None and directory.weights.is_file():
            return result | {"weights": str(directory.weights)}  # the directory may have moved
        run = _Run(directory, identity, spec, recipe, data, seed, teacher, listener or Silent())
        return run.run()


def _settings(
    spec: ModelSpec, recipe: TrainingRecipe, data: DataConfig, seed: int, teacher: ModelSpec | None
) -> dict[str, Any]:
    """What a training is a function of, as plain values; weights that are read count by their content."""
    return {
        "model": _plain_model(spec),
        "recipe": recipe.model_dump(),
        "data": data.model_dump(mode="json"),
        "seed": seed,
        "teacher": None if teacher is None else _plain_model(teacher),
    }


def _plain_model(spec: ModelSpec) -> dict[str, Any]:
    values = spec.to_dict()
    if spec.weights is not None:
        try:
            values["weights_sha256"] = hashlib.sha256(Path(spec.weights).read_bytes()).hexdigest()
        except OSError as error:
            raise PynasError(f"{spec.weights}: cannot be read: {error.strerror}") from None
    return values


def _settle(directory: RunDirectory, settings: dict[str, Any]) -> str:
    """Write down what is trained, or check it against what was; returns the training's identity.

    A directory without a checkpoint or a result has nothing to lose, and takes the new settings.
    """

    def essence(values: dict[str, Any]) -> dict[str, Any]:
        recipe = {key: value for key, value in values["recipe"].items() if key not in EXECUTION}
        models = {key: values[key] and {**values[key], "weights": None} for key in ("model", "teacher")}
        return json.loads(json.dumps({**values, **models, "recipe": recipe}))

    begun = directory.result.exists() or any(directory.checkpoints.glob("step_*.pt"))
    if begun:
        try:
            recorded = essence(json.loads(directory.settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise PynasError(f"{directory.path}: {directory.settings.name} is missing or damaged") from None
        if changed := [text for key in settings for text in _differences(key, recorded[key], essence(settings)[key])]:
            raise PynasError(
                f"{directory.path}: this training began with other settings: {'; '.join(changed)}. Name another "
                f"directory with --dir to begin anew, or put them back; only {' and '.join(EXECUTION)} may change"
            )
    write_whole(directory.settings, json.dumps(settings, indent=1) + "\n")
    return hashlib.sha256(json.dumps(essence(settings), sort_keys=True).encode()).hexdigest()


def _differences(key: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [text for part in old | new for text in _differences(f"{key}.{part}", old.get(part), new.get(part))]
    return [] if old == new else [f"{key} ({_short(old)} -> {_short(new)})"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Run:
    def __init__(
        self,
        directory: RunDirectory,
        identity: str,
        spec: ModelSpec,
        recipe: TrainingRecipe,
        data: DataConfig,
        seed: int,
        teacher: ModelSpec | None,
        listener: Listener,
    ) -> None:
        self.directory, self.spec, self.recipe, self.listener = directory, spec, recipe, listener
        self.config, self.seed, self.teacher = data, seed, teacher
        self.checkpoints = Checkpoints(directory.checkpoints, identity)
        self.history: list[dict[str, Any]] = []
        self.signals = _Signals()

    def run(self) -> dict[str, Any]:
        with ExitStack() as stack:
            stack.enter_context(self.signals)  # heeded from the first step on; until then there is nothing to keep
            device = choose_device(self.recipe.device)
            data = open_data(
                self.config,
                resolution=input_size(self.spec),
                device=device,
                batch_size=self.recipe.batch_size,
                seed=derive_seed(self.seed, "data"),
                augment=self.recipe.augment,
                workers=self.recipe.workers,
            )
            stack.callback(data.close)
            self.data = data
            self.steps = data.train_images // self.recipe.batch_size
            self.trainer = self._trainer(data, device)
            if (found := self.checkpoints.restore(self._load, self.listener.say)) is not None:
                self.listener.say(f"going on from {found}")
            self.log = TrainingLog(self.directory.log, self.directory.tensorboard, self.history)
            stack.callback(self.log.close)
            if not self.log.has_tensorboard:
                self.listener.say("no TensorBoard here (pip install tensorboard): scalars are in log.jsonl alone")
            if found is not None:
                self.log.event("resumed", step=self.trainer.step, checkpoint=found.name)
            stack.enter_context(preserved_random_state(device))
            self.listener.begin(self.spec.name, self.recipe.epochs * self.steps)
            self.listener.advance(self.spec.name, self.trainer.step)
            stack.callback(self.listener.end, self.spec.name)
            try:
                self._heed_signals()
                while len(self.history) < self.recipe.epochs:
                    self._epoch(len(self.history))
                return self._finish()
            except FloatingPointError as error:
                raise PynasError(self._diverged(error)) from error
            except torch.OutOfMemoryError as error:
                raise PynasError(self._out_of_memory(error)) from error
            except (PynasError, Stopped):
                raise
            except OSError as error:
                raise PynasError(f"{self.directory.path}: {error.strerror or error}; {self._left()}") from error
            except Exception as error:
                if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
                    raise PynasError(self._worker_died(error)) from error
                if self.spec.function is None:
                    raise
                raise PynasError(self._users_fault(error)) from error

    def _trainer(self, data: Data, device: torch.device) -> Trainer:
        recipe, spec = self.recipe, self.spec
        initial = derive_seed(self.seed, "weights")
        network = spec.build(dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=initial)
        inputs = (data.classes, data.channels, input_size(spec))
        memory_format = check_outputs(f"model {spec.name}", network, *inputs, seed=initial)
        teacher = None
        if self.teacher is not None:
            taught = self.teacher.build()
            its_format = check_outputs(f"teacher {self.teacher.name}", taught, *inputs)
            teacher = Teacher(taught.to(device), its_format)
        return Trainer(
            network,
            recipe,
            classes=data.classes,
            steps_per_epoch=self.steps,
            seed=derive_seed(self.seed, "training"),
            device=device,
            teacher=teacher,
            memory_format=memory_format,
        )

    def _load(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.history = list(state["history"])

    def _save(self) -> Path:
        return self.checkpoints.write(
            self.trainer.step, {"trainer": self.trainer.state_dict(), "history": self.history}
        )

    def _epoch(self, epoch: int) -> None:
        trainer, begun, first = self.trainer, time.perf_counter(), self.trainer.step
        clock = _Clock()
        start, end = epoch * self.steps, (epoch + 1) * self.steps
        if trainer.step < end:
            for batch in clock.waiting(self.data.train_batches(epoch, trainer.step - start)):
                trainer.update(batch)
                clock.images += len(batch.labels)
                note = f"epoch {epoch + 1}/{self.recipe.epochs}, {clock.note()}"
                self.listener.advance(self.spec.name, trainer.step, note)
                if trainer.step < end:
                    self._heed_signals()
        seconds = time.perf_counter() - begun  # of the steps; looks at the losses have waited for a GPU
        row = {
            "event": "epoch",
            "epoch": epoch + 1,
            "step": trainer.step,
            "lr": trainer.lr_of(trainer.step - 1),
            **self._evaluate(),
            "images_per_second": clock.images / seconds if seconds else 0.0,
            "data_wait": clock.waited / seconds if seconds else 0.0,
            "seconds": time.perf_counter() - begun,
            "bad_images": len(self.data.bad),
            "resumed": first != start,
        }
        row["loss"] = trainer.mean_loss()
        self.history.append(row)
        self._save()
        self.log.epoch(row)
        self.listener.say(f"{self.spec.name}, epoch {epoch + 1}/{self.recipe.epochs}: {self._describe(row)}")
        self._heed_signals()

    def _evaluate(self) -> dict[str, Any]:
        """The evaluated network's accuracy and loss, and beside an average's those of the raw weights."""

        trainer = self.trainer
        trainer.look()  # the losses of the epoch's last steps, before their network is judged
        found = trainer.evaluate(trainer.evaluated, self._heeding(self.data.validation_batches()))
        raw = (
            found
            if trainer.average is None
            else trainer.evaluate(trainer.network, self._heeding(self.data.validation_batches()))
        )
        return {
            "loss": None,
            "accuracy": found.accuracy,
            "validation_loss": found.loss,
            "raw_accuracy": raw.accuracy,
            "raw_validation_loss": raw.loss,
        }

    def _heeding(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self._heed_signals()  # evaluating changes nothing: it is begun anew when the training goes on
            yield item

    def _heed_signals(self) -> None:
        if (number := self.signals.take()) is None:
            return
        path = self._save()
        self.log.event("stopped" if number != signal.SIGUSR1 else "saved", step=self.trainer.step, checkpoint=path.name)
        if number != signal.SIGUSR1:
            raise Stopped(number, path)
        self.listener.say(f"checkpoint written: {path}")

    def _describe(self, row: dict[str, Any]) -> str:
        text = f"loss {row['loss']:.3f}, validation {100 * row['accuracy']:.2f}%"
        if self.recipe.ema:
            text += f" (raw weights {100 * row['raw_accuracy']:.2f}%)"
        return f"{text}, {row['images_per_second']:.0f} images/s, {100 * row['data_wait']:.0f}% waiting for data"

    def _finish(self) -> dict[str, Any]:
        trainer, last = self.trainer, self.history[-1]
        try:
            batches = self.data.test_batches()
        except PynasError:  # there are none
            tested = None
        else:
            tested = trainer.evaluate(trainer.evaluated, self._heeding(batches)).accuracy
        save_model(trainer.evaluated, self.directory.weights, spec=self.spec, recipe=self.recipe.searched)
        result = {
            "name": self.spec.name,
            "accuracy": last["accuracy"],
            "raw_accuracy": last["raw_accuracy"],
            "test_accuracy": tested,
            "epochs": len(self.history),
            "curve": [row["accuracy"] for row in self.history],
            "raw_curve": [row["raw_accuracy"] for row in self.history],
            "seconds": sum(row["seconds"] for row in self.history),
            "bad_images": dict(self.data.bad),
            "weights": str(self.directory.weights),
        }
        write_whole(self.directory.result, json.dumps(result, indent=1) + "\n")
        if (number := self.signals.take()) not in (None, signal.SIGUSR1):
            raise Stopped(number, self.directory.weights)  # there may be other networks to train
        return result

    def _diverged(self, error: FloatingPointError) -> str:
        return f"{self.spec.name}: {error}; {self._left()}. Train with a lower lr (--set lr=...) in another --dir"

    def _out_of_memory(self, error: Exception) -> str:
        size = self.recipe.micro_batch or self.recipe.batch_size
        text = str(error).splitlines()[0]
        return (
            f"{self.spec.name}: {text} Compute fewer than {size} images at once: --set micro_batch={max(size // 2, 1)}"
        )

    def _users_fault(self, error: Exception) -> str:
        """What a user's own model raised, whose traceback is kept where the user can read it."""
        path = self.directory.path / "error.txt"
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        text = " ".join(str(error).split())
        return f"model {self.spec.name}: {type(error).__name__} in training: {text}; {self._left()}; traceback: {path}"

    def _worker_died(self, error: Exception) -> str:
        text = str(error).splitlines()[0]
        return f"{self.spec.name}: a process that decodes images died: {text}; {self._left()}; the same command goes on"

    def _left(self) -> str:
        newest = self.checkpoints.newest()
        return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"


class _Clock:
    """How many images went by, and how long the training waited for them."""

    def __init__(self) -> None:
        self.images = 0
        self.waited = 0.0
        self.begun = time.perf_counter()

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        while True:
            asked = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield item

    def note(self) -> str:
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        return f"{self.images / seconds:.0f} images/s, {100 * self.waited / seconds:.0f}% waiting for data"


class _Signals:
    """Takes SIGTERM, SIGINT and SIGUSR1 in place of their defaults; in the main thread only, where Python allows it."""

    TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self._last: int | None = None
        self._before: dict[int, Any] = {}

    def take(self) -> int | None:
        """The signal that came since the last call, if any."""
        number, self._last = self._last, None
        return number

    def _receive(self, number: int, frame: Any) -> None:
        if self._last in (None, signal.SIGUSR1):  # an order to stop is not forgotten over one to save
            self._last = number

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.TAKEN}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
