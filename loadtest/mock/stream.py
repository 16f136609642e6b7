"""One streamed request in progress: takes the script's actions at their times, frames them, and sends them to its
readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Protocol

from loadtest.mock.ground_truth import TrueRecord
from loadtest.mock.script import FOREVER_NS, Action

LAST_CHUNK = b"0\r\n\r\n"


class Connection(Protocol):
    """A connection, as a job uses it."""

    def send(self, payload: bytes) -> int:
        """Hand bytes to the kernel. Returns the time of that."""

    def complete(self) -> None:
        """The answer is complete; the connection may be used again."""

    def abort(self, *, rst: bool) -> None: ...


class Job:
    """The common part of streamed and other answers. `on_tokens` is called for each event with tokens, `on_end` once at
    the end."""

    def __init__(
        self,
        record: TrueRecord,
        prompt_tokens: int,
        first_wait_ns: int,
        on_tokens: Callable[[Job, int], object],
        on_end: Callable[[Job], object],
    ) -> None:
        self.record = record
        self.prompt_tokens = prompt_tokens
        self.first_wait_ns = first_wait_ns
        self.is_over = False
        self._on_tokens = on_tokens
        self._on_end = on_end

    def fire(self) -> int | None:
        """As `engine.TimedEvent`."""
        raise NotImplementedError

    def on_reader_left(self, reader: Connection) -> bool:
        """The reader has gone. Returns whether the job goes on."""
        raise NotImplementedError

    def end(self, how: str) -> None:
        """Send nothing more."""
        if not self.is_over:
            self.is_over = True
            self.record.end = how
            self.record.ended_ns = perf_counter_ns()
            self._on_end(self)

    def abandon(self) -> None:
        """Send nothing more, without calling `on_end`."""
        self.is_over = True
        self.record.end = "left"

    def _record_tokens(self, at_ns: int, tokens: int) -> None:
        self.record.sent_ns.append(at_ns)
        self.record.tokens.append(tokens)
        self._on_tokens(self, tokens)


class Stream(Job):
    """A streamed answer. `is_resumable`: its events have ids, are kept, and it goes on without a reader."""

    def __init__(
        self,
        actions: Iterator[Action],
        record: TrueRecord,
        prompt_tokens: int,
        *,
        is_resumable: bool,
        on_tokens: Callable[[Job, int], object],
        on_end: Callable[[Job], object],
    ) -> None:
        self._actions = actions
        self._action = next(actions)
        super().__init__(record, prompt_tokens, self._action.wait_ns, on_tokens, on_end)
        self._is_resumable = is_resumable
        self._readers: list[Connection] = []
        # The frames of a resumable stream and their numbers, for readers who resume.
        self._frames: list[tuple[int, bytes]] = []
        # The second half of a split write.
        self._second_half = b""

    def join(self, reader: Connection, after: int = 0) -> None:
        """`reader` gets the frames behind number `after`, and those that follow."""
        for seq, frame in self._frames:
            if seq > after:
                reader.send(frame)
        if self.is_over:
            reader.send(LAST_CHUNK)
            reader.complete()
        else:
            self._readers.append(reader)

    def on_reader_left(self, reader: Connection) -> bool:
        if reader in self._readers:
            self._readers.remove(reader)
        return self._is_resumable or self.is_over

    def fire(self) -> int | None:
        if self.is_over:
            return None
        action = self._action
        now_ns = self._write(action)
        if action.tokens:
            self._record_tokens(now_ns, action.tokens)
        if action.is_last or action.cut is not None:
            self._finish(action)
            return None
        self._action = next(self._actions)
        return None if self._action.wait_ns == FOREVER_NS else self._action.wait_ns

    def _write(self, action: Action) -> int:
        payload = self._frame(action)
        if self._second_half:
            payload, self._second_half = self._second_half + payload, b""
        if action.in_halves:
            # Behind the first byte of the last two-byte character.
            at = max(payload.rfind(byte) for byte in (b"\xc3", b"\xc4")) + 1
            payload, self._second_half = payload[:at], payload[at:]
        if action.cut is not None:
            payload = payload[: payload.index(b"\r\n") + 2 + action.cut.byte]
        elif action.is_last:
            payload += LAST_CHUNK
        now_ns = perf_counter_ns()
        for reader in tuple(self._readers):
            now_ns = reader.send(payload)
        return now_ns

    def _frame(self, action: Action) -> bytes:
        """As one chunk of HTTP."""
        if not action.documents:
            return b""
        if not self._is_resumable:
            body = b"".join([b"data: %b\n\n" % document for document in action.documents])
            return b"%x\r\n%b\r\n" % (len(body), body)
        frames = []
        for seq, document in enumerate(action.documents, action.seq):
            event = b"id: %d\ndata: %b\n\n" % (seq, document)
            frames.append(b"%x\r\n%b\r\n" % (len(event), event))
            self._frames.append((seq, frames[-1]))
        return b"".join(frames)

    def _finish(self, action: Action) -> None:
        readers, self._readers = self._readers, []
        self.end("complete" if action.cut is None else "cut")
        for reader in readers:
            if action.cut is None:
                reader.complete()
            else:
                reader.abort(rst=action.cut.rst)
