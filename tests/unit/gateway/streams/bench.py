"""A producer and everything around it, for the tests of the rooms that share it."""

from __future__ import annotations

import orjson

from gateway.admission.gate import Gate
from gateway.domain import Chunk, ChunkTemplate, Delta, OutputPart
from gateway.errors import SluiceError
from gateway.streamlog.memory import MemoryLog
from gateway.streams.writer import StreamWriter
from tests.support.instrumentation import Recorder, some_stats
from tests.support.time import VirtualClock


class PlainWire:
    """One document a part: the text of a delta, the payload of a chunk; an empty text gets none. With a template, texts
    are in angle brackets, so that it shows."""

    def __init__(self, template: ChunkTemplate | None = None) -> None:
        self._frame = template

    def encoder(self, template: ChunkTemplate | None) -> PlainWire:
        return PlainWire(template)

    def encode(self, pieces: list[OutputPart]) -> list[bytes]:
        texts = [piece.payload if isinstance(piece, Chunk) else piece.text.encode() for piece in pieces]
        return [text if self._frame is None else b"<%b>" % text for text in texts if text]

    def said(self, text: str, tokens: int) -> bytes | None:
        return next(iter(self.encode([Delta(text, tokens)])), None)

    def ending(self, error: SluiceError | None) -> list[bytes]:
        return [b"end" if error is None else orjson.dumps(error.code)]


class Handle:
    """What an engine gives for a request."""

    def __init__(self) -> None:
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1


class Bench:
    """Makes producers; there are two seats."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.instrumentation = Recorder()
        self.gate = Gate(
            max_concurrent=2, max_waiting=0, queue_timeout_s=1, clock=self.clock, instrumentation=Recorder()
        )
        self.handle = Handle()
        self.ends = 0

    def queued(
        self, keep_bytes: int | None = None, *, streaming: bool = True, is_resumable: bool = False
    ) -> StreamWriter:
        """A producer whose request stands at the gate."""
        stats = some_stats(self.instrumentation, stream_id="chatcmpl-1", arrival_s=self.clock.now())
        stats.is_resumable = is_resumable
        return StreamWriter(
            stats=stats,
            log=MemoryLog(keep_bytes),
            wire=PlainWire(),
            streaming=streaming,
            clock=self.clock,
            on_merged=self.instrumentation.merged,
            on_end=self._count_end,
        )

    async def running(self, keep_bytes: int | None = None, *, streaming: bool = True) -> StreamWriter:
        """A producer whose request is in the engine."""
        writer = self.queued(keep_bytes, streaming=streaming)
        writer.admit(await self.gate.enter())
        writer.start(None)
        writer.stats.submitted = True
        writer.attach(self.handle)
        return writer

    def _count_end(self) -> None:
        self.ends += 1


def documents(writer: StreamWriter) -> list[bytes]:
    """Everything that is still in the log."""
    writer.seal()
    batch = writer.log.read(0)
    return [] if batch is None else batch.documents


__all__ = ["Bench", "Chunk", "Delta", "Handle", "PlainWire", "documents"]
