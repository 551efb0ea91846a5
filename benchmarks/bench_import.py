"""`import pynas` in fresh processes, beside an empty Python and numpy; and the time to a first evolve."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import harness

NO_TORCH = "import sys; assert 'torch' not in sys.modules, 'torch was imported'"
FIRST_EVOLVE = """
import numpy, pynas
space = pynas.load_space("fbnetv3", pin={"ema": True})
a, r = space.architecture_features, space.recipe_features
sizes = {"embedding": (24, a), "proxy": (2, 24), "hidden": (32, 24 + r), "output": (1, 32)}
random = numpy.random.default_rng(0)
weights = {}
for name, shape in sizes.items():
    weights[name + ".weight"] = random.standard_normal(shape).astype(numpy.float32)
    weights[name + ".bias"] = numpy.zeros(shape[0], numpy.float32)
scales = numpy.array([0.0, 1.0]), numpy.array([[0.0, 1.0], [0.0, 1.0]])
predictor = pynas.Predictor(space.fingerprint, weights, *scales)
pynas.evolve(space, predictor, budget={"flops": "550M"}, threads=1)
"""
PROGRAMS = {
    "python -c pass": "pass",
    "import numpy": "import numpy",
    "import pynas": f"import pynas; {NO_TORCH}",
    "import pynas and its front door": f"import pynas; pynas.evolve, pynas.load_space, pynas.Predictor; {NO_TORCH}",
    "to the end of a first evolve": f"{FIRST_EVOLVE}; {NO_TORCH}".replace("\n; ", "\n"),
}


def main() -> None:
    options = harness.arguments(__doc__, rounds=15)
    around = harness.machine()

    def run(program: str) -> Callable[[int], None]:
        return lambda _: subprocess.run([sys.executable, "-c", program], check=True) and None

    runs = harness.measure({name: run(program) for name, program in PROGRAMS.items()}, options.rounds)
    for one in runs.values():
        one.cpu = [float("nan")] * len(one.wall)  # of another process
    results = {name: {"seconds": one.summary()["seconds"]} for name, one in runs.items()}
    rows = [
        (name, *(f"{1e3 * r['seconds'][key]:.1f}" for key in ("median", "min", "max"))) for name, r in results.items()
    ]
    median = results["import pynas"]["seconds"]["median"]
    targets = [("import pynas below 0.15 s, without torch", f"{median:.3f} s", median < 0.15)]
    harness.report("import", options, around, ("program", "ms", "min", "max"), rows, targets, {"results": results})


if __name__ == "__main__":
    main()
