"""One task on disk: the layout of its folder, and what a worker does with it. Every executor goes through here.

TASKS/KEY/payload.json    what the function is called with, written by the driver
TASKS/KEY/log.txt         stdout and stderr of the task; runs of the same task append
TASKS/KEY/result.json     {"function", "digest", "seconds", "value"}, written by the worker, complete or absent

Executors whose workers cannot be heard directly (jobs, ranks) keep more there, see docs/clusters.md:

TASKS/KEY/progress.jsonl  a line for each value the function reported
TASKS/KEY/failure.json    {"reason": one line} of an exception, complete or absent
TASKS/KEY/job.json        the job that runs the task
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pynas.errors import PynasError
from pynas.files import write_whole

Report = Callable[[Any], None]

KEY_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.=+-]*)*")
FUNCTION_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Result:
    """A finished task: the value its function returned, the seconds it took, and the digest of what was asked."""

    function: str
    digest: str
    seconds: float
    value: Any


@dataclass(frozen=True)
class TaskFolder:
    """The folder of one task. Keys may contain "/" and become nested folders."""

    tasks: Path
    key: str

    def __post_init__(self) -> None:
        if not KEY_PATTERN.fullmatch(self.key):
            raise PynasError(
                f"task key {self.key!r}: allowed are letters, digits and _ . = + -, in parts joined by '/' "
                "that begin with a letter, a digit or _"
            )

    @property
    def path(self) -> Path:
        return self.tasks / self.key

    @property
    def payload(self) -> Path:
        return self.path / "payload.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def progress(self) -> Path:
        return self.path / "progress.jsonl"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    def read_payload(self) -> Any:
        return json.loads(self.payload.read_text(encoding="utf-8"))

    def read_result(self) -> Result | None:
        """The result, or None where there is none or what is there is not a whole result (the task runs again)."""
        try:
            return Result(**json.loads(self.result.read_text(encoding="utf-8")))
        except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, TypeError):
            return None

    def prepare(self, function: str, payload: Mapping[str, Any]) -> Result | None:
        """Driver side: check the task, return its result if it was run before, else write down the payload.

        Raises:
            PynasError: malformed function, payload that is not JSON, or a result of another function or payload.
        """
        if not FUNCTION_PATTERN.fullmatch(function):
            raise PynasError(f"task {self.key}: function {function!r} is not of the form 'package.module:name'")
        try:
            text = json.dumps(payload, indent=1)
        except (TypeError, ValueError) as error:
            raise PynasError(f"task {self.key}: the payload is not JSON: {error}") from error
        result = self.read_result()
        if result is None:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.payload, text)
        elif result.digest != digest(function, json.loads(text)):
            raise PynasError(
                f"{self.result} was made by another task than the one asked for now "
                f"({self._difference(function, text)}): the configuration has changed since. Go on with the former "
                "configuration, use a new study directory, or remove this folder to run the task again"
            )
        return result

    def _difference(self, function: str, text: str) -> str:
        result = self.read_result()
        if result is not None and result.function != function:
            return f"function {result.function} then, {function} now"
        try:
            before, now = self.read_payload(), json.loads(text)
        except (OSError, json.JSONDecodeError):
            return "the payload differs"
        changes = [f"{path}: {old} then, {new} now" for path, old, new in differences(before, now, "")]
        return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def differences(before: Any, now: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """The leaves in which two JSON values differ, as (path, text before, text now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            where = f"{path}.{name}" if path else name
            if name in before and name in now:
                yield from differences(before[name], now[name], where)
            else:
                old, new = (_short(side[name]) if name in side else "absent" for side in (before, now))
                yield where, old, new
    elif json.dumps(before) != json.dumps(now):  # and not !=, by which NaN differs from itself
        yield path, _short(before), _short(now)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def digest(function: str, payload: Any) -> str:
    """Identifies what was asked: SHA-256 over the function's name and the payload in canonical JSON."""
    text = json.dumps([function, payload], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_function(name: str) -> Callable[[Any, Report], Any]:
    """Import ``"package.module:name"``.

    Raises:
        PynasError: no such module, no such name in it, or not something to call.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PynasError(f"function {name!r}: module {module_name!r} cannot be imported: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise PynasError(f"function {name!r}: module {module_name!r} has no function {attribute!r}")
    return cast(Callable[[Any, Report], Any], function)


def redirect_output(log: Path) -> None:
    """Send this process's stdout and stderr (and those of code that is not Python) to the end of `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def run_task(folder: TaskFolder, function: str, payload: Any, report: Report) -> Any:
    """Worker side: call the function and put its result on disk; returns the value as it was written.

    Raises:
        TypeError: what the function returned is not JSON.
        Exception: whatever the function raised.
    """
    began = time.monotonic()
    value = load_function(function)(payload, report)
    result = {
        "function": function,
        "digest": digest(function, payload),
        "seconds": round(time.monotonic() - began, 3),
        "value": value,
    }
    try:
        text = json.dumps(result)
    except (TypeError, ValueError) as error:
        raise TypeError(f"what {function} returned is not JSON: {error}") from error
    write_whole(folder.result, text)
    return json.loads(text)["value"]


def describe(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its message (the message alone of a PynasError)."""
    lines = str(error).strip().splitlines()
    message = lines[0] if lines else ""
    if isinstance(error, PynasError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
