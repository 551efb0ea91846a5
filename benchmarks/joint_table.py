"""A finished study's candidates as a CSV that the leagues take: the joint table of fbnetv3_28, or one of yours.

pynas search benchmarks/tables/fbnetv3_28.yaml --dir STUDY       # some hours of processor time
python benchmarks/joint_table.py STUDY benchmarks/tables/fbnetv3_28.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from pynas.nars.config import NARSConfig
from pynas.nars.spaces import open_space
from pynas.search.opening import open_study
from pynas.study.study import Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("table", type=Path)
    options = parser.parse_args()
    directory, config = open_study(options.study)
    assert isinstance(config, NARSConfig), "a study of method nars"
    space = open_space(directory, config)
    trials = [t for t in Study.open(directory, read_only=True).trials() if t.state == "complete"]
    epochs = min(len(trial.curve) for trial in trials)
    names = [
        ("recipe." if v.group == "recipe" else "") + f"{'list' if v.kind == 'list' else 'range'}:{v.name}"
        for v in space.variables
    ]
    names += ["accuracy", "cost:flops", "cost:params", *(f"curve.{epoch}" for epoch in range(1, epochs + 1))]
    with options.table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for trial in trials:
            values = space.values(np.array(trial.genome, np.uint8)).values()
            curve = [round(100 * accuracy, 4) for accuracy in trial.curve[:epochs]]  # percent
            costs = [trial.costs["flops"], trial.costs["params"]]
            writer.writerow([*values, curve[-1], *costs, *curve])
    print(f"{len(trials)} candidates of {space.name} after {epochs} epochs: {options.table}")


if __name__ == "__main__":
    main()
