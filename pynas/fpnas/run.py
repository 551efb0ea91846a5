"""A search in a directory of its own: begun, watched, stopped and gone on with.

DIR/run.json        what is searched: space, settings, targets, data, seed
DIR/checkpoints/    the state after each of the last epochs (`pynas.train.checkpoint`)
DIR/log.jsonl       a row an epoch
DIR/result.json     the mode and what is told of it; there once the search is finished

Of several ranks rank 0 writes; all of them compute, stop and fail together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pynas.data.batches import Data
from pynas.data.config import DataConfig
from pynas.data.open import contents, open_data
from pynas.errors import PynasError
from pynas.files import FileLock, write_whole
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.distribution import Distribution
from pynas.fpnas.search import Search
from pynas.listener import Listener, Silent
from pynas.nets.load import ModelSpec
from pynas.randomness import derive_seed
from pynas.space.latency import LatencyModel
from pynas.space.space import Space
from pynas.space.table import TableRow
from pynas.train.checkpoint import Checkpoints
from pynas.train.config import EXECUTION, TrainingConfig
from pynas.train.device import choose_device
from pynas.train.directory import RunDirectory, settle
from pynas.train.log import TrainingLog
from pynas.train.loop import preserved_random_state
from pynas.train.memory import keep_freed_memory
from pynas.train.models import check_data
from pynas.train.signals import Signals, Stopped
from pynas.train.world import World


def search_supernet(
    space: Space,
    config: SupernetConfig,
    targets: Mapping[str, float],
    data: DataConfig,
    path: str | Path,
    *,
    seed: int = 0,
    listener: Listener | None = None,
    world: World | None = None,
    heed_signals: bool = True,
    stop_on_usr: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    latency: LatencyModel | None = None,
) -> dict[str, Any]:
    """Search `space` in the directory `path`, or go on where that was; returns what `result.json` holds.

    targets: upper bounds on costs by name, each the TAR of one hinge. data: both halves; `withhold: half` splits the
    training images as the paper does. report: called with the row of `log.jsonl` of every epoch that this call has
    computed, on the rank that writes. latency: what predicts the cost ``latency``, in milliseconds.

    On a CPU a search that was killed or stopped and then gone on with ends in the same bits as one that was not. A
    signal that stops (see `Signals`; with `heed_signals`) raises `Stopped` before the next step; what was computed of
    its epoch is computed again. Raises PynasError for what does not fit together and for a directory that holds another
    search.
    """
    world = world or World()
    directory = RunDirectory(Path(path).absolute())
    check_search(space, config, targets, data, latency)
    settings = _settings(space, config, targets, data, seed, latency)

    def begin() -> tuple[str, dict[str, Any] | None]:
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PynasError(f"{path}: cannot be made a directory: {error.strerror}") from None
        stack.enter_context(FileLock(directory.path / "lock", f"search {directory.path}"))
        return settle(directory, settings, _essence), directory.read_result()

    world.begin()
    with ExitStack() as stack:
        identity, result = world.by_first(begin)
        if result is not None:
            return result
        signals = Signals(stop_on_usr)
        if heed_signals:
            stack.enter_context(signals)
        device = world.device or choose_device(config.device)
        if device.type == "cpu":
            keep_freed_memory()
        world.advance(-2, "opening the data")
        with world.setting_up():
            halves = world.by_all(lambda: _halves(stack, space, config, data, seed, device))
        world.advance(-1, "making the supernet")
        steps = halves[0].train_images // config.batch_size
        made: dict[str, Any] = {"seed": seed, "device": device, "world": world, "latency": latency}
        search = Search(space, config, targets, steps_per_epoch=steps, **made)
        stack.enter_context(preserved_random_state(device))
        shown = listener if listener is not None and world.first else Silent()
        return _Run(directory, identity, search, halves, signals, shown, report).run(stack)


def _halves(
    stack: ExitStack, space: Space, config: SupernetConfig, data: DataConfig, seed: int, device: torch.device
) -> tuple[Data, Data]:
    """The images that train the weights, and exchanged with the held-out ones those that train alpha, as they are."""

    def half(name: str, *, exchanged: bool) -> Data:
        opened = open_data(
            data,
            resolution=max(TableRow.values(space.table.resolution)),
            device=device,
            batch_size=config.batch_size,
            seed=derive_seed(seed, name),
            augment="none" if exchanged else config.augment,
            workers=config.workers,
            exchanged=exchanged,
        )
        stack.callback(opened.close)
        return opened

    return half("first half", exchanged=False), half("second half", exchanged=True)


class _Run:
    """A search from its newest checkpoint on, epoch by epoch. Every rank has one."""

    def __init__(
        self,
        directory: RunDirectory,
        identity: str,
        search: Search,
        halves: tuple[Data, Data],
        signals: Signals,
        listener: Listener,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.directory, self.search, self.halves, self.signals = directory, search, halves, signals
        self.listener, self.report, self.world = listener, report, search.world
        self.checkpoints = Checkpoints(directory.checkpoints, identity)
        self.history: list[dict[str, Any]] = []
        self.log: TrainingLog | None = None  # of the rank that writes

    def run(self, stack: ExitStack) -> dict[str, Any]:
        search, epochs = self.search, self.search.config.epochs
        found = self.world.by_first(lambda: self.checkpoints.restore(self.load, self.listener.say))
        self.world.by_all(lambda: self.follow(found))
        self.begun_at = search.step
        if self.world.first:
            self.log = self.open_log(stack, found)
        bar = f"search {self.directory.path.name}"
        self.listener.begin(bar, epochs)
        stack.callback(self.listener.end, bar)
        while search.epoch < epochs:
            begun = time.perf_counter()
            epoch = search.run_epoch(*self.halves, self.heed)
            row = {"event": "epoch", "step": search.step, "seconds": time.perf_counter() - begun, **asdict(epoch)}
            self.history.append(row)
            self.world.by_first(self.save)
            if self.log is not None:
                self.log.epoch(row)
                if self.report is not None:
                    self.report(row)
            self.listener.advance(bar, epoch.epoch, describe(row))
        return self.world.by_first(lambda: _finish(self.directory, search, self.history))

    def save(self) -> Path:
        state = {"search": self.search.state_dict(), "history": self.history}
        return self.checkpoints.write(self.search.step, state)

    def load(self, state: dict[str, Any]) -> None:
        self.search.load_state_dict(state["search"])
        self.history[:] = state["history"]

    def follow(self, found: Path | None) -> None:
        """Load what the first rank found good."""
        if found is not None and not self.world.first:
            self.load(self.checkpoints.read(found))

    def open_log(self, stack: ExitStack, found: Path | None) -> TrainingLog:
        log = TrainingLog(self.directory.log, self.directory.tensorboard, self.history)
        stack.callback(log.close)
        if found is not None:
            log.event("resumed", step=self.search.step, checkpoint=found.name)
            self.listener.say(f"going on from {found}")
        return log

    def heed(self) -> None:
        """Stop before a step where any rank was told to. The state within an epoch is none to go on from."""
        _, number = self.world.agree(0, self.signals.take())
        if number is None or not self.signals.stops(number):
            return
        kept = self.checkpoints.newest()
        if self.log is not None:
            self.log.event("stopped", step=self.search.step, checkpoint=kept and kept.name)
        whole = self.search.epoch * self.search.steps_per_epoch
        raise Stopped(number, kept or self.directory.path, steps_made=whole > self.begun_at)


def describe(row: Mapping[str, Any]) -> str:
    """An epoch of a search in a few words."""
    return f"entropy {row['entropy']:.1f}, {row['samples']} samples, mode {100 * row['accuracy']:.1f}%"


def _finish(directory: RunDirectory, search: Search, history: list[dict[str, Any]]) -> dict[str, Any]:
    space, genome = search.space, search.distribution.mode()
    architecture, _ = space.decode(genome)
    result = {
        "genome": genome.tolist(),
        "architecture": architecture.to_dict(),
        "costs": {name: cost[0].item() for name, cost in search.costs(genome[None]).items()},
        "targets": search.targets,
        "accuracy": history[-1]["accuracy"],
        "entropy": history[-1]["entropy"],
        "samples": sum(row["samples"] for row in history),
        "seconds": sum(row["seconds"] for row in history),
        "distribution": search.distribution.to_dict(),
        "marginals": search.distribution.marginals(),
        "history": history,
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    write_whole(directory.result, text + "\n")
    return json.loads(text)


def check_search(
    space: Space,
    config: SupernetConfig,
    targets: Mapping[str, float],
    data: DataConfig,
    latency: LatencyModel | None = None,
) -> None:
    """Raises PynasError for what no search can be made of: device, targets out of reach, data or batches that do not
    fit, joint distributions that are too large.
    """
    choose_device(config.device)
    cheapest: dict[str, float] = {name: low for name, (low, _) in space.cost_range().items()}
    if latency is not None:
        if latency.space.fingerprint != space.fingerprint:
            raise PynasError(
                f"latency: a model of space {latency.space.name}; allowed: one of {space.name}, as it is here"
            )
        cheapest["latency"] = latency.least
    for name, target in targets.items():
        if name == "latency" and latency is None:
            raise PynasError(f"target latency: {target:g} ms needs a latency model of {space.name}: see pynas latency")
        if name not in cheapest:
            raise PynasError(f"target {name}: unknown cost; allowed: {', '.join(cheapest)}")
        if not target >= cheapest[name]:
            raise PynasError(f"target {name}: {target:g}; the cheapest of {space.name} has {cheapest[name]:.10g}")
    architecture, _ = space.decode(np.zeros(len(space.variables), np.uint8))
    spec = ModelSpec.of(architecture, name=space.name)
    check_data(spec, data, TrainingConfig(batch_size=2))  # classes and channels
    for half, images in contents(data).images.items():
        if half in ("train", "validation") and images < config.batch_size:
            raise PynasError(
                f"search.batch_size: got {config.batch_size}, allowed: up to the {images} images of data.{half}"
            )
    if config.distribution != "factorised":
        Distribution.joint(space)


def _settings(
    space: Space,
    config: SupernetConfig,
    targets: Mapping[str, float],
    data: DataConfig,
    seed: int,
    latency: LatencyModel | None,
) -> dict[str, Any]:
    """What a search is a function of, as plain values."""
    return {
        "space": {"name": space.name, "fingerprint": space.fingerprint},
        "search": config.model_dump(mode="json", by_alias=True),
        "targets": dict(targets),
        "data": data.model_dump(mode="json"),
        "seed": seed,
        **({} if latency is None else {"latency": latency.fingerprint}),
    }


def _essence(settings: dict[str, Any]) -> dict[str, Any]:
    search = {key: value for key, value in settings["search"].items() if key not in EXECUTION}
    return json.loads(json.dumps({**settings, "search": search, "space": settings["space"]["fingerprint"]}))
