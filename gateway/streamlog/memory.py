"""The log of a plain stream in this process: it keeps only what its one follower has not taken.

Memory is bounded by the length of the answer. A reader that comes late finds several pieces and takes them
together, so a slow reader costs fewer, fuller writes instead of a queue of small ones.
"""

from __future__ import annotations

import asyncio

from gateway.model import Piece
from gateway.streamlog.base import Batch, Ended


class PendingLog:
    """A single-reader log without history."""

    __slots__ = ("_ended", "_pieces", "_reader")

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._ended: Ended | None = None
        self._reader: asyncio.Future[None] | None = None

    def append(self, piece: Piece) -> None:
        if self._ended is None:
            self._pieces.append(piece)
            self._wake()

    def close(self, ended: Ended) -> None:
        if self._ended is None:
            self._ended = ended
            self._wake()

    async def take(self) -> Batch:
        if not self._pieces and self._ended is None:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        pieces, self._pieces = self._pieces, []
        return Batch(pieces, self._ended)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


__all__ = ["PendingLog"]
