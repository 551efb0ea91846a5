"""A candidate that does nothing, for bench_executors.py. Jobs import it."""

from __future__ import annotations

from typing import Any


def nothing(payload: dict, report: Any) -> int:
    return payload["index"]
