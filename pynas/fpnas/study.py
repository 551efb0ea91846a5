"""FP-NAS as a study: for each budget a search in a supernet, whose mode is the answer; then final trainings.

STUDY/searches/NAME/ is the search of a budget (`pynas.fpnas.run`). It runs as a task of the executor, or on all ranks
of srun or mpirun together, and goes on from its last epoch whatever ended it. The journal's study "search" has a trial
for every epoch's mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.cores import available_cores
from pynas.data.config import DataConfig
from pynas.errors import PynasError, SearchStopped
from pynas.fpnas.config import FPNASConfig
from pynas.listener import Listener, Silent
from pynas.randomness import derive_seed
from pynas.ranks.beat import HEARTBEAT
from pynas.ranks.requeue import in_slurm_job
from pynas.runtime.executor import Done, Executor, Failed, Progress
from pynas.runtime.open import alone, open_executor
from pynas.runtime.task import TaskFolder
from pynas.search import trainings
from pynas.search.opening import open_config, settle
from pynas.search.results import plain, write_results
from pynas.search.winners import train_winners, write_winner
from pynas.space.budget import Budget, format_amount
from pynas.space.latency import LatencyModel
from pynas.space.space import Space, load_space
from pynas.space.table import RECIPE_KEYS, read_table
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial, trial_key
from pynas.train.config import TrainingConfig
from pynas.train.directory import RunDirectory
from pynas.train.log import read_log

if TYPE_CHECKING:
    from mpi4py.futures import MPIPoolExecutor

    from pynas.train.world import World

KEPT = ("genome", "costs", "accuracy", "entropy", "samples", "seconds", "marginals")
"""What a study's results keep of a search; its history beside it, its distribution in its own directory alone."""

SEARCH = "pynas.fpnas.study:search_budget"


def search(config: FPNASConfig, path: str | Path, *, listener: Listener | None = None) -> dict[str, Any] | None:
    """Run or go on with the study at `path`; returns its results (the content of ``results.json``).

    With an executor of kind mpi every rank calls this: all search together, then the first drives the final trainings
    of the others, who get None. Raises PynasError for what the user can mend, SearchStopped where a search fails, and
    on ranks `Stopped` where a signal ends it. KeyboardInterrupt passes through with every finished epoch on disk.
    """
    listener = listener or Silent()
    if config.executor.kind != "mpi":
        alone(config.executor.kind)
        return _drive(config, path, listener, None)
    from pynas.cluster.join import joined, requeued
    from pynas.runtime.mpi import launched, pool

    images = [str(data.path) for data in (config.data, config.final_data) if data.name == "folder"]
    with joined(launched(), Path(path), heartbeat=HEARTBEAT, device=config.search.device) as world:
        shown = listener if world.first else Silent()
        with requeued(world, shown):
            _search_on_ranks(config, path, shown, world)
        with pool(shared=[path], readable=images) as ranks:
            return None if ranks is None else _drive(config, path, listener, ranks)


def search_budget(payload: Mapping[str, Any], report: Callable[[Any], None]) -> dict[str, Any]:
    """As executors run it: search for a budget of a study, or go on with that; `report` gets each epoch's row.

    payload: {"study": its directory, "budget": its name}. What is found is in the search's directory.
    """
    directory = StudyDirectory.open(payload["study"])
    config = open_config(directory)
    assert isinstance(config, FPNASConfig)
    space = open_space(directory.space, config)
    # Signals keep their defaults, so that a job's state tells what ended it. What is lost is part of an epoch.
    result = _search(directory, config, space, payload["budget"], report=report, heed_signals=False)
    return {"accuracy": result["accuracy"], "seconds": result["seconds"]}


def open_space(table: str | Path, config: FPNASConfig, data: DataConfig | None = None) -> Space:
    """The space of a table, pinned as configured, without its recipe; with as many classes as `data` (those of the
    search) are told to have. Raises PynasError where nothing is to search.
    """
    if recipe := [name for name in config.pin if name in RECIPE_KEYS]:
        raise PynasError(f"pin: {', '.join(recipe)}: FP-NAS searches architectures; say it in training")
    pinned = read_table(table).pin(config.pin)
    classes = (data or config.data).classes
    rows = (*pinned.rows[:-1], replace(pinned.rows[-1], c=classes)) if classes else pinned.rows
    space = Space(replace(pinned, rows=rows, recipe=None, resolution=config.resolution or pinned.resolution))
    if not space.variables:
        raise PynasError(f"{config.space}: nothing is left to search: every variable is pinned or has one choice")
    return space


def open_latency(file: str | Path | None, table: str | Path, space: Space) -> LatencyModel | None:
    """The latency model of a table's space, for `space` that was made of it; None where there is no file."""
    return None if file is None else LatencyModel.load(file, load_space(table)).of(space)


def _search(directory: StudyDirectory, config: FPNASConfig, space: Space, name: str, **options: Any) -> dict[str, Any]:
    from pynas.fpnas.run import search_supernet

    seed = derive_seed(config.seed, "search", name)
    path = directory.searches / name
    targets, latency = config.targets(name), _kept_latency(directory, config, space)
    return search_supernet(space, config.search, targets, config.data, path, seed=seed, latency=latency, **options)


def _kept_latency(directory: StudyDirectory, config: FPNASConfig, space: Space) -> LatencyModel | None:
    return open_latency(config.latency and directory.kept("latency"), directory.space, space)


def _begin(stack: ExitStack, config: FPNASConfig, path: str | Path) -> StudyDirectory:
    """The study's directory, held until `stack` ends. Refuses what would fail after hours."""
    space = open_space(config.space, config)
    _check(config, space, open_latency(config.latency, config.space, space))
    directory = stack.enter_context(StudyDirectory.create(path))
    settle(directory, config, begun=bool(Study.open(directory, config.JOURNAL).trials()))
    return directory


def _check(config: FPNASConfig, space: Space, latency: LatencyModel | None) -> None:
    from pynas.fpnas.run import check_search
    from pynas.nets.load import ModelSpec
    from pynas.train.device import choose_device
    from pynas.train.models import check_data

    choose_device(config.training.device)
    for name in config.budgets:
        try:
            check_search(space, config.search, config.targets(name), config.data, latency)
        except PynasError as error:
            raise PynasError(f"budget {name}: {error}") from None
    if config.final.epochs:
        space = open_space(config.space, config, config.final_data)
        architecture, _ = space.decode(np.zeros(len(space.variables), np.uint8))
        check_data(ModelSpec.of(architecture, name=space.name), config.final_data, config.training)


def _search_on_ranks(config: FPNASConfig, path: str | Path, listener: Listener, world: World) -> None:
    """Every budget's search, one after another, each by all ranks; the first holds the study and writes it."""
    with ExitStack() as stack:
        driver: list[_Driver] = []

        def begin() -> str:
            driver.append(_Driver(config, _begin(stack, config, path), listener, None))
            return str(driver[0].directory.path)

        directory = StudyDirectory(world.by_first(begin))
        space = open_space(directory.space, config)
        for name in config.budgets:
            listener.say(f"search {name}: {world.size} ranks")
            report = partial(driver[0].take, name) if driver else None
            _search(
                *(directory, config, space, name),
                listener=listener,
                world=world,
                stop_on_usr=in_slurm_job(),
                report=report,
            )


def _drive(config: FPNASConfig, path: str | Path, listener: Listener, ranks: MPIPoolExecutor | None) -> dict[str, Any]:
    with ExitStack() as stack:
        directory = _begin(stack, config, path)
        return _Driver(config, directory, listener, ranks).run()


class _Driver:
    def __init__(
        self, config: FPNASConfig, directory: StudyDirectory, listener: Listener, ranks: MPIPoolExecutor | None
    ) -> None:
        self.config, self.directory, self.listener, self.ranks = config, directory, listener, ranks
        self.space = open_space(directory.space, config)
        self.final_space = open_space(directory.space, config, config.final_data)  # may have more classes
        self.latency = _kept_latency(directory, config, self.space)
        self.study = Study.open(directory, config.JOURNAL)
        self.recorded = {trial.key for trial in self.study.trials() if trial.finished}
        self.results: dict[str, Any] = {"method": "fpnas", "space": self.space.name}
        self.results |= {"fingerprint": self.space.fingerprint, "epochs": config.search.epochs}
        self.results["choices"] = {variable.name: list(variable.values) for variable in self.space.variables}
        for name in config.budgets:
            self.take(name)

    def run(self) -> dict[str, Any]:
        config = self.config
        self.search_all()
        winners = {name: self.winner(name) for name in config.budgets}
        self.keep(winners=winners)
        if config.final.epochs:
            with self.executor(config.executor.workers) as executor:
                self.final(winners, executor)
        for name, winner in winners.items():
            write_winner(self.directory.winners / f"{name}.yaml", self.final_space, winner, name)
        self.keep(winners=winners)
        return plain(self.results)

    def keep(self, **derived: Any) -> None:
        self.results.update(derived)
        write_results(self.directory.results, self.results)

    def executor(self, workers: int | None) -> AbstractContextManager[Executor]:
        settings = self.config.executor
        return open_executor(
            settings.kind,
            self.directory.tasks,
            workers=workers,
            threads=settings.threads,
            retries=settings.retries,
            slurm=settings.slurm,
            ranks=self.ranks,
        )

    # The searches ---------------------------------------------------------------------------------------------------

    def search_all(self) -> None:
        """Finish every budget's search; what of it is done already stays as it is."""
        names = list(self.config.budgets)
        left = [name for name in names if self.result(name) is None]
        if left:
            local = self.config.executor.kind == "local"
            most = self.config.executor.workers or (available_cores() if local else len(left))
            with self.executor(min(most, len(left))) as executor:
                self.run_searches(left, executor)
        for name in names:
            self.take(name)

    def result(self, name: str) -> dict[str, Any] | None:
        """What a search has found, once it is finished."""
        return RunDirectory(self.directory.searches / name).read_result()

    def run_searches(self, names: Sequence[str], executor: Executor) -> None:
        from pynas.fpnas.run import describe
        from pynas.train.checkpoint import newest_step

        bars = {f"search/{name}": f"search {name}" for name in names}
        begun: dict[str, int] = {}  # the step that a search goes on from

        def step(key: str) -> int:
            # Not what was reported: a search may die between its checkpoint and the report of it.
            return newest_step(RunDirectory(self.directory.searches / key.removeprefix("search/")).checkpoints)

        def submit(key: str) -> None:
            begun[key] = step(key)
            payload = {"study": str(self.directory.path), "budget": key.removeprefix("search/")}
            executor.submit(key, SEARCH, payload)

        for key, bar in bars.items():
            # Whether it is finished its own directory tells, which somebody may have removed to search anew.
            TaskFolder(self.directory.tasks, key).result.unlink(missing_ok=True)
            self.listener.begin(bar, self.config.search.epochs)
            submit(key)
        for event in executor.outcomes():
            bar, name = bars[event.key], event.key.removeprefix("search/")
            match event:
                case Progress(value=row):
                    self.take(name)
                    self.listener.advance(bar, row["epoch"], describe(row))
                case Done():
                    self.listener.end(bar)
                case Failed(reason=reason, kind="died") if step(event.key) > begun[event.key]:
                    # A worker was killed, a job's time was up: what has got on goes on from its checkpoint.
                    self.listener.say(f"{bar}: {reason}; it goes on after step {step(event.key)}")
                    submit(event.key)
                case Failed(reason=reason):
                    raise SearchStopped(f"{bar}: {reason}; its log is under {self.directory.tasks / event.key}")

    def take(self, name: str, _: Any = None) -> None:
        """Take in what a search has written by now: its epochs, and what it has found once it is finished."""
        result = self.result(name) or {}
        searched: dict[str, Any] = {"targets": self.config.targets(name)}
        searched |= {key: result[key] for key in KEPT if key in result}
        rows = read_log(RunDirectory(self.directory.searches / name).log)
        searched["history"] = result.get("history") or [row for row in rows if row["event"] == "epoch"]
        self.record(name, searched["history"])
        self.keep(searches=self.results.get("searches", {}) | {name: searched})

    def record(self, name: str, history: Sequence[Mapping[str, Any]]) -> None:
        """The epochs' modes as trials, for Optuna's tools; what is recorded already stays as it is."""
        number = 1 + list(self.config.budgets).index(name)
        new = [row for row in history if trial_key(number, row["epoch"] - 1) not in self.recorded]
        if not new:
            return
        trials = [
            Trial(
                iteration=number,
                index=row["epoch"] - 1,
                genome=row["genome"],
                epochs=row["epoch"],
                seed=derive_seed(self.config.seed, "search", name),
                costs=self.costs(row["genome"]),
            )
            for row in new
        ]
        for trial, row in zip(trainings.record(self.study, self.space, trials), new, strict=True):
            notes = {"search": name, "entropy": row["entropy"], "samples": row["samples"], "loss": row["loss"]}
            notes |= {f"expected_{cost}": value for cost, value in row["costs"].items()}
            self.study.finish(trial.key, {"accuracy": row["accuracy"], "seconds": row["seconds"]}, notes)
            self.recorded.add(trial.key)

    # What they found ------------------------------------------------------------------------------------------------

    def winner(self, name: str) -> dict[str, Any]:
        result = self.results["searches"][name]
        for cost, target in result["targets"].items():
            if result["costs"][cost] > target:
                self.listener.say(
                    f"search {name}: the mode has {format_amount(result['costs'][cost])} {cost}, above its target of "
                    f"{format_amount(target)}; a larger search.beta or a longer search brings it nearer"
                )
        architecture, _ = self.final_space.decode(np.array(result["genome"], np.uint8))
        return {
            "budget": Budget(**self.config.budgets[name]).to_dict(),
            "genome": result["genome"],
            "predicted": result["accuracy"],
            "costs": result["costs"] | architecture.cost(),
            "architecture": architecture.to_dict(),
            "model": None,
            "recipe": self.config.training.searched.to_dict(),
        }

    def final(self, winners: dict[str, Any], executor: Executor) -> None:
        """Train each winner, and beside it a random network of nearly the same FLOPs."""
        runs: dict[str, dict[str, Any]] = {}
        for number, (name, winner) in enumerate(winners.items(), start=1):
            runs[name] = {"final": (winner["genome"], winner["costs"])}
            if self.config.final.baseline:
                runs[name]["baseline"] = self.random_like(winner, derive_seed(self.config.seed, "baseline", number))
        train_winners(
            winners,
            runs,
            config=self.config,
            training=TrainingConfig(**self.config.training.model_dump(include=set(TrainingConfig.model_fields))),
            recipe=self.config.training.searched,
            directory=self.directory,
            space=self.final_space,
            executor=executor,
            listener=self.listener,
        )

    def costs(self, genome: Sequence[int]) -> dict[str, float]:
        """What the space counts, and the latency that a model predicts."""
        genomes = np.array([genome], np.uint8)
        counted: dict[str, float] = {name: int(values[0]) for name, values in self.final_space.costs(genomes).items()}
        return counted if self.latency is None else {**counted, "latency": float(self.latency.predict(genomes)[0])}

    def random_like(self, winner: Mapping[str, Any], seed: int) -> tuple[list[int], dict[str, float]]:
        """A random architecture with 95 to 100% of the winner's FLOPs, or as near below as there are any."""
        flops = winner["costs"]["flops"]
        for share in (0.95, 0.8, 0.0):
            try:
                genome = self.final_space.sample(1, budget={"flops": (share * flops, flops)}, seed=seed)
            except PynasError:
                continue
            return genome[0].tolist(), self.costs(genome[0])
        return winner["genome"], dict(winner["costs"])
