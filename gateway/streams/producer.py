"""The sink that the engine fills: the only writer of a stream's log.

A producer is not a task. The engine's output handler calls it, it appends and returns, so a token costs no task
switch on its way in. It ends exactly once; whatever comes later changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.admission.gate import Permit
from gateway.clock import Clock
from gateway.engine.base import Handle
from gateway.errors import SluiceError
from gateway.model import Cause, Delta, Piece, Tally
from gateway.streamlog.base import Ended, StreamLog
from gateway.streams.lifecycle import Lifecycle, Signal, State


class Producer:
    """One stream's writer; an engine `Sink`."""

    def __init__(
        self, *, tally: Tally, log: StreamLog, permit: Permit, clock: Clock, on_end: Callable[[], object]
    ) -> None:
        self.tally = tally
        self.ended: Ended | None = None
        self._log = log
        self._permit = permit
        self._clock = clock
        self._on_end = on_end
        self._lifecycle = Lifecycle()
        self._handle: Handle | None = None

    def start(self) -> None:
        """The engine is about to be asked."""
        self._lifecycle.step(Signal.START)

    def attach(self, handle: Handle) -> None:
        """The engine has taken the request. If the stream ended meanwhile, the engine is told at once."""
        self._handle = handle
        if self._lifecycle.state is State.ENDED and self.ended is not None and self.ended.error is not None:
            handle.abort()

    def put(self, piece: Piece) -> None:
        if not self._lifecycle.step(Signal.PIECE):
            return
        if isinstance(piece, Delta):
            self.tally.generated(piece.tokens, self._clock.now())
            self._log.append(piece)
            if piece.finish_reason is not None:
                self.finish()
        else:
            self._log.append(piece)

    def finish(self) -> None:
        self._end(Ended(Cause.COMPLETED))

    def fail(self, error: SluiceError) -> None:
        self._end(Ended(error.cause, error))

    def cancel(self, cause: Cause, error: SluiceError) -> None:
        """End the stream from our side and free its sequence in the engine."""
        if self._end(Ended(cause, error)) and self._handle is not None:
            self._handle.abort()

    def _end(self, ended: Ended) -> bool:
        if not self._lifecycle.step(Signal.END):
            return False
        self.ended = ended
        self._log.close(ended)
        self._permit.release()
        self._on_end()
        return True


__all__ = ["Producer"]
