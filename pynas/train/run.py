"""A training in a directory of its own: begun, watched, stopped and gone on with; `pynas train` on one network.

RUN/run.json             what is trained: network, recipe, data, seed, teacher
RUN/checkpoints/         see `checkpoint.py`
RUN/log.jsonl            a row an epoch
RUN/tensorboard/         the same as scalars
RUN/model.safetensors    the evaluated weights of the last epoch
RUN/result.json          what came of it; there once the training is finished

Of several ranks (`world.py`) rank 0 writes; all of them train, evaluate, stop and fail together.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch

from pynas.data.batches import Share
from pynas.data.config import DataConfig
from pynas.data.open import open_data
from pynas.errors import PynasError
from pynas.files import FileLock, write_whole
from pynas.listener import Listener, Silent
from pynas.nets.load import ModelSpec
from pynas.nets.weights import save_model
from pynas.randomness import derive_seed
from pynas.train.candidate import input_size
from pynas.train.checkpoint import Checkpoints
from pynas.train.config import TrainingRecipe
from pynas.train.device import choose_device
from pynas.train.directory import RunDirectory, settings_of, settle
from pynas.train.distill import Teacher, check_outputs
from pynas.train.log import TrainingLog
from pynas.train.loop import Trainer, preserved_random_state
from pynas.train.signals import Signals, Stopped
from pynas.train.world import World

Item = TypeVar("Item")


def train_model(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    data: DataConfig,
    path: str | Path,
    *,
    seed: int = 0,
    teacher: ModelSpec | None = None,
    listener: Listener | None = None,
    world: World | None = None,
    stop_on_usr: bool = False,
) -> dict[str, Any]:
    """Train `spec` in the directory `path`, or go on where that was; returns what `result.json` holds.

    On a CPU a training that was killed, stopped or crashed and then gone on with ends in the same bits as one that was
    not. SIGTERM and SIGINT write a checkpoint and raise `Stopped`, SIGUSR1 and SIGUSR2 write one and go on, or, with
    `stop_on_usr`, stop as well. Raises PynasError for what does not fit together, for a training that diverges, and for
    a directory that holds another training.

    Every rank of `world` calls this with the same arguments and the same directory, and gets the same result or the
    same error; an error in the middle of a step may be one rank's alone. A signal to any rank counts for all.
    """
    world = world or World()
    directory = RunDirectory(Path(path).absolute())

    def begin() -> tuple[str, dict[str, Any] | None]:
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PynasError(f"{path}: cannot be made a directory: {error.strerror}") from None
        stack.enter_context(FileLock(directory.path / "lock", f"training {directory.path}"))
        identity = settle(directory, settings_of(spec, recipe, data, seed, teacher, world))
        return identity, directory.read_result() if directory.weights.is_file() else None

    world.begin()
    world.advance(-3, "looking into the directory")
    with ExitStack() as stack:
        identity, result = world.by_first(begin)
        if result is not None:
            return result | {"weights": str(directory.weights)}  # the directory may have moved
        shown = listener if listener is not None and world.first else Silent()
        run = _Run(directory, identity, spec, recipe, data, seed, teacher, shown, world, Signals(stop_on_usr))
        return run.run()


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
        world: World,
        signals: Signals,
    ) -> None:
        self.directory, self.spec, self.recipe, self.listener = directory, spec, recipe, listener
        self.config, self.seed, self.teacher = data, seed, teacher
        self.checkpoints = Checkpoints(directory.checkpoints, identity)
        self.history: list[dict[str, Any]] = []
        self.world, self.signals = world, signals

    def run(self) -> dict[str, Any]:
        with ExitStack() as stack:
            stack.enter_context(self.signals)  # heeded from the first step on; until then there is nothing to keep
            self.world.advance(-2, "opening the data and making the network")
            with self.world.setting_up():
                self.trainer = self._trainer(stack)
            self.world.advance(-1, "looking for a checkpoint")
            found = self._restore()
            self.begun_at = self.trainer.step
            self.world.by_first(lambda: self._open_log(stack, found))
            stack.enter_context(preserved_random_state(self.trainer.device))
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

    def _trainer(self, stack: ExitStack) -> Trainer:
        """The data and the networks, which each rank makes for itself, and from them what all train together."""
        recipe, spec, world = self.recipe, self.spec, self.world
        initial = derive_seed(self.seed, "weights")

        def make() -> tuple[torch.device, torch.nn.Module, torch.memory_format, Teacher | None]:
            device = self._device()
            batch_size = world.batch_of_rank(recipe.batch_size)
            self.data = open_data(
                self.config,
                resolution=input_size(spec),
                device=device,
                batch_size=batch_size,
                seed=derive_seed(self.seed, "data"),
                augment=recipe.augment,
                workers=recipe.workers,
                share=Share(world.rank, world.size, world.cores),
            )
            stack.callback(self.data.close)
            self.steps = self.data.train_images // (batch_size * world.size)
            network = spec.build(dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=initial)
            inputs = (self.data.classes, self.data.channels, input_size(spec))
            memory_format = check_outputs(f"model {spec.name}", network, *inputs, seed=initial)
            teacher = None
            if self.teacher is not None:
                taught = self.teacher.build()
                its_format = check_outputs(f"teacher {self.teacher.name}", taught, *inputs)
                teacher = Teacher(taught.to(device), its_format)
            return device, network, memory_format, teacher

        device, network, memory_format, teacher = world.by_all(make)
        return Trainer(
            network,
            recipe,
            classes=self.data.classes,
            steps_per_epoch=self.steps,
            seed=derive_seed(self.seed, "training"),
            device=device,
            teacher=teacher,
            memory_format=memory_format,
            world=world,
            may_leave_unused=spec.function is not None,
        )

    def _device(self) -> torch.device:
        wanted, joined = self.recipe.device, self.world.device
        if joined is None:
            return choose_device(wanted)
        if wanted not in ("auto", joined.type):
            raise PynasError(f"training.device: got {wanted}, but the ranks are on {joined.type}; allowed: auto")
        return joined

    def _restore(self) -> Path | None:
        """Go on from the newest checkpoint that rank 0 finds good; None where there are none."""

        def choose() -> Path | None:
            return self.checkpoints.restore(self._load, self.listener.say)

        def follow() -> None:
            if found is not None and not self.world.first:
                self._load(self.checkpoints.read(found))

        found = self.world.by_first(choose)
        self.world.by_all(follow)
        if found is not None:
            self.listener.say(f"going on from {found}")
        return found

    def _open_log(self, stack: ExitStack, found: Path | None) -> None:
        self.log = TrainingLog(self.directory.log, self.directory.tensorboard, self.history)
        stack.callback(self.log.close)
        if not self.log.has_tensorboard:
            self.listener.say("no TensorBoard here (pip install tensorboard): scalars are in log.jsonl alone")
        if found is not None:
            self.log.event("resumed", step=self.trainer.step, checkpoint=found.name)

    def _load(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.history = list(state["history"])

    def _save(self) -> Path:
        self.trainer.look()  # all together: it adds up the losses of all

        def write() -> Path:
            state = {"trainer": self.trainer.state_dict(), "history": self.history}
            return self.checkpoints.write(self.trainer.step, state)

        return self.world.by_first(write)

    def _epoch(self, epoch: int) -> None:
        trainer, begun, first = self.trainer, time.perf_counter(), self.trainer.step
        clock = _Clock()
        start, end = epoch * self.steps, (epoch + 1) * self.steps
        if trainer.step < end:
            trainer.advance(0, "waiting for data")
            for batch in clock.waiting(self.data.train_batches(epoch, trainer.step - start)):
                images, number = self.world.agree(len(batch.labels), self.signals.take())
                self._heed(number)  # on all ranks before the same step
                trainer.update(batch, images)
                self.signals.unblock()
                clock.images += images
                note = f"epoch {epoch + 1}/{self.recipe.epochs}, {clock.note()}"
                self.listener.advance(self.spec.name, trainer.step, note)
                if trainer.step < end:
                    trainer.advance(0, "waiting for data")
        seconds = time.perf_counter() - begun  # of the steps; looks at the losses have waited for a GPU
        row = {
            "event": "epoch",
            "epoch": epoch + 1,
            "step": trainer.step,
            "lr": trainer.lr_of(trainer.step - 1),
            **self._evaluate(),
            "images_per_second": clock.images / seconds if seconds else 0.0,
            "data_wait": self.world.sum([clock.waited])[0] / self.world.size / seconds if seconds else 0.0,
            "seconds": time.perf_counter() - begun,
            "bad_images": len(self._bad()),
            "resumed": first != start,
        }
        row["loss"] = trainer.mean_loss()
        self.history.append(row)
        self._save()
        if self.world.first:
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
        """Evaluating changes nothing: where it is stopped, it is begun anew when the training goes on.

        A rank that is told to stop skips the rest of its share; the others learn of it at the end of theirs, since
        shares differ in length.
        """
        for item in items:
            if self.world.size == 1:
                self._heed_signals()
            elif self.signals.stops(self.signals.waiting):
                break
            yield item
        if self.world.size > 1:
            self._heed_signals()

    def _heed_signals(self) -> None:
        self._heed(self.world.agree(0, self.signals.take())[1])

    def _heed(self, number: int | None) -> None:
        """Heed a signal, of which all ranks know."""
        if number is None:
            return
        path, stops = self._save(), self.signals.stops(number)
        if self.world.first:
            self.log.event("stopped" if stops else "saved", step=self.trainer.step, checkpoint=path.name)
        if stops:
            raise Stopped(number, path, steps_made=self.trainer.step > self.begun_at)
        self.listener.say(f"checkpoint written: {path}")

    def _bad(self) -> dict[str, str]:
        """The bad images that any rank has met."""
        if self.world.size > 1:
            for found in self.world.gather(self.data.bad_by_part()):
                self.data.add_bad(found)
        return self.data.bad

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
        result = {
            "name": self.spec.name,
            "accuracy": last["accuracy"],
            "raw_accuracy": last["raw_accuracy"],
            "test_accuracy": tested,
            "epochs": len(self.history),
            "curve": [row["accuracy"] for row in self.history],
            "raw_curve": [row["raw_accuracy"] for row in self.history],
            "seconds": sum(row["seconds"] for row in self.history),
            "bad_images": dict(self._bad()),
            "weights": str(self.directory.weights),
        }

        def write() -> dict[str, Any]:
            save_model(trainer.evaluated, self.directory.weights, spec=self.spec, recipe=self.recipe.searched)
            write_whole(self.directory.result, json.dumps(result, indent=1) + "\n")
            return result

        result = self.world.by_first(write)
        _, number = self.world.agree(0, self.signals.take())
        if number is not None and self.signals.stops(number):
            raise Stopped(number, self.directory.weights, steps_made=True)  # there may be other networks to train
        return result

    def _diverged(self, error: FloatingPointError) -> str:
        return f"{self.spec.name}: {error}; {self._left()}. Train with a lower lr (--set lr=...) in another --dir"

    def _out_of_memory(self, error: Exception) -> str:
        size = self.recipe.micro_batch or self.world.batch_of_rank(self.recipe.batch_size)
        text = str(error).splitlines()[0].rstrip(" .")
        return (
            f"{self.spec.name}: {text}. Compute fewer than {size} images at once: --set micro_batch={max(size // 2, 1)}"
        )

    def _users_fault(self, error: Exception) -> str:
        """What a user's own model raised, whose traceback is kept where the user can read it."""
        path = self.directory.path / ("error.txt" if self.world.first else f"error_rank{self.world.rank}.txt")
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
