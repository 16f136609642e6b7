"""Bytes in, complete events out: how the server frames a resumable stream, without IO."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx

# Sequence numbers are small; the bound keeps a hostile id from costing a huge integer.
_SEQ = re.compile(rb"[0-9]{1,18}")


class EventsLost(httpx.RemoteProtocolError):
    """The server skipped events. What was handed on before is exact, but it cannot be continued."""


class Events:
    """Bytes in, complete events out, each numbered one once: the server's framing, without IO.

    An event's bytes are held until its blank line. Comments are left out, so that where they fell, or were cut, makes
    no difference; with one in a block of its own openai-python would even crash. Lines end in LF or CRLF.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        """The number of the last event that came out; 0 before the first."""
        self.is_done = False
        """Whether `[DONE]` came out; nothing does after it."""
        self.is_alive = False
        """Whether a new numbered event or a keep-alive came since `restart`."""
        self._line = b""
        self._lines: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events that `chunk` completes. Raises EventsLost where a number is missing."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            if self.is_done:
                return
            if line.startswith(b":"):
                self.is_alive = True
            elif line not in (b"", b"\r"):
                self._lines.append(line)
            elif event := self._complete(line):
                yield event

    def restart(self) -> None:
        """Forget the incomplete event: a new connection begins, and it will be sent again."""
        self._line = b""
        self._lines = []
        self.is_alive = False

    def _complete(self, blank: bytes) -> bytes:
        """The collected lines as one event; nothing if there are none or it came out before."""
        lines, self._lines = self._lines, []
        if not lines:
            return b""
        fields = dict(_field(line) for line in lines)
        # An event without a number is none of the log's: it is handed on, but it is no place to resume from.
        if _SEQ.fullmatch(fields.get(b"id", b"")):
            seq = int(fields[b"id"])
            # A proxy that drops Last-Event-ID makes the server start from the beginning.
            if seq <= self.last_seq:
                return b""
            if seq > self.last_seq + 1:
                raise EventsLost(f"event {seq} came after event {self.last_seq}")
            self.last_seq = seq
            self.is_alive = True
        self.is_done = fields.get(b"data") == b"[DONE]"
        return b"\n".join([*lines, blank, b""])


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.removesuffix(b"\r").partition(b":")
    return name, value.removeprefix(b" ")


__all__ = ["Events", "EventsLost"]
