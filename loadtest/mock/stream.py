"""One streamed request on its way: takes the script's acts at their times, frames them, hands them to whoever reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Protocol

from loadtest.mock.ground_truth import Record
from loadtest.mock.script import FOREVER_NS, Act

__all__ = ["Job", "Reader", "Stream"]

LAST_CHUNK = b"0\r\n\r\n"


class Reader(Protocol):
    """A connection, as a stream sees it."""

    def send(self, payload: bytes) -> int:
        """Hand it to the kernel. Returns when that was."""

    def complete(self) -> None:
        """The answer is whole; the connection may be used again."""

    def cut(self, *, rst: bool) -> None:
        """End the connection."""


class Job:
    """What is common to an answer that is streamed and one that is not. `on_tokens` hears of each event with tokens,
    `on_end` once of the end."""

    def __init__(
        self,
        record: Record,
        prompt_tokens: int,
        first_wait_ns: int,
        on_tokens: Callable[[Job, int], object],
        on_end: Callable[[Job], object],
    ) -> None:
        self.record = record
        self.prompt_tokens = prompt_tokens
        self.first_wait_ns = first_wait_ns
        self.over = False
        self._on_tokens = on_tokens
        self._on_end = on_end

    def fire(self) -> int | None:
        """As `engine.Due`."""
        raise NotImplementedError

    def leave(self, reader: Reader) -> bool:
        """The reader has gone. Returns whether there is a reason to go on."""
        raise NotImplementedError

    def end(self, how: str) -> None:
        """Nothing is said any more."""
        if not self.over:
            self.over = True
            self.record.end = how
            self.record.ended_ns = perf_counter_ns()
            self._on_end(self)

    def abandon(self) -> None:
        """Say nothing any more, and tell nobody."""
        self.over = True
        self.record.end = "left"

    def _said(self, at_ns: int, tokens: int) -> None:
        self.record.sent_ns.append(at_ns)
        self.record.tokens.append(tokens)
        self._on_tokens(self, tokens)


class Stream(Job):
    """A streamed answer. `numbered`: its events have ids, are kept, and it goes on without a reader."""

    def __init__(
        self,
        acts: Iterator[Act],
        record: Record,
        prompt_tokens: int,
        *,
        numbered: bool,
        on_tokens: Callable[[Job, int], object],
        on_end: Callable[[Job], object],
    ) -> None:
        self._acts = acts
        self._act = next(acts)
        super().__init__(record, prompt_tokens, self._act.wait_ns, on_tokens, on_end)
        self._numbered = numbered
        self._readers: list[Reader] = []
        # What a numbered stream has said, and the numbers; readers who come later find it here.
        self._kept: list[tuple[int, bytes]] = []
        # The second half of what is written in two.
        self._held = b""

    def join(self, reader: Reader, after: int = 0) -> None:
        """`reader` gets what has been said behind that number, and what follows."""
        for seq, frame in self._kept:
            if seq > after:
                reader.send(frame)
        if self.over:
            reader.send(LAST_CHUNK)
            reader.complete()
        else:
            self._readers.append(reader)

    def leave(self, reader: Reader) -> bool:
        if reader in self._readers:
            self._readers.remove(reader)
        return self._numbered or self.over

    def fire(self) -> int | None:
        if self.over:
            return None
        act = self._act
        now_ns = self._write(act)
        if act.tokens:
            self._said(now_ns, act.tokens)
        if act.last or act.cut is not None:
            self._finish(act)
            return None
        self._act = next(self._acts)
        return None if self._act.wait_ns == FOREVER_NS else self._act.wait_ns

    def _write(self, act: Act) -> int:
        payload = self._framed(act)
        if self._held:
            payload, self._held = self._held + payload, b""
        if act.halves:
            # Behind the first byte of the last character that has two.
            at = max(payload.rfind(byte) for byte in (b"\xc3", b"\xc4")) + 1
            payload, self._held = payload[:at], payload[at:]
        if act.cut is not None:
            payload = payload[: payload.index(b"\r\n") + 2 + act.cut.byte]
        elif act.last:
            payload += LAST_CHUNK
        now_ns = perf_counter_ns()
        for reader in tuple(self._readers):
            now_ns = reader.send(payload)
        return now_ns

    def _framed(self, act: Act) -> bytes:
        """As one chunk of HTTP."""
        if not act.documents:
            return b""
        if not self._numbered:
            body = b"".join([b"data: %b\n\n" % document for document in act.documents])
            return b"%x\r\n%b\r\n" % (len(body), body)
        frames = []
        for seq, document in enumerate(act.documents, act.seq):
            event = b"id: %d\ndata: %b\n\n" % (seq, document)
            frames.append(b"%x\r\n%b\r\n" % (len(event), event))
            self._kept.append((seq, frames[-1]))
        return b"".join(frames)

    def _finish(self, act: Act) -> None:
        readers, self._readers = self._readers, []
        self.end("complete" if act.cut is None else "cut")
        for reader in readers:
            if act.cut is None:
                reader.complete()
            else:
                reader.cut(rst=act.cut.rst)
