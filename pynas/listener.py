"""What a search or a training tells whoever watches it (`pynas.watch.Watch` does); the default is silence."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    def begin(self, bar: str, total: float) -> None:
        """A piece of work called `bar` starts; it is done when it has advanced to `total`."""

    def advance(self, bar: str, done: float, note: str = "") -> None:
        """The work stands at `done`."""

    def end(self, bar: str) -> None:
        """The work is over, finished or not."""

    def say(self, text: str) -> None:
        """A line worth keeping."""


class Silent:
    """A `Listener` that shows nothing."""

    def begin(self, bar: str, total: float) -> None: ...
    def advance(self, bar: str, done: float, note: str = "") -> None: ...
    def end(self, bar: str) -> None: ...
    def say(self, text: str) -> None: ...
