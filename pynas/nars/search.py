"""Runs a NARS study: opens its directory and executor, and has the candidates chosen as the study says.

The search is a function of the configuration and the recorded trials. Running it again on a study's directory replays
it: candidates and results come from the journal where it has them, and only what is missing is computed. That is all
there is to resuming.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.errors import PynasError
from pynas.listener import Listener, Silent
from pynas.nars.aimed_search import AimedSearch
from pynas.nars.config import NARSConfig
from pynas.nars.paper_search import PaperSearch
from pynas.nars.spaces import fixed_model, new_space, open_space
from pynas.runtime.open import alone, open_executor
from pynas.search.opening import settle
from pynas.space.space import Space
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study

if TYPE_CHECKING:
    from mpi4py.futures import MPIPoolExecutor


def search(config: NARSConfig, path: str | Path, *, listener: Listener | None = None) -> dict[str, Any] | None:
    """Run or go on with the study at `path`; returns its results (the content of ``results.json``).

    With an executor of kind mpi every rank calls this. The first drives; the others train candidates until the search
    ends, touch nothing of the study else, and get None.

    Raises PynasError for what the user can mend and SearchStopped where most candidates fail. KeyboardInterrupt passes
    through with everything finished so far on disk.
    """
    listener = listener or Silent()
    if config.executor.kind != "mpi":
        alone(config.executor.kind)
        return _drive(config, path, listener, None)
    from pynas.runtime.mpi import pool

    images = [data.path for data in (config.data, config.final.data) if data is not None and data.name == "folder"]
    with pool(shared=[path], readable=[str(path) for path in images]) as ranks:
        return None if ranks is None else _drive(config, path, listener, ranks)


def _drive(config: NARSConfig, path: str | Path, listener: Listener, ranks: MPIPoolExecutor | None) -> dict[str, Any]:
    _check(config, new_space(config))
    with StudyDirectory.create(path) as directory:
        begun = directory.journal.exists() and bool(Study.open(directory).trials())
        settle(directory, config, begun=begun)
        space = open_space(directory, config)
        settings = config.executor
        with open_executor(
            settings.kind,
            directory.tasks,
            workers=settings.workers,
            threads=settings.threads,
            retries=settings.retries,
            slurm=settings.slurm,
            ranks=ranks,
        ) as executor:
            kind = AimedSearch if config.selection == "aimed" else PaperSearch
            return kind(config, directory, space, executor, listener).run()


def _check(config: NARSConfig, space: Space) -> None:
    """What would fail the search after hours fails it at once: budgets that nothing meets, data that do not fit."""
    from pynas.nets.load import ModelSpec
    from pynas.train.device import choose_device
    from pynas.train.models import check_data

    choose_device(config.training.device)
    architecture, _ = space.decode(np.zeros(len(space.variables), np.uint8))
    spec = fixed_model(config) or ModelSpec.of(architecture, name="architecture")
    for data in (config.data, config.final_data):
        check_data(spec, data, config.training)
    for name, bounds in {"pool.budget": config.pool.budget, **config.budgets}.items():
        try:
            space.sample(1, budget=bounds)
        except PynasError as error:
            raise PynasError(f"budget {name}: {error}") from None
