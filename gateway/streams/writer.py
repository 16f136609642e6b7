"""The sink that the engine fills: the only writer of a stream's log.

A writer is not a task. The engine's output handler calls it, it stores the output, wakes the readers, and returns, so a
token costs no task switch on its way in. Output becomes events when a reader takes it (`flush`), so that tokens that
pile up for a late reader leave as one. A stream ends exactly once; later calls change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.admission.gate import Permit
from gateway.clock import Clock
from gateway.domain import Cause, ChunkTemplate, Delta, OutputPart, RequestStats
from gateway.engine.base import Handle
from gateway.errors import ClientStalled, SluiceError, cause_of
from gateway.protocols.base import StreamProtocol
from gateway.streamlog.base import Ended, OpenLog
from gateway.streams.coalesce import merge, split
from gateway.streams.lifecycle import Lifecycle, Signal, State
from gateway.streams.reader import StreamReader

# Unread parts are merged at this number (or become events, where the log retains them): a reader that stops costs the
# memory of its text.
_COMPACT_AT = 64
# Beyond this size of unread documents their formatter waits; vLLM then merges what the engine generates meanwhile.
_HIGH_WATER_BYTES = 16 * 2**10
# Some documents cannot be merged (log probabilities), and their formatter does not wait. They are compressed from here
# on. A reader that has taken none for `_STALLED_S`, while `_STALLED_BYTES` of compressed documents wait, has stopped:
# 32 KiB hold several hundred.
_COMPRESS_BYTES = 20 * 2**10
_STALLED_BYTES = 32 * 2**10
_STALLED_S = 1.0


class StreamWriter:
    """One stream's writer; an engine `Sink`."""

    def __init__(
        self,
        *,
        stats: RequestStats,
        open_log: OpenLog,
        keep_bytes: int | None,
        protocol: StreamProtocol,
        is_streaming: bool,
        clock: Clock,
        on_end: Callable[[], object],
    ) -> None:
        """`is_streaming`: whether the log ends with the documents that end a stream. `keep_bytes` as in `OpenLog`."""
        assert stats.id is not None
        self.stats = stats
        self.log = open_log(stats.id, keep_bytes, self._wake)
        self.ended: Ended | None = None
        self._protocol = protocol
        self._is_streaming = is_streaming
        self._clock = clock
        self._on_end = on_end
        self._lifecycle = Lifecycle()
        self._encoder = protocol.encoder(None)
        # Output that no reader has taken: parts, and after them the text of deltas that are not parts yet.
        self._pending: list[OutputPart] = []
        self._pending_bytes = 0
        self._texts: list[str] = []
        self._tokens = 0
        self._has_output = False
        self._unread_since_s = 0.0
        self._readers: list[StreamReader] = []
        self._writable: asyncio.Future[None] | None = None
        self._permit: Permit | None = None
        self._handle: Handle | None = None

    @property
    def state(self) -> State:
        """The stream's state."""
        return self._lifecycle.state

    @property
    def has_output(self) -> bool:
        """Whether the engine has generated anything. Before that an error can still be an HTTP status."""
        return self._has_output

    # From the gate to the engine.

    def admit(self, permit: Permit) -> None:
        """Hold the permit until the end."""
        self._permit = permit
        if self.ended is not None:
            permit.release()

    def start(self, template: ChunkTemplate | None) -> None:
        """Before the request is submitted. `template` as in `Prepared`."""
        if self._lifecycle.step(Signal.START):
            self._encoder = self._protocol.encoder(template)

    def attach(self, handle: Handle) -> None:
        """After the request is submitted. If the stream has ended meanwhile, the request is aborted at once."""
        self._handle = handle
        if self.ended is not None and self.ended.error is not None:
            handle.abort()

    # `Sink`, for the engine.

    def put_text(self, text: str, tokens: int, now_s: float) -> None:
        if not self._lifecycle.accepts_output:
            return
        self._has_output = True
        self.stats.add_tokens(tokens, now_s)
        if not self._texts and not self._pending and len(self._readers) == 1:
            (reader,) = self._readers
            last = self.log.last
            if last and reader.is_caught_up(last):
                # The usual case, for nearly every token: no output waits, and this one can leave at once. Nested, to
                # save a call for every token.
                document = self._encoder.encode_text(text, tokens)
                if document is not None:
                    number = self.log.append_delivered(document)
                    if number:
                        reader.deliver(number, [document], now_s)
                return
        self._texts.append(text)
        self._tokens += tokens
        if len(self._texts) >= _COMPACT_AT:
            self._compact()
        self._wake()

    def put(self, part: OutputPart) -> None:
        if not self._lifecycle.step(Signal.OUTPUT):
            return
        self._has_output = True
        self._gather_texts()
        self._pending.append(part)
        if isinstance(part, Delta):
            self.stats.add_tokens(part.tokens, self._clock.now())
            if part.finish_reason is not None:
                self.finish()
                return
        else:
            self._pending_bytes += len(part.payload)
        if len(self._pending) >= _COMPACT_AT or self._pending_bytes > _HIGH_WATER_BYTES:
            self._compact()
        self._wake()

    @property
    def is_over_high_water(self) -> bool:
        """As in `Sink`. Never where the log retains events: such a stream goes on without a reader."""
        return self._pending_bytes > _HIGH_WATER_BYTES

    async def wait_writable(self) -> None:
        while self.is_over_high_water and self.ended is None:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def finish(self) -> None:
        self._end(Ended(Cause.COMPLETED))

    def fail(self, error: SluiceError) -> None:
        self._end(Ended(self._cause(error), error))

    # Events outside the engine's output.

    def on_engine_lost(self) -> None:
        """The engine has died; the stream may go on with the next."""
        self._lifecycle.step(Signal.ENGINE_LOST)

    def on_engine_recovered(self) -> None:
        """The stream goes on."""
        self._lifecycle.step(Signal.ENGINE_RECOVERED)

    def cancel(self, error: SluiceError, cause: Cause | None = None) -> None:
        """End the stream and free its sequence in the engine. `cause` if it is not the error's own."""
        if self._end(Ended(cause or self._cause(error), error)) and self._handle is not None:
            self._handle.abort()

    # Readers.

    def add_reader(self, cursor: int) -> StreamReader:
        """A reader of the events after number `cursor`."""
        reader = StreamReader(self.log, cursor, self.flush, self._clock)
        self._readers.append(reader)
        return reader

    def remove_reader(self, reader: StreamReader) -> None:
        """Wake it no more."""
        reader.close()
        self._readers.remove(reader)

    def flush(self) -> None:
        """Make events of the pending output; what has piled up leaves together."""
        if self._texts:
            self._gather_texts()
        parts = self._pending
        if not parts:
            return
        if len(parts) > 1:
            parts = self._merged()
        self._pending = []
        self._pending_bytes = 0
        self.log.append(self._encoder.encode(parts))
        if self._writable is not None:
            self._set_writable()

    def _gather_texts(self) -> None:
        """Make a part of the pending texts."""
        texts = self._texts
        if not texts:
            return
        if len(texts) == 1:
            self._pending.append(Delta(texts[0], self._tokens))
        else:
            deltas = split("".join(texts), self._tokens)
            self._count_merged(len(texts) - len(deltas))
            self._pending += deltas
        self._texts = []
        self._tokens = 0

    def _merged(self) -> list[OutputPart]:
        parts = merge(self._pending)
        self._count_merged(len(self._pending) - len(parts))
        return parts

    def _count_merged(self, parts: int) -> None:
        # Where a text is too long for one part, there may be more parts than before.
        if parts > 0:
            self.stats.instrumentation.merged(parts)

    def _compact(self) -> None:
        """Merge output that no reader takes. A log that retains gets all of it, so that its limit applies."""
        if self.log.is_retaining:
            self.flush()
            return
        self._gather_texts()
        self._pending = self._merged()
        if self._is_streaming and self._pending_bytes > _COMPRESS_BYTES:
            self._compress()

    def _compress(self) -> None:
        """As `_compact`, for documents that cannot be merged."""
        now_s, waiting_bytes = self._clock.now(), self.log.size_bytes
        if waiting_bytes == 0:
            self._unread_since_s = now_s
        self.flush()
        self.log.compress()
        # One large document, or many at once, are no sign of a reader that has stopped.
        if waiting_bytes > _STALLED_BYTES and now_s - self._unread_since_s > _STALLED_S:
            self.cancel(ClientStalled("The client did not read, and too much waited for it."))

    def _end(self, ended: Ended) -> bool:
        if not self._lifecycle.end(ended.cause):
            return False
        self.ended = ended
        if self.stats.is_resumable:
            self.stats.end(ended.cause)
        self.flush()
        self.log.close(ended, self._protocol.end(ended.error) if self._is_streaming else [])
        if self._permit is not None:
            self._permit.release()
        self._set_writable()
        self._on_end()
        self._wake()
        return True

    def _cause(self, error: SluiceError) -> Cause:
        return cause_of(error, submitted=self.stats.submitted)

    def _set_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()
