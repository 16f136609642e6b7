"""Parses Server-Sent Events from bytes in pieces of any size. Pure.

Lines may end in LF, CRLF or CR. Comments (keep-alives) and fields other than `data` and `id` are skipped, as browsers
do. The usual case, whole events of one `data:` line each, costs one split.
"""

from __future__ import annotations

# The value of the id line and the data; either may be missing.
Event = tuple[bytes | None, bytes | None]
# The first event of a stream can hold the ids of a whole prompt; this is far beyond any context.
_LIMIT_BYTES = 32 * 2**20


class EventTooLarge(Exception):
    """An event exceeds the limit."""


class SseParser:
    __slots__ = ("_at_start", "_rest", "_skip_lf")

    def __init__(self) -> None:
        self._rest = b""
        self._at_start = True
        self._skip_lf = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises EventTooLarge."""
        if self._skip_lf and data:
            data = data.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" in data:
            # A CR ends the line at once; a LF that follows, even in the next piece, belongs to it.
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        text = self._rest + data if self._rest else data
        if self._at_start and len(text) >= 3:
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        *blocks, self._rest = text.split(b"\n\n")
        if len(self._rest) > _LIMIT_BYTES:
            raise EventTooLarge(f"An event of more than {_LIMIT_BYTES} bytes.")
        events: list[Event] = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append((None, block[6:]))
            elif (event := self._parse(block)) is not None:
                events.append(event)
        return events

    def _parse(self, block: bytes) -> Event | None:
        number: bytes | None = None
        data: list[bytes] = []
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"id":
                number = value
        if number is None and not data:
            return None
        return number, b"\n".join(data) if data else None
