"""What a rank says of its progress to its supervisor: numbers and a line of text in a page of memory they share."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

SET_UP = 1800.0  # seconds for listing images and making networks, which show no progress
HEARTBEAT = 60.0  # seconds without progress in any rank before the ranks are ended; 0: never

_NUMBERS = struct.Struct("<qq")  # the count of marks and the position
_COUNT = struct.Struct("<q")
_LIMIT = struct.Struct("<d")
_LENGTH = struct.Struct("<H")
_LIMIT_AT, _WHAT_AT, _PATH_AT, _PAGE = 16, 32, 1024, 8192
_WHAT_BYTES, _PATH_BYTES = _PATH_AT - _WHAT_AT - 2, _PAGE - _PATH_AT - 2


@dataclass(frozen=True)
class Progress:
    """A look at a page. `count` grows with every sign of life; torn texts are possible, and only ever shown."""

    count: int
    position: int
    limit: float  # seconds
    what: str


class Beat:
    """Signs of life. Outside a supervised rank they go nowhere; each costs about a microsecond."""

    def mark(self, what: str) -> None:
        """Say that this rank is alive, and what it is at."""

    def advance(self, position: int, what: str) -> None:
        """Say how far this rank is. All ranks count alike: of ranks that hang, the one with the least is named."""

    def allow(self, seconds: float) -> None:
        """Set how long no rank may show progress before all are ended; 0 for ever."""

    def failure_file(self, path: str | os.PathLike[str]) -> None:
        """Have a failure written to `path` as well, as ``{"rank", "host", "cause"}``; the first one stays.

        Raises:
            ValueError: the path is longer than 7000 bytes.
        """


class Page:
    """The memory itself: made before the fork, written by the rank, read by its supervisor."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, _PAGE)  # anonymous and shared with what is forked
        _LIMIT.pack_into(self.memory, _LIMIT_AT, HEARTBEAT)
        self.write_text(_WHAT_AT, _WHAT_BYTES, b"starting")

    def progress(self) -> Progress:
        count, position = _NUMBERS.unpack_from(self.memory)
        (limit,) = _LIMIT.unpack_from(self.memory, _LIMIT_AT)
        return Progress(count, position, limit, self._text(_WHAT_AT).decode(errors="replace"))

    @property
    def failure_file(self) -> str | None:
        """Where the rank wants a failure to be written."""
        return os.fsdecode(self._text(_PATH_AT)) or None

    def write_text(self, start: int, room: int, text: bytes) -> None:
        data = text[:room]
        _LENGTH.pack_into(self.memory, start, len(data))
        self.memory[start + 2 : start + 2 + len(data)] = data

    def _text(self, start: int) -> bytes:
        (length,) = _LENGTH.unpack_from(self.memory, start)
        return self.memory[start + 2 : start + 2 + length]


class SharedBeat(Beat):
    """Signs of life that a supervisor sees."""

    def __init__(self, page: Page) -> None:
        self._page, self._memory = page, page.memory
        self._count = 0

    def mark(self, what: str) -> None:
        self._count += 1
        self._page.write_text(_WHAT_AT, _WHAT_BYTES, what.encode())
        _COUNT.pack_into(self._memory, 0, self._count)

    def advance(self, position: int, what: str) -> None:
        self._count += 1
        self._page.write_text(_WHAT_AT, _WHAT_BYTES, what.encode())
        _NUMBERS.pack_into(self._memory, 0, self._count, position)

    def allow(self, seconds: float) -> None:
        _LIMIT.pack_into(self._memory, _LIMIT_AT, seconds)
        self._count += 1
        _COUNT.pack_into(self._memory, 0, self._count)

    def failure_file(self, path: str | os.PathLike[str]) -> None:
        data = os.fsencode(os.path.abspath(path))
        if len(data) > _PATH_BYTES:
            raise ValueError(
                f"{len(data)} bytes are too many for the path of a failure file; {_PATH_BYTES} are allowed"
            )
        self._page.write_text(_PATH_AT, _PATH_BYTES, data)
