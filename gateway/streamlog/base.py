"""The contract of a stream's log. One writer appends, readers follow; a log depends on neither sockets nor engines.

Events are numbered from 1 without gaps, and the log gives them their numbers. Readers see only events that are
committed, so that no client ever holds an event that a log could lose: append, commit, then send.

In the memory log a commit is the append itself. A log that several processes share, such as one in Redis, implements
the same contract without a wait in any method:

- `append` numbers the events, keeps them in this process and puts them into the next group that is sent to the server;
  `last` grows at once, `committed` when the server has acknowledged the group. Then the log calls `on_commit`, with
  which the writer wakes the readers.
- `append_delivered` returns 0, because nothing is committed at once: no event goes to a client past `read`.
- `read` answers from the events in this process. Older ones are fetched: it returns None and calls `on_commit` when
  they are there.
- `epoch` is the number of the writer, from an atomic increment on the server when a process opens the log to write.
  The server refuses appends of an older epoch; the log then closes itself with the refusal as its end, so that a
  process that lost its stream to another one cannot add to it.
- `close` is an append like others: the end is visible when it is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.domain import Cause
from gateway.errors import SluiceError


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stream ended. `error` is None exactly if it ended well."""

    cause: Cause
    error: SluiceError | None = None


@dataclass(slots=True)
class Batch:
    """Events in order: `documents[0]` has the number `first`. `ended` is set on the batch that holds the last one."""

    first: int
    documents: list[bytes]
    ended: Ended | None


class StreamLog(Protocol):
    """One stream's log. No method waits: the engine's output handler appends."""

    @property
    def epoch(self) -> int:
        """The number of this writer among those that the stream has had, from 1."""

    @property
    def is_retaining(self) -> bool:
        """Whether events stay after they have been read."""

    @property
    def last(self) -> int:
        """The number of the newest event; 0 before the first."""

    @property
    def committed(self) -> int:
        """The number of the newest event that readers can see."""

    @property
    def ended(self) -> Ended | None:
        """How the stream ended; None before the end is committed."""

    @property
    def size_bytes(self) -> int:
        """The size of the retained or compressed events."""

    def compress(self) -> None:
        """Compress the events that no reader has taken; they are read as before."""

    def set_limit(self, keep_bytes: int) -> None:
        """Retain that many bytes from now on, and drop older events. Without effect on a log that retains nothing."""

    def append(self, documents: list[bytes]) -> None:
        """Add events. After `close` this does nothing."""

    def append_delivered(self, document: bytes) -> int:
        """Add one event for a reader that has all earlier ones and takes it now. Returns its number, or 0 if it is not
        committed yet and the reader has to `read` it later. Only before `close`."""

    def close(self, ended: Ended, documents: list[bytes]) -> None:
        """Add the last events and the end. The first close counts; later ones do nothing."""

    def read(self, cursor: int) -> Batch | None:
        """All committed events after number `cursor`; None if there are none. Behind the end: no events, `ended`.

        Raises Expired if the next event is kept no longer.
        """


class OpenLog(Protocol):
    """Opens the log of a new stream."""

    def __call__(self, stream_id: str, keep_bytes: int | None, on_commit: Callable[[], None]) -> StreamLog:
        """A log that retains `keep_bytes` bytes; None: it retains nothing. `on_commit` is called when events are
        committed later than they were appended."""
