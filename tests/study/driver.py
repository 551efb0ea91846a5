"""A driver to be killed: writes to a study as fast as it can and prints what it was told is on disk."""

from __future__ import annotations

import sys

from study_examples import DISTRIBUTIONS, params, result, trial

from pynas.study.directory import StudyDirectory
from pynas.study.study import Study

with StudyDirectory.create(sys.argv[1]) as directory:
    study = Study.open(directory)
    iteration = max((trial.iteration for trial in study.trials()), default=-1)
    print("open", flush=True)
    while True:
        iteration += 1
        batch = [trial(iteration, index) for index in range(6)]
        study.record(batch, [params(index) for index in range(6)], DISTRIBUTIONS)
        for one in batch:
            print("recorded", one.key, flush=True)
        for index, one in enumerate(batch):
            study.start(one.key)
            values = result(index)
            for epoch in (1, 2):
                study.progress(one.key, epoch, values["curve"][epoch - 1])
                print("progress", one.key, epoch, flush=True)
            if index == 5:
                study.fail(one.key, "diverged")
                print("failed", one.key, flush=True)
            else:
                study.finish(one.key, values)
                print("finished", one.key, flush=True)
