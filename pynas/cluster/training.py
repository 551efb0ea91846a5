"""`pynas train` wherever it runs: in this process, on the ranks of a launcher, or as a job that it submits itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynas.cluster.join import joined, requeued
from pynas.cluster.submission import follow, running, submit, submitting
from pynas.data.config import DataConfig
from pynas.errors import JobFailed
from pynas.listener import Listener, Silent
from pynas.nets.load import ModelSpec
from pynas.ranks.launch import Launch
from pynas.ranks.requeue import in_slurm_job
from pynas.train.directory import RunDirectory, check_same, identity_of, settings_of
from pynas.train.models import check_data
from pynas.train.recipe import load_recipe
from pynas.train.two_step import run_folders, train_models
from pynas.train.world import World


@dataclass(frozen=True)
class Training:
    """What `pynas train` was asked for; the arguments of `train_models`."""

    specs: Sequence[ModelSpec]
    data: DataConfig
    path: Path
    recipe: str | None
    settings: Mapping[str, Any]
    seed: int
    teacher: ModelSpec | None
    two_step: bool

    def here(self, listener: Listener) -> dict[str, dict[str, Any]]:
        """Train in this process; results by the name of the run."""
        return self._train(listener, None)

    def on_ranks(self, launch: Launch, listener: Listener, *, heartbeat: float) -> dict[str, dict[str, Any]] | None:
        """Train as one rank of those that a launcher started; the results on rank 0, None on the others."""
        device = str(self.settings.get("device", "auto"))
        with joined(launch, self.path, heartbeat=heartbeat, device=device) as world:
            results = self._train(listener if world.first else Silent(), world)
            return results if world.first else None

    def as_job(
        self,
        command: Sequence[str],
        say: Callable[[str], None],
        *,
        nodes: int,
        tasks_per_node: int,
        parameters: Mapping[str, Any],
        wait: bool,
    ) -> dict[str, dict[str, Any]] | None:
        """Train as a job of Slurm, whose ranks run `command`; the results, or None where nobody waits for them.

        A training that has a job already gets no second one: that job is followed. Raises PynasError where that job
        trains something else, and JobFailed where it ends without the results.
        """
        trains = self.check(World(0, nodes * tasks_per_node, 0, nodes))
        if not self.two_step and (results := self.results()) is not None:
            return results
        with submitting(self.path):
            job = running(self.path, nodes, tasks_per_node, trains)
            if job is None:
                job = submit(command, self.path, nodes, tasks_per_node, trains, parameters)
                say(f"job {job.job} submitted: {nodes} x {tasks_per_node} ranks; its log: {job.errors}")
            else:
                say(f"job {job.job} is at it already: {job.nodes} x {job.tasks_per_node} ranks; its log: {job.errors}")
        if not wait:
            return None
        try:
            ended = follow(job, say)
        except KeyboardInterrupt:
            say(f"job {job.job} goes on. The same command follows it again; scancel {job.job} ends it")
            raise
        if (results := self.results()) is None:
            raise JobFailed(f"job {job.job} ended as {ended} without a result; see {job.errors}")
        return results

    def check(self, world: World) -> str:
        """What would fail on the ranks fails here: data or batches that do not fit, a directory of another training.

        The directories of two steps are left to the job: what the students learn from is not there yet. Returns what
        tells this training from another; writes nothing, for a job may be at it.
        """
        identities = [f"two_step={self.two_step}"]
        for spec, folder in zip(self.specs, run_folders(self.specs, self.path).values(), strict=True):
            recipe = load_recipe(self.recipe, of_network=spec.recipe, settings=self.settings)
            check_data(spec, self.data, recipe)
            world.batch_of_rank(recipe.batch_size)
            settings = settings_of(spec, recipe, self.data, self.seed, self.teacher, world)
            if not self.two_step:
                check_same(RunDirectory(folder.absolute()), settings)
            identities.append(identity_of(settings))
        return hashlib.sha256("\n".join(identities).encode()).hexdigest()

    def results(self) -> dict[str, dict[str, Any]] | None:
        """The results of every run, once all are finished."""
        found: dict[str, dict[str, Any]] = {}
        for name, folder in run_folders(self.specs, self.path, self.two_step).items():
            directory = RunDirectory(folder)
            result = directory.read_result()
            if result is None or not directory.weights.is_file():
                return None
            found[name] = result | {"weights": str(directory.weights)}
        return found

    def _train(self, listener: Listener, world: World | None) -> dict[str, dict[str, Any]]:
        with requeued(world, listener):
            return train_models(
                self.specs,
                self.data,
                self.path,
                recipe=self.recipe,
                settings=self.settings,
                seed=self.seed,
                teacher=self.teacher,
                two_step=self.two_step,
                listener=listener,
                world=world,
                stop_on_usr=in_slurm_job(),
            )
