"""A producer and everything around it, for the tests of the rooms that share it."""

from __future__ import annotations

import orjson

from gateway.admission.gate import Gate
from gateway.domain import Chunk, Delta, Frame, Piece
from gateway.errors import SluiceError
from gateway.streamlog.memory import MemoryLog
from gateway.streams.writer import Producer
from tests.support.facts import Recorder, a_tally
from tests.support.time import VirtualClock


class PlainWire:
    """One document a piece: the text of a delta, the payload of a chunk; an empty text gets none. With a frame, texts
    are in angle brackets, so that it shows."""

    def __init__(self, frame: Frame | None = None) -> None:
        self._frame = frame

    def encoder(self, frame: Frame | None) -> PlainWire:
        return PlainWire(frame)

    def encode(self, pieces: list[Piece]) -> list[bytes]:
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
        self.facts = Recorder()
        self.gate = Gate(max_concurrent=2, max_waiting=0, queue_timeout_s=1, clock=self.clock, facts=Recorder())
        self.handle = Handle()
        self.ends = 0

    def queued(self, keep_bytes: int | None = None, *, streaming: bool = True, outlives: bool = False) -> Producer:
        """A producer whose request stands at the gate."""
        tally = a_tally(self.facts, stream_id="chatcmpl-1", arrival_s=self.clock.now())
        tally.outlives = outlives
        return Producer(
            tally=tally,
            log=MemoryLog(keep_bytes),
            wire=PlainWire(),
            streaming=streaming,
            clock=self.clock,
            on_merged=self.facts.merged,
            on_end=self._count_end,
        )

    async def running(self, keep_bytes: int | None = None, *, streaming: bool = True) -> Producer:
        """A producer whose request is in the engine."""
        producer = self.queued(keep_bytes, streaming=streaming)
        producer.admit(await self.gate.enter())
        producer.start(None)
        producer.tally.submitted = True
        producer.attach(self.handle)
        return producer

    def _count_end(self) -> None:
        self.ends += 1


def documents(producer: Producer) -> list[bytes]:
    """Everything that is still in the log."""
    producer.seal()
    batch = producer.log.read(0)
    return [] if batch is None else batch.documents


__all__ = ["Bench", "Chunk", "Delta", "Handle", "PlainWire", "documents"]
