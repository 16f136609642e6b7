"""The log of one stream in this process. A commit is the append itself.

A plain stream's log hands events over: it drops those that have been read. A resumable stream's log retains its events
up to a limit in bytes, so that any number of readers can start at any of them; beyond it the oldest are dropped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from gateway.errors import Expired
from gateway.streamlog.base import Batch, Ended

# What a list slot and a bytes object cost besides their content (CPython 3.11, 64 bit).
_OVERHEAD_BYTES = 41
# The usual 256 KiB of working memory for every block would leave more holes in the heap than the blocks fill.
_WINDOW_BITS, _MEMORY_LEVEL = 12, 5


class MemoryLog:
    """A log that retains nothing (`keep_bytes` None), or its newest `keep_bytes` bytes."""

    epoch = 1
    __slots__ = ("_compressed", "_compressed_documents", "_documents", "_keep_bytes", "_start", "ended", "size_bytes")

    def __init__(self, keep_bytes: int | None = None) -> None:
        self._keep_bytes = keep_bytes
        self._documents: list[bytes] = []
        self._start = 1
        # Before `_documents`: blocks of them.
        self._compressed: list[bytes] = []
        self._compressed_documents = 0
        self.size_bytes = 0
        self.ended: Ended | None = None

    @property
    def is_retaining(self) -> bool:
        return self._keep_bytes is not None

    @property
    def last(self) -> int:
        return self._start + self._compressed_documents + len(self._documents) - 1

    @property
    def committed(self) -> int:
        return self.last

    def compress(self) -> None:
        # Retained events may be read from any cursor.
        if self._keep_bytes is not None or not self._documents:
            return
        # JSON on one line each, so that a line break can stand between two.
        press = zlib.compressobj(wbits=_WINDOW_BITS, memLevel=_MEMORY_LEVEL)
        block = press.compress(b"\n".join(self._documents)) + press.flush()
        self._compressed.append(block)
        self._compressed_documents += len(self._documents)
        self.size_bytes += len(block) + _OVERHEAD_BYTES
        self._documents = []

    def set_limit(self, keep_bytes: int) -> None:
        if self._keep_bytes is not None:
            self._keep_bytes = keep_bytes
            if self.size_bytes > keep_bytes:
                self._trim(keep_bytes)

    def append(self, documents: list[bytes]) -> None:
        if self.ended is not None or not documents:
            return
        self._documents += documents
        if self._keep_bytes is not None:
            for document in documents:
                self.size_bytes += len(document) + _OVERHEAD_BYTES
            if self.size_bytes > self._keep_bytes:
                self._trim(self._keep_bytes)

    def append_delivered(self, document: bytes) -> int:
        if self._keep_bytes is None:
            # Nothing else is pending, or the reader would not have all earlier events.
            self._start += 1
            return self._start - 1
        self.append([document])
        return self.last

    def close(self, ended: Ended, documents: list[bytes]) -> None:
        if self.ended is None:
            self.append(documents)
            self.ended = ended

    def read(self, cursor: int) -> Batch | None:
        documents = self._documents
        if cursor == self._start - 1 and self._keep_bytes is None and not self._compressed:
            # The usual case of a plain stream.
            if not documents and self.ended is None:
                return None
            self._start += len(documents)
            self._documents = []
            return Batch(cursor + 1, documents, self.ended)
        if cursor >= self.last and self.ended is None:
            return None
        if cursor < self._start - 1:
            raise Expired(f"The events after number {cursor} are kept no longer.")
        skipped = cursor + 1 - self._start
        if self._keep_bytes is not None:
            return Batch(cursor + 1, documents[skipped:], self.ended)
        # A plain stream has one reader, and it takes the list itself.
        documents = self._decompress()
        self._start += len(documents)
        self._documents = []
        return Batch(cursor + 1, documents[skipped:], self.ended)

    def _decompress(self) -> list[bytes]:
        """All events that have not been read."""
        documents = [document for block in self._compressed for document in zlib.decompress(block).split(b"\n")]
        documents += self._documents
        self._compressed = []
        self._compressed_documents = self.size_bytes = 0
        return documents

    def _trim(self, keep_bytes: int) -> None:
        """Drop the oldest events, down to three quarters of the limit so that the next append need not come here."""
        dropped = 0
        while self.size_bytes > keep_bytes * 3 // 4 and dropped < len(self._documents) - 1:
            self.size_bytes -= len(self._documents[dropped]) + _OVERHEAD_BYTES
            dropped += 1
        del self._documents[:dropped]
        self._start += dropped


def open_log(stream_id: str, keep_bytes: int | None, on_commit: Callable[[], None]) -> MemoryLog:
    """An `OpenLog`. Nothing is committed later than it is appended, so `on_commit` is never called."""
    return MemoryLog(keep_bytes)
