"""`results.json`: what a search has derived so far, for `pynas report`, `pynas evolve` and the last table.

Everything in it follows from the configuration and the journal; it can be lost and made again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from pynas.errors import PynasError
from pynas.files import write_whole


def write_results(path: Path, results: dict[str, Any]) -> None:
    write_whole(path, json.dumps(plain(results), indent=1) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PynasError(f"{path}: not valid JSON ({error}); run pynas search on the study to write it anew") from None
    sections = ("pool", "early_stop", "winners", "evolution", "pretrain")
    if not isinstance(results, dict) or not all(isinstance(results.get(s) or {}, dict) for s in sections):
        raise PynasError(f"{path}: not the results of a search; run pynas search on the study to write it anew")
    return results


def plain(value: Any) -> Any:
    """JSON values from dataclasses, arrays and numpy numbers; NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
