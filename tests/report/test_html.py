"""The report in a real headless browser: every figure is drawn, nothing is fetched, nothing goes wrong."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pynas
from pynas.report.html import write_report
from pynas.study.trials import Trial

SPACE = pynas.load_space("fbnetv3_28")


def study() -> tuple[list[Trial], dict[str, Any]]:
    """Trials and results as a search leaves them, with a failed candidate whose reason tries to be markup."""
    genomes = SPACE.sample(12, seed=0)
    costs = SPACE.costs(genomes)
    rng = np.random.default_rng(0)
    trials = []
    for i, genome in enumerate(genomes):
        curve = (0.5 + 0.3 * rng.random() * np.arange(1, 4) / 3).tolist()
        done = {"state": "complete", "accuracy": curve[-1], "curve": curve}
        failed = {"state": "failed", "reason": "ValueError: <script>document.title = 'taken over'</script>"}
        trials.append(
            Trial(
                1 + i // 6,
                i % 6,
                genome.tolist(),
                3,
                0,
                {k: int(v[i]) for k, v in costs.items()},
                **(done if i else failed),
            )
        )
    architecture, recipe = SPACE.decode(genomes[0])
    labels = [trial.curve[-1] for trial in trials[1:]]
    check = {"mlp": 0.5, "ridge": 0.6, "measured": labels, "mlp_predicted": labels, "ridge_predicted": labels[::-1]}
    history = {"restart": [0, 0], "generation": [0, 1], "evaluations": [0, 960], "best": [0.7, 0.8], "mean": [0.6, 0.7]}
    winner = {
        "budget": {"flops": [1e6, 2e6]},
        "predicted": 0.8,
        "costs": {key: int(value[0]) for key, value in costs.items()},
        "architecture": architecture.to_dict(),
        "recipe": recipe.to_dict() if recipe else None,
        "final": {"accuracy": 0.85, "test_accuracy": 0.84},
    }
    results = {
        "space": "fbnetv3_28",
        "pool": {"size": 100, "acceptance": 0.5, "bounds": "flops=1M:4M"},
        "pretrain": {
            "r2": {"flops": 0.9},
            "measured": {"flops": [1e6, 2e6, 3e6]},
            "predicted": {"flops": [1.1e6, 2e6, 2.9e6]},
        },
        "early_stop": {"epoch": 2, "threshold": 0.92, "correlation": [0.5, 0.95, 1.0]},
        "iterations": [{"iteration": 1, "cross_validation": check}],
        "evolution": {"small": {"history": history}},
        "winners": {"small": winner},
    }
    return trials, results


def find_browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("PYNAS_REQUIRE_BROWSER"):
        pytest.fail("no Chromium found, and PYNAS_REQUIRE_BROWSER is set")
    pytest.skip("no Chromium on this machine (CI has one)")


def test_the_page_needs_no_network_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(page, "a study", *study())
    text = page.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    assert "<script>document.title" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def supernet() -> tuple[list[Trial], dict[str, Any]]:
    """Trials and results as an FP-NAS study leaves them: one search finished, one under way, one not begun."""
    trials, results = study()
    genome = trials[1].genome
    rows = [
        {"epoch": e, "step": 4 * e, "entropy": 9.0 - e, "samples": 8, "seconds": 2.0, "costs": {"flops": 2e6 / e}}
        | {"accuracy": 0.2 * e, "loss": 2.0 / e, "genome": genome}
        for e in (1, 2, 3)
    ]
    marginals = {v.name: [1 / len(v.values)] * len(v.values) for v in SPACE.variables}
    targets = {"flops": 1e6}
    done = {"targets": targets, "history": rows, "genome": genome, "marginals": marginals}
    searches = {
        "small": done,
        "large": {"targets": targets, "history": rows[:1]},
        "last": {"targets": {}, "history": []},
    }
    choices = {v.name: list(v.values) for v in SPACE.variables}
    results = {"method": "fpnas", "space": "fbnetv3_28", "epochs": 3, "winners": results["winners"]}
    return trials, {**results, "searches": searches, "choices": choices}


NARS_TITLES = [
    "Accuracy against FLOPs",
    "Predictor against measured",
    "Rank correlation by epoch",
    "Sampled accuracy by iteration",
    "Evolution",
    "Pretraining: flops",
]
SUPERNET_TITLES = [
    "Entropy",
    "Sample count",
    "Expected flops",
    "Validation accuracy of the mode",
    "Distribution, small",
]


@pytest.mark.parametrize(
    ("found", "titles"),
    [
        (study, ["Winners", *NARS_TITLES, "Candidates"]),
        (supernet, ["Winners", "Searches", *SUPERNET_TITLES, "Modes of the epochs"]),
    ],
)
def test_a_real_browser_draws_every_figure(
    found: Callable[[], tuple[list[Trial], dict[str, Any]]], titles: list[str], tmp_path: Path
) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = find_browser()
    page = tmp_path / "report.html"
    write_report(page, "a study", *found())
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver_path = shutil.which("chromedriver")
    if driver_path is None and not os.environ.get("PYNAS_REQUIRE_BROWSER"):
        pytest.skip("no chromedriver on this machine (CI has one)")
    service = webdriver.ChromeService(executable_path=driver_path)
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.get(page.as_uri())
        assert driver.title == "pynas: a study"
        assert [element.text for element in driver.find_elements("tag name", "h2")] == titles
        plots = driver.find_elements("css selector", ".js-plotly-plot")
        assert len(plots) == len({*NARS_TITLES, *SUPERNET_TITLES} & {*titles})
        for plot in plots:
            assert plot.find_elements("css selector", ".trace .point, .trace path, path.box, .hm image"), (
                plot.get_attribute("id")
            )
        assert driver.find_element("id", "winners").text.count("small") == 1
        assert "ValueError: <script>" in driver.find_element("id", "failed").text
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_unfinished_study_has_a_report_too(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(page, "just begun", [], {"space": "fbnetv3_28"})
    assert "The search has not found one yet" in page.read_text()
