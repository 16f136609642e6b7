"""What a stream's log must answer. The producer appends, followers read; a log knows nothing of sockets or engines.

Events are numbered from 1 without gaps, and the log is what gives them their numbers: append, then send, so that no
client ever holds an event that the log does not.
"""

from __future__ import annotations

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
    """One stream's log. Nothing here waits: the engine's output handler appends."""

    @property
    def is_retaining(self) -> bool:
        """Whether events stay after they have been read."""

    @property
    def last(self) -> int:
        """The number of the newest event; 0 before the first."""

    @property
    def size_bytes(self) -> int:
        """What the kept or packed events weigh."""

    def compress(self) -> None:
        """Make what nobody has read small; it is read as before."""

    def set_limit(self, keep_bytes: int) -> None:
        """Keep so much from now on; what is older goes at once. A log that keeps nothing goes on doing so."""

    def append(self, documents: list[bytes]) -> None:
        """Add events. After `close` this does nothing."""

    def append_delivered(self, document: bytes) -> int:
        """Add one event for a reader who has all that came before and takes it now; its number. Only before `close`."""

    def close(self, ended: Ended, documents: list[bytes]) -> None:
        """Add the last events and the end. The first close counts; later ones do nothing."""

    def read(self, cursor: int) -> Batch | None:
        """Everything after event number `cursor`; None if there is nothing new. Behind the end: no events, `ended`.

        Raises Expired if the next event is kept no longer.
        """


__all__ = ["Batch", "Ended", "StreamLog"]
