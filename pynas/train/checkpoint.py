"""Checkpoints of a training: written whole or not at all, the newest good one is found again.

RUN/checkpoints/step_000000123.pt     what `Checkpoints.write` was given, by step; the last KEEP of them
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pynas.errors import PynasError
from pynas.files import placed

FORMAT = "pynas-checkpoint-1"
KEEP = 2
"""The newest and the one before it: should the newest turn out damaged, little is lost."""

PASSED_OVER = ".passed-over"
"""Ending of a checkpoint that could not be used, where an older one could."""

_NAME = re.compile(r"step_(\d+)\.pt")


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder, whosever it is; 0 where there is none."""
    return max(_steps(folder), default=0)


def _steps(folder: Path) -> dict[int, Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.pt"))
    return {int(match[1]): path for match, path in named if match}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training. `identity` tells them from another training's: it must be equal on resuming."""

    folder: Path
    identity: str

    def write(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` (tensors and plain values) as the checkpoint of `step`; older ones but the last go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:09d}.pt"
        with placed(path) as temporary:
            content = io.BytesIO()  # torch tells of a full disk in a dozen ways, Python in one
            torch.save({"format": FORMAT, "identity": self.identity, "step": step, "state": state}, content)
            temporary.write_bytes(content.getbuffer())
        before = [old for old in self.paths() if old.name < path.name]  # steps are padded with zeros
        for old in before[KEEP - 1 :]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """All there are, the newest first."""
        return [path for _, path in sorted(_steps(self.folder).items(), reverse=True)]

    def newest(self) -> Path | None:
        return next(iter(self.paths()), None)

    def restore(self, load: Callable[[dict[str, Any]], None], say: Callable[[str], None]) -> Path | None:
        """Give the newest checkpoint that `load` takes to it; None where there are no checkpoints at all.

        One that is truncated, foreign or does not fit is passed over and put aside under another name, and `say` tells
        why. Raises PynasError where there are checkpoints and none is good.
        """
        for unfinished in self.folder.glob(".step_*"):  # of a process that was killed while it wrote
            unfinished.unlink(missing_ok=True)
        reasons, aside = [], []
        for path in self.paths():
            try:
                load(self.read(path))
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError) as error:
                reasons.append(f"{path}: {_reason(error)}")
                aside.append(path)
                say(f"checkpoint passed over: {reasons[-1]}")
            else:
                for other in aside:
                    other.rename(other.with_name(f"{other.name}{PASSED_OVER}"))
                return path
        if reasons:
            raise PynasError(
                f"no checkpoint can be used: {'; '.join(reasons)}. Remove {self.folder} to begin this training anew"
            )
        return None

    def read(self, path: Path) -> dict[str, Any]:
        """What was written to `path`; ValueError where that is no good checkpoint of this training."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch have a dozen ways of saying that a file is no checkpoint
            raise ValueError(f"is truncated or no checkpoint ({_reason(error)})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"is no checkpoint of this version of pynas ({FORMAT})")
        if content["identity"] != self.identity:
            raise ValueError("is of another training: its network, recipe, data or seed differ")
        return content["state"]


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
