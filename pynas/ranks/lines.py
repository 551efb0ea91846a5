"""The lines between supervisors: JSON values, one a line, over TCP or a pair of sockets."""

from __future__ import annotations

import hmac
import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

LONGEST = 1 << 18  # bytes of one message
SEND = 2.0  # seconds that a message may take to be handed to the system


class Line:
    """One end of a connection. Sending never raises: whoever is gone is told by the end of what is received."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setblocking(False)
        self._buffer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, **message: Any) -> None:
        with suppress(OSError):
            self.socket.settimeout(SEND)
            self.socket.sendall(json.dumps(message).encode() + b"\n")
            self.socket.setblocking(False)

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that are there, without waiting, and whether more may come."""
        is_open = True
        while is_open:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            is_open = bool(data) and len(self._buffer) < LONGEST
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        messages: list[dict[str, Any]] = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                return messages, False
            if isinstance(message, dict):
                messages.append(message)
        return messages, is_open

    def wait_for(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None where none comes in time or the other end is gone."""
        try:
            self.socket.settimeout(seconds)
            while b"\n" not in self._buffer:
                data = self.socket.recv(1 << 16)
                if not data:
                    return None
                self._buffer += data
            self.socket.setblocking(False)
        except OSError:
            return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        self.socket.close()


def listen() -> socket.socket:
    """A socket that takes connections on a free port of all addresses of this host."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # a kernel may know IPv6 and have it switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def call(address: str, port: int, secret: str, seconds: float, **hello: Any) -> Line | None:
    """Connect to rank 0's supervisor; None unless it answers within the time and knows the secret."""
    try:
        connection = socket.create_connection((address, port), timeout=seconds)
    except OSError:
        return None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line = Line(connection)
    line.send(hello=secret, **hello)
    reply = line.wait_for(seconds)
    if reply is not None and _same(reply.get("welcome"), secret[::-1]):
        return line
    line.close()
    return None


def answer(line: Line, message: dict[str, Any], secret: str) -> bool:
    """Answer a caller's first message; False where the caller does not know the secret."""
    knows = _same(message.get("hello"), secret)
    if knows:
        line.send(welcome=secret[::-1])
    return knows


def _same(said: Any, secret: str) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said.encode(), secret.encode())


def wait_for_ends(lines: Sequence[Line], seconds: float) -> None:
    """Read until the other ends have said their last, at most so long: closing with words unread would reset them."""
    until = time.monotonic() + seconds
    for line in lines:
        with suppress(OSError):
            line.socket.settimeout(max(0.01, until - time.monotonic()))
            while line.socket.recv(1 << 16):
                pass
