"""What a stream's log must answer. The producer appends, followers take; a log knows nothing of sockets or engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.errors import SluiceError
from gateway.model import Cause, Piece


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stream ended: the one terminal entry of its log. `error` is None exactly if it ended well."""

    cause: Cause
    error: SluiceError | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """All that is new since the last take. `ended` is set on the last batch, which may hold no pieces."""

    pieces: list[Piece]
    ended: Ended | None


class StreamLog(Protocol):
    """One stream's log. `append` and `close` never wait: the engine's output handler calls them."""

    def append(self, piece: Piece) -> None:
        """Add a piece and wake the reader. After `close` this does nothing."""

    def close(self, ended: Ended) -> None:
        """Add the terminal entry. The first one counts; later ones do nothing."""

    async def take(self) -> Batch:
        """Wait until there is something new, then hand over all of it."""


__all__ = ["Batch", "Ended", "StreamLog"]
