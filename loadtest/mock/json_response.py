"""An answer that is not streamed: it is sent when a stream's last token would be."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from loadtest.mock.faults import Fault, FaultKind
from loadtest.mock.ground_truth import TrueRecord
from loadtest.mock.openai_chunks import ChunkBuilder
from loadtest.mock.script import FOREVER_NS, StreamTiming
from loadtest.mock.stream import Connection, Job


class AnsweringConnection(Connection, Protocol):
    def answer(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Send the whole answer at once."""


class JsonResponse(Job):
    """Of the faults, a cut and a stall apply to it."""

    def __init__(
        self,
        connection: AnsweringConnection,
        chunks: ChunkBuilder,
        timing: StreamTiming,
        fault: Fault | None,
        head: bytes,
        record: TrueRecord,
        prompt_tokens: int,
        on_tokens: Callable[[Job, int], object],
        on_end: Callable[[Job], object],
    ) -> None:
        wait_ns, tokens = timing.ttft_ns, timing.tokens_per_event()
        while tokens < timing.max_tokens:
            wait_ns += timing.itl_ns()
            tokens += timing.tokens_per_event()
        if fault is not None and fault.kind is FaultKind.STALL:
            wait_ns = FOREVER_NS if fault.seconds is None else wait_ns + round(fault.seconds * 1e9)
        super().__init__(record, prompt_tokens, wait_ns, on_tokens, on_end)
        self._connection = connection
        self._body = chunks.full_response(timing.max_tokens)
        self._cut = fault if fault is not None and fault.kind is FaultKind.CUT else None
        self._head = head
        self._tokens = timing.max_tokens

    def on_reader_left(self, reader: Connection) -> bool:
        return self.is_over

    def fire(self) -> None:
        if self.is_over:
            return
        if self._cut is not None:
            self.end("cut")
            length = len(self._body)
            self._connection.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % length
            )
            self._connection.send(self._body[: self._cut.byte])
            self._connection.abort(rst=self._cut.rst)
            return
        self._record_tokens(perf_counter_ns(), self._tokens)
        self.end("complete")
        self._connection.answer(200, self._body, self._head)
