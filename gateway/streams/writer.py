"""The sink that the engine fills: the only writer of a stream's log.

A producer is not a task. The engine's output handler calls it, it notes the piece, wakes whoever reads, and returns,
so a token costs no task switch on its way in. Pieces become events when somebody reads (`seal`), so those that pile up
for a late reader leave as one. It ends exactly once; whatever comes later changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.admission.gate import Permit
from gateway.clock import Clock
from gateway.domain import Cause, ChunkTemplate, Delta, OutputPart, RequestStats
from gateway.engine.base import Handle
from gateway.errors import ClientStalled, SluiceError, cause_of
from gateway.streamlog.base import Ended, StreamLog
from gateway.streams.coalesce import merge, split
from gateway.streams.lifecycle import Lifecycle, Signal, State

# So many unread pieces are merged (or become events, where the log keeps them): a reader that stops costs its text.
_COMPACT_AT = 64
# Unread documents of vLLM's own beyond this make their formatter wait; vLLM then merges what the engine goes on to say.
_FULL_BYTES = 16 * 2**10
# Some documents cannot be merged (log probabilities); their formatter does not wait. From here on they are packed, and
# when so much packed waits for a reader who has not looked for so long, he has stopped: 32 KiB hold several hundred.
_PACK_BYTES = 20 * 2**10
_STALLED_BYTES = 32 * 2**10
_STALLED_S = 1.0


class Encoder(Protocol):
    """Makes the documents of one stream."""

    def encode(self, parts: list[OutputPart]) -> list[bytes]:
        """Those of some pieces."""

    def encode_text(self, text: str, tokens: int) -> bytes | None:
        """That of a text in the middle of a stream, if there is one."""


class Wire(Protocol):
    """From pieces to documents; the room of bytes is passed in, because streams do not know it."""

    def encoder(self, template: ChunkTemplate | None) -> Encoder:
        """What makes documents of one stream's pieces; without a template its pieces are documents already."""

    def end_documents(self, error: SluiceError | None) -> list[bytes]:
        """The documents with which a stream ends."""


class Reader(Protocol):
    """Who reads a stream."""

    def wake(self) -> None:
        """There is something new, and there may be more in the same turn of the loop."""

    def is_caught_up(self, last: int) -> bool:
        """Whether everything up to event number `last` is taken, and what `pass_on` brings would be on its way."""

    def deliver(self, number: int, document: bytes) -> None:
        """Take the next event; only if `ready`, and never the last one of the stream."""


class StreamWriter:
    """One stream's writer; an engine `Sink`."""

    def __init__(
        self,
        *,
        stats: RequestStats,
        log: StreamLog,
        wire: Wire,
        streaming: bool,
        clock: Clock,
        on_merged: Callable[[int], object],
        on_end: Callable[[], object],
    ) -> None:
        """`streaming`: whether the log ends with the documents that end a stream."""
        self.stats = stats
        self.log = log
        self.ended: Ended | None = None
        self._wire = wire
        self._streaming = streaming
        self._clock = clock
        self._on_merged = on_merged
        self._on_end = on_end
        self._lifecycle = Lifecycle()
        self._encoder = wire.encoder(None)
        # What nobody has read yet: pieces, and behind them the text of deltas that are not pieces yet.
        self._pending: list[OutputPart] = []
        self._pending_bytes = 0
        self._texts: list[str] = []
        self._tokens = 0
        self._said = False
        self._unread_since_s = 0.0
        self._readers: list[Reader] = []
        self._room: asyncio.Future[None] | None = None
        self._permit: Permit | None = None
        self._handle: Handle | None = None

    @property
    def state(self) -> State:
        """Where the stream is."""
        return self._lifecycle.state

    @property
    def silent(self) -> bool:
        """Whether nothing has been said, so that its end can still be told by a status line."""
        return not self._said

    # From the gate to the engine.

    def admit(self, permit: Permit) -> None:
        """The gate has let it in; the permit is given back with the end."""
        self._permit = permit
        if self.ended is not None:
            permit.release()

    def start(self, template: ChunkTemplate | None) -> None:
        """The engine is about to be asked. `template` as in `Prepared`."""
        if self._lifecycle.step(Signal.START):
            self._encoder = self._wire.encoder(template)

    def attach(self, handle: Handle) -> None:
        """The engine has taken the request. If the stream ended meanwhile, the engine is told at once."""
        self._handle = handle
        if self.ended is not None and self.ended.error is not None:
            handle.abort()

    # What the engine says: `Sink`.

    def put_text(self, text: str, tokens: int, now_s: float) -> None:
        if not self._lifecycle.accepts_output:
            return
        self._said = True
        self.stats.add_tokens(tokens, now_s)
        if not self._texts and not self._pending and len(self._readers) == 1:
            (reader,) = self._readers
            last = self.log.last
            if last and reader.is_caught_up(last):
                # The usual case, and the way of nearly every token: nothing waits, and it can go on at once.
                document = self._encoder.encode_text(text, tokens)
                if document is not None:
                    reader.deliver(self.log.append_delivered(document), document)
                return
        self._texts.append(text)
        self._tokens += tokens
        if len(self._texts) >= _COMPACT_AT:
            self._compact()
        self._wake()

    def put(self, part: OutputPart) -> None:
        if not self._lifecycle.step(Signal.OUTPUT):
            return
        self._said = True
        self._gather()
        self._pending.append(part)
        if isinstance(part, Delta):
            self.stats.add_tokens(part.tokens, self._clock.now())
            if part.finish_reason is not None:
                self.finish()
                return
        else:
            self._pending_bytes += len(part.payload)
        if len(self._pending) >= _COMPACT_AT or self._pending_bytes > _FULL_BYTES:
            self._compact()
        self._wake()

    @property
    def is_over_high_water(self) -> bool:
        """Whether a formatter should wait in `room` before its next piece, if that can be merged with those behind it.
        A log that keeps is never full: its stream goes on without a reader."""
        return self._pending_bytes > _FULL_BYTES

    async def wait_writable(self) -> None:
        while self.is_over_high_water and self.ended is None:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def finish(self) -> None:
        self._end(Ended(Cause.COMPLETED))

    def fail(self, error: SluiceError) -> None:
        self._end(Ended(self._cause(error), error))

    # What happens to it.

    def on_engine_lost(self) -> None:
        """Its engine has died; it may go on with the next."""
        self._lifecycle.step(Signal.ENGINE_LOST)

    def on_engine_recovered(self) -> None:
        """It goes on."""
        self._lifecycle.step(Signal.ENGINE_RECOVERED)

    def cancel(self, error: SluiceError, cause: Cause | None = None) -> None:
        """End the stream from our side and free its sequence in the engine. `cause` if it is not the error's own."""
        if self._end(Ended(cause or self._cause(error), error)) and self._handle is not None:
            self._handle.abort()

    # The reader's side.

    def add_reader(self, reader: Reader) -> None:
        """Tell a reader of everything new."""
        self._readers.append(reader)

    def remove_reader(self, reader: Reader) -> None:
        """Tell it no more."""
        self._readers.remove(reader)

    def flush(self) -> None:
        """Turn what is pending into events of the log; what piled up leaves together."""
        if self._texts:
            self._gather()
        pieces = self._pending
        if not pieces:
            return
        if len(pieces) > 1:
            pieces = self._merged()
        self._pending = []
        self._pending_bytes = 0
        self.log.append(self._encoder.encode(pieces))
        if self._room is not None:
            self._make_room()

    def _gather(self) -> None:
        """Make a piece of the texts."""
        texts = self._texts
        if not texts:
            return
        if len(texts) == 1:
            self._pending.append(Delta(texts[0], self._tokens))
        else:
            deltas = split("".join(texts), self._tokens)
            self._spare(len(texts) - len(deltas))
            self._pending += deltas
        self._texts = []
        self._tokens = 0

    def _merged(self) -> list[OutputPart]:
        pieces = merge(self._pending)
        self._spare(len(self._pending) - len(pieces))
        return pieces

    def _spare(self, pieces: int) -> None:
        # Where a text is too long for one piece, there may be more of them than before.
        if pieces > 0:
            self._on_merged(pieces)

    def _compact(self) -> None:
        """Nobody has read for a while. A log that keeps takes all of it, so that its limit holds for it."""
        if self.log.is_retaining:
            self.flush()
            return
        self._gather()
        self._pending = self._merged()
        if self._streaming and self._pending_bytes > _PACK_BYTES:
            self._pack()

    def _pack(self) -> None:
        """As `_compact`, for what cannot be merged."""
        now_s, waiting = self._clock.now(), self.log.size_bytes
        if waiting == 0:
            self._unread_since_s = now_s
        self.flush()
        self.log.compress()
        # One large document, or many at once, are no sign of a reader who has stopped.
        if waiting > _STALLED_BYTES and now_s - self._unread_since_s > _STALLED_S:
            self.cancel(ClientStalled("The client did not read, and too much waited for it."))

    def _end(self, ended: Ended) -> bool:
        if not self._lifecycle.end(ended.cause):
            return False
        self.ended = ended
        if self.stats.is_resumable:
            self.stats.end(ended.cause)
        self.flush()
        self.log.close(ended, self._wire.end_documents(ended.error) if self._streaming else [])
        if self._permit is not None:
            self._permit.release()
        self._make_room()
        self._on_end()
        self._wake()
        return True

    def _cause(self, error: SluiceError) -> Cause:
        return cause_of(error, submitted=self.stats.submitted)

    def _make_room(self) -> None:
        """Let a formatter that waits look again."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()


__all__ = ["Encoder", "Reader", "StreamWriter", "Wire"]
