"""Candidates that do nothing, for bench_executors.py. Jobs import them."""

from __future__ import annotations

import time
from typing import Any


def nothing(payload: dict, report: Any) -> int:
    return payload["index"]


def wait(payload: dict, report: Any) -> None:
    time.sleep(3600)
