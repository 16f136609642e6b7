"""Direct writes to many connections are flushed back to back, once per turn of the event loop.

Otherwise encoding the next piece would take place between two writes, and a reader on the same machine (a proxy beside
this server) would go to sleep again in the meantime: waking a thread on another CPU is the most expensive part of a
write.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol
from weakref import WeakKeyDictionary

# The first connection waits while the pieces of up to this number are encoded: a fraction of a millisecond.
MAX_COALESCED = 64


class Flushable(Protocol):
    def flush(self) -> None: ...


class WriteCoalescer:
    """The connections of one server that have unflushed writes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Flushable] = []

    @classmethod
    def of(cls, server_state: Any, loop: asyncio.AbstractEventLoop) -> WriteCoalescer:
        """The one that all connections of a server share."""
        return _coalescers.get(server_state) or _coalescers.setdefault(server_state, cls(loop))

    def add(self, one: Flushable) -> None:
        """Flush `one` in this turn of the loop."""
        self._due.append(one)
        if len(self._due) == 1:
            self._loop.call_soon(self._flush)
        elif len(self._due) >= MAX_COALESCED:
            self._flush()

    def _flush(self) -> None:
        due, self._due = self._due, []
        for one in due:
            one.flush()


_coalescers: WeakKeyDictionary[Any, WriteCoalescer] = WeakKeyDictionary()
