"""An answer that is not streamed: it comes when a stream's last token would have come."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from loadtest.mock.faults import Fault, Kind
from loadtest.mock.ground_truth import Record
from loadtest.mock.openai_chunks import Chunks
from loadtest.mock.script import FOREVER_NS, Manner
from loadtest.mock.stream import Job, Reader

__all__ = ["Whole"]


class Asker(Reader, Protocol):
    """A connection, as this sees it."""

    def answer(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """The whole answer at once."""


class Whole(Job):
    """Of the faults, a cut and a stall concern it."""

    def __init__(
        self,
        asker: Asker,
        chunks: Chunks,
        manner: Manner,
        fault: Fault | None,
        head: bytes,
        record: Record,
        prompt_tokens: int,
        on_tokens: Callable[[Job, int], object],
        on_end: Callable[[Job], object],
    ) -> None:
        wait_ns, tokens = manner.ttft_ns, manner.tokens_per_event()
        while tokens < manner.max_tokens:
            wait_ns += manner.itl_ns()
            tokens += manner.tokens_per_event()
        if fault is not None and fault.kind is Kind.STALL:
            wait_ns = FOREVER_NS if fault.seconds is None else wait_ns + round(fault.seconds * 1e9)
        super().__init__(record, prompt_tokens, wait_ns, on_tokens, on_end)
        self._asker = asker
        self._body = chunks.whole(manner.max_tokens)
        self._cut = fault if fault is not None and fault.kind is Kind.CUT else None
        self._head = head
        self._tokens = manner.max_tokens

    def leave(self, reader: Reader) -> bool:
        return self.over

    def fire(self) -> None:
        if self.over:
            return
        if self._cut is not None:
            self.end("cut")
            length = len(self._body)
            self._asker.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % length
            )
            self._asker.send(self._body[: self._cut.byte])
            self._asker.cut(rst=self._cut.rst)
            return
        self._said(perf_counter_ns(), self._tokens)
        self.end("complete")
        self._asker.answer(200, self._body, self._head)
