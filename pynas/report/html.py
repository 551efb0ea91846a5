"""One self-contained HTML page about a study: it opens anywhere, with no network."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.report import figures, supernet_figures, tables

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from pynas.study.trials import Trial


def write_report(path: Path, title: str, trials: Sequence[Trial], results: Mapping[str, Any]) -> None:
    """Render the page for a study's `trials` and `results` (`search/results.py`) and move it to `path`."""
    import jinja2
    from plotly.offline import get_plotlyjs

    template = jinja2.Environment(autoescape=True).from_string(
        files("pynas.report").joinpath("report.html").read_text(encoding="utf-8")
    )
    states = Counter(trial.state for trial in trials)
    page = template.render(
        title=title,
        subtitle=_subtitle(results),
        winners=tables.winner_rows(results),
        fpnas=_is_fpnas(results),
        searches=tables.search_rows(results),
        figures=[
            {"title": name, "note": note, "html": _markup(f"figure-{i}", figure)}
            for i, (name, note, figure) in enumerate((_supernet if _is_fpnas(results) else _figures)(trials, results))
        ],
        counts=", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet",
        failed=[trial for trial in trials if trial.state == "failed"],
        plotly_js=_safe(f"<script>{get_plotlyjs()}</script>"),
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _is_fpnas(results: Mapping[str, Any]) -> bool:
    return results.get("method") == "fpnas"


def _subtitle(results: Mapping[str, Any]) -> str:
    if _is_fpnas(results):
        return f"FP-NAS in the space {results['space']}: {results['epochs']} epochs for each budget."
    pool = results.get("pool")
    if not pool:
        return ""
    share = f"{100 * pool['acceptance']:.1f}% of the points drawn lie within {pool['bounds']}"
    return f"Space {results['space']}: pool of {pool['size']} genomes ({share})."


def _figures(trials: Sequence[Trial], results: Mapping[str, Any]) -> Iterator[tuple[str, str, go.Figure]]:
    stop = results.get("early_stop")
    done = figures.complete(trials)
    if done:
        epoch = min(len(trial.curve) for trial in done)
        yield (
            "Accuracy against FLOPs",
            "Every trained candidate at the same epoch, and the front of those that no other beats.",
            figures.accuracy_against_flops(trials, epoch),
        )
    fits = [i["cross_validation"] for i in results.get("iterations", []) if i.get("cross_validation")]
    if fits:
        yield (
            "Predictor against measured",
            "Cross-validated: each candidate is predicted by a model that has not seen it. A predictor that ranks no "
            "better than ridge regression adds nothing; near 0 neither says anything.",
            figures.predicted_against_measured(fits[-1]),
        )
    if stop and stop["correlation"]:
        yield (
            "Rank correlation by epoch",
            "Candidates after the first iteration train up to the first epoch that reaches the threshold.",
            figures.rank_correlation_by_epoch(stop),
        )
    if done:
        yield (
            "Sampled accuracy by iteration",
            "The first iteration is random, spread over the costs; later ones are the predictor's choice.",
            figures.accuracy_by_iteration(trials, epoch),
        )
    if results.get("evolution"):
        yield (
            "Evolution",
            "Best predicted accuracy under each budget, in the restart that won.",
            figures.evolution_history(results["evolution"]),
        )
    if results.get("pretrain"):
        for name, figure in figures.proxy_fit(results["pretrain"]).items():
            yield f"Pretraining: {name}", "The proxy head on the 20% of the pool it was not trained on.", figure


def _supernet(trials: Sequence[Trial], results: Mapping[str, Any]) -> Iterator[tuple[str, str, go.Figure]]:
    searches = {name: search for name, search in results.get("searches", {}).items() if search["history"]}
    if not searches:
        return
    yield (
        "Entropy",
        "Of the distribution over architectures after each epoch, in nats. It stays where it is while the weights warm "
        "up, and falls as the search makes up its mind.",
        supernet_figures.entropy(searches),
    )
    yield (
        "Sample count",
        "K, the mean of each epoch's steps. With adaptive sampling it is max(1, floor(lambda x entropy)), equation 4.",
        supernet_figures.sample_count(searches),
    )
    targets = dict.fromkeys(cost for search in searches.values() for cost in search.get("targets", {}))
    for cost in targets or ["flops"]:
        yield (
            f"Expected {cost}",
            "The mean of the architectures drawn; the dashed line is the target of the hinge on the cost.",
            supernet_figures.expected_cost(searches, cost),
        )
    yield (
        "Validation accuracy of the mode",
        "With the supernet's shared weights, on the half that trains alpha; lower than that of the network by itself.",
        supernet_figures.mode_accuracy(searches),
    )
    for name, search in searches.items():
        if "marginals" in search:
            yield (
                f"Distribution, {name}",
                "The probability of every choice at the end of the search, layer by layer; the mode's in bold.",
                supernet_figures.distribution(search["marginals"], results["choices"], search["genome"]),
            )


def _markup(identifier: str, figure: go.Figure) -> Any:
    return _safe(figure.to_html(full_html=False, include_plotlyjs=False, div_id=identifier))


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
