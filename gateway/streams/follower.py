"""The reader's side of a stream: wake once, take all that is new."""

from __future__ import annotations

from gateway.model import Delta, Facts, Piece
from gateway.streamlog.base import Batch, StreamLog


class Follower:
    """Follows one log to its end."""

    def __init__(self, log: StreamLog, facts: Facts) -> None:
        self._log = log
        self._facts = facts

    async def take(self) -> Batch:
        """Wait for news. Deltas that piled up while the reader was busy come joined."""
        batch = await self._log.take()
        if len(batch.pieces) < 2:
            return batch
        pieces = merge(batch.pieces)
        if spared := len(batch.pieces) - len(pieces):
            self._facts.merged(spared)
        return Batch(pieces, batch.ended)


def merge(pieces: list[Piece]) -> list[Piece]:
    """Join neighbouring deltas, as vLLM does for a late reader: texts concatenate, the newest ending wins."""
    merged: list[Piece] = []
    run: list[Delta] = []
    for piece in pieces:
        if isinstance(piece, Delta):
            run.append(piece)
        else:
            _close_run(run, merged)
            merged.append(piece)
    _close_run(run, merged)
    return merged


def _close_run(run: list[Delta], into: list[Piece]) -> None:
    if len(run) == 1:
        into.append(run[0])
    elif run:
        last = run[-1]
        text = "".join([delta.text for delta in run])
        into.append(Delta(text, sum([delta.tokens for delta in run]), last.finish_reason, last.stop_reason))
    run.clear()


__all__ = ["Follower", "merge"]
