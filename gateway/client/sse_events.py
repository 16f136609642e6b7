"""The framing of a resumable stream: bytes in, complete events out. No IO."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx

# Sequence numbers are small. The bound protects against parsing a huge integer.
_SEQ = re.compile(rb"[0-9]{1,18}")


class EventsLost(httpx.RemoteProtocolError):
    """The server skipped events. The events before are correct, but the stream cannot be continued."""


class Events:
    """Splits bytes into events, and drops numbered events that came before.

    An event is complete at its blank line. Comments are dropped, wherever they stand or are cut; one in a block of its
    own would crash openai-python. Lines end in LF or CRLF.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        """The number of the last event returned; 0 before the first."""
        self.is_done = False
        """Whether `[DONE]` was returned, which is the last event."""
        self.is_alive = False
        """Whether a new numbered event or a keep-alive has arrived since `restart`."""
        self._line = b""
        self._lines: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events that `chunk` completes. Raises EventsLost if a number is missing."""
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
        """Drop the incomplete event, because a new connection sends it again."""
        self._line = b""
        self._lines = []
        self.is_alive = False

    def _complete(self, blank: bytes) -> bytes:
        """The collected lines as one event; empty if there are none or its number is not new."""
        lines, self._lines = self._lines, []
        if not lines:
            return b""
        fields = dict(_field(line) for line in lines)
        # An event without a number is not in the server's log: it is passed on, but cannot be resumed from.
        if _SEQ.fullmatch(fields.get(b"id", b"")):
            seq = int(fields[b"id"])
            # If a proxy drops Last-Event-ID, the server starts from the beginning.
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
