"""Progress bars on a terminal, plain lines elsewhere: the `Listener` of the command line. Writes to stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Watch:
    """Draws a search or a training as it goes; a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.notes: dict[str, str] = {}

    def begin(self, bar: str, total: float) -> None:
        if bar not in self.bars:
            self.bars[bar] = self.progress.add_task(bar, total=total, note="")

    def advance(self, bar: str, done: float, note: str = "") -> None:
        self.progress.update(self.bars[bar], completed=done, note=note)
        self.notes[bar] = note

    def end(self, bar: str) -> None:
        if bar not in self.bars:
            return
        task, note = self.bars.pop(bar), self.notes.pop(bar, "")
        if bar.startswith(" "):  # a candidate's own bar goes when it is done
            self.progress.remove_task(task)
        else:
            self.progress.stop_task(task)
            if note and not self.console.is_terminal:
                self.say(f"{bar}: {note}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
