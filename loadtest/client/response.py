"""One answer as it is read: its times, its tokens, and whether what it says is true and whole. Pure: bytes and times
in, a `Record` out.

The first thing that is wrong names the error; reading goes on all the same, so that times stay complete. What is
checked: every event is JSON with choices, of the same completion; ids of resumable streams have no gap; exactly one
finish reason for each choice and no content after it; usage, once, equal to the tokens counted and within max_tokens;
`[DONE]`, once and last; and, for the synthetic engine, every single token.
"""

from __future__ import annotations

from contextlib import suppress
from enum import Enum, auto
from typing import Any

import orjson

from loadtest.client import sse
from loadtest.client.token_check import Tokens
from loadtest.measure.record import Manner, Record
from loadtest.measure.result import ErrorKind
from loadtest.scenario.workload import Ask

__all__ = ["End", "Reading"]

_DETAIL = 300


class End(Enum):
    """How the connection's part of an answer ended."""

    COMPLETE = auto()  # the HTTP message is complete
    CLOSED = auto()  # the server closed before that
    RESET = auto()
    CONNECT = auto()
    TLS = auto()
    TIMEOUT_FIRST = auto()
    TIMEOUT_IDLE = auto()
    DEADLINE = auto()
    LEFT = auto()  # the client went, as planned


_TRANSPORT = {
    End.CLOSED: ErrorKind.TRUNCATED,
    End.RESET: ErrorKind.RESET,
    End.CONNECT: ErrorKind.CONNECT,
    End.TLS: ErrorKind.TLS,
    End.TIMEOUT_FIRST: ErrorKind.TIMEOUT_FIRST,
    End.TIMEOUT_IDLE: ErrorKind.TIMEOUT_IDLE,
    End.DEADLINE: ErrorKind.DEADLINE,
}


class Reading:
    """The answer to one `Ask`."""

    def __init__(self, ask: Ask, record: Record) -> None:
        self.record = record
        self.last_id: bytes | None = None
        self.done = False
        self._ask = ask
        self._splitter = sse.Splitter()
        self._status = 0
        self._is_events = False
        self._body = bytearray()
        self._texts: list[str] = []
        self._finished: set[int] = set()
        self._tokens = Tokens(ask, record, self.fail)

    @property
    def text(self) -> str:
        """What was said, if it was to be kept."""
        return "".join(self._texts)

    @property
    def content_events(self) -> int:
        """Events with content so far."""
        return len(self.record.content_ns)

    # What comes from the connection.

    def first_byte(self, at_ns: int) -> None:
        """The first byte of an answer; of a resumed one, too."""
        if not self.record.first_byte_ns:
            self.record.first_byte_ns = at_ns

    def head(self, status: int, content_type: str, request_id: str) -> None:
        """The status line and headers."""
        self._status = self.record.status = status
        self.record.request_id = self.record.request_id or request_id
        self._is_events = content_type.startswith("text/event-stream")
        if self._ask.stream and status == 200 and not self._is_events:
            self.fail(ErrorKind.BAD_EVENT, f"content-type {content_type!r} for a stream")

    def body(self, at_ns: int, data: bytes) -> None:
        """Some bytes of the body."""
        if not (self._is_events and self._status == 200):
            self._body += data
            return
        try:
            events = self._splitter.feed(data)
        except sse.EventTooLarge as error:
            self.fail(ErrorKind.BAD_EVENT, str(error))
            return
        for number, document in events:
            if number is not None:
                self._count(number)
            if document is not None:
                self.record.events += 1
                self._event(at_ns, document)

    def cut(self) -> None:
        """The connection is gone and a new one will go on: half an event is not continued."""
        self._splitter = sse.Splitter()

    def end(self, at_ns: int, end: End, detail: str = "") -> Record:
        """Nothing more will come."""
        record = self.record
        record.ended_ns = at_ns
        stalled = record.manner is Manner.STALL and bool(self.record.content_ns)
        if end is End.LEFT:
            record.left_by_plan = record.error is None
        elif end is End.COMPLETE:
            self._complete(at_ns)
        elif stalled and end in {End.CLOSED, End.RESET}:
            record.left_by_plan = record.error is None
        elif self.done and end in {End.CLOSED, End.RESET}:
            # All was said; that the connection ends without the last chunk costs nobody anything.
            self._check_stream()
        else:
            self.fail(_TRANSPORT[end], detail)
        self._settle()
        return record

    def _complete(self, at_ns: int) -> None:
        if self._status != 200:
            self._refused()
        elif self._ask.stream:
            self._check_stream()
        else:
            self._whole(at_ns)

    def fail(self, kind: ErrorKind, detail: str) -> None:
        """Note an error; the first one counts."""
        if self.record.error is None:
            self.record.error = kind
            self.record.detail = detail[:_DETAIL]

    # Events.

    def _count(self, number: bytes) -> None:
        try:
            expected = int(self.last_id or 0) + 1
            if int(number) != expected:
                self.fail(ErrorKind.OUT_OF_ORDER, f"event id {int(number)} where {expected} was due")
        except ValueError:
            self.fail(ErrorKind.OUT_OF_ORDER, f"event id {number[:40]!r} is not a number")
            return
        self.last_id = number

    def _event(self, at_ns: int, document: bytes) -> None:
        if self.done:
            self.fail(ErrorKind.BAD_EVENT, "an event after [DONE]")
            return
        if document == b"[DONE]":
            self.done = True
            self.record.done_ns = at_ns
            return
        try:
            said = orjson.loads(document)
        except orjson.JSONDecodeError:
            self.fail(ErrorKind.BAD_JSON, repr(document[:120]))
            return
        if not isinstance(said, dict):
            self.fail(ErrorKind.BAD_EVENT, repr(document[:120]))
            return
        if said.get("error"):
            self._in_band(said["error"])
            return
        choices = said.get("choices")
        if not isinstance(choices, list):
            self.fail(ErrorKind.BAD_EVENT, f"no choices in {document[:120]!r}")
            return
        self._identify(said.get("id"))
        try:
            self._take(at_ns, said, choices)
        except (AttributeError, KeyError, TypeError, ValueError):
            self.fail(ErrorKind.BAD_EVENT, f"not a completion chunk: {document[:120]!r}")

    def _take(self, at_ns: int, said: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        has_content, counted = False, 0
        self._tokens.learn_prompt(said, choices)
        for choice in choices:
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else delta.get("content")
            ids = choice.get("token_ids")
            index = choice["index"]
            if text or ids or (delta is not None and _other_content(delta)):
                has_content = True
                if index in self._finished:
                    self.fail(ErrorKind.OUT_OF_ORDER, "content after the finish reason")
                if text and self._ask.keeps_text:
                    self._texts.append(text)
                if ids:
                    counted += len(ids)
                    self._tokens.verify(index, ids)
            if (reason := choice.get("finish_reason")) is not None:
                self._finish(index, reason)
        if usage := said.get("usage"):
            grown = self._tokens.use(usage, final=not choices)
            counted = counted if self._ask.by_ids else grown
        if has_content:
            countable = self._ask.by_ids or (self._ask.by_usage and usage)
            self.record.content_ns.append(at_ns)
            self.record.content_tokens.append(counted if countable else 1)
        elif counted and choices and self.record.content_tokens:
            # Tokens without text of their own, such as the end of a sequence.
            self.record.content_tokens[-1] += counted

    def _identify(self, completion_id: object) -> None:
        if not isinstance(completion_id, str) or not completion_id:
            self.fail(ErrorKind.BAD_EVENT, "an event without the completion's id")
        elif not self.record.completion_id:
            self.record.completion_id = completion_id
        elif completion_id != self.record.completion_id:
            self.fail(ErrorKind.CROSS_TALK, f"an event of {completion_id[:80]}")

    def _finish(self, index: int, reason: object) -> None:
        if index in self._finished:
            self.fail(ErrorKind.BAD_EVENT, f"a second finish reason ({reason!r}) of choice {index}")
        elif reason == "abort":
            self.fail(ErrorKind.BAD_EVENT, "finish reason 'abort': an error that does not say so")
        self._finished.add(index)

    def _in_band(self, error: object) -> None:
        said = error if isinstance(error, dict) else {"message": str(error)}
        if self.record.manner is Manner.STALL and said.get("code") == "client_stalled":
            self.record.left_by_plan = True
            return
        self.fail(ErrorKind.SSE_ERROR, f"{said.get('code')}: {said.get('message')}")

    # At the end.

    def _refused(self) -> None:
        status = self._status
        if status == 429:
            kind = ErrorKind.HTTP_429
        elif status == 503:
            kind = ErrorKind.HTTP_503_SHED
        else:
            kind = ErrorKind.HTTP_5XX if status >= 500 else ErrorKind.HTTP_4XX
        text = bytes(self._body[:4096]).decode(errors="replace")
        with suppress(orjson.JSONDecodeError, KeyError, TypeError):
            text = orjson.loads(self._body)["error"]["message"]
        self.fail(kind, f"{status}: {text}")

    def _check_stream(self) -> None:
        if self.record.left_by_plan or self.record.error is not None:
            return
        if not self.done:
            self.fail(ErrorKind.NO_DONE, "the answer is complete without [DONE]")
        missing = self._ask.choices - len(self._finished)
        if missing:
            self.fail(ErrorKind.NO_FINISH, f"no finish reason for {missing} of {self._ask.choices} choices")
        self._tokens.check(sum(self.record.content_tokens) if self._ask.by_ids else None, self.content_events)

    def _whole(self, at_ns: int) -> None:
        """An answer that was not streamed."""
        self.record.done_ns = at_ns
        try:
            said = orjson.loads(self._body)
            choices = said["choices"]
            self._identify(said["id"])
            for choice in choices:
                message = choice.get("message")
                text = (choice["text"] if message is None else message.get("content")) or ""
                if self._ask.keeps_text:
                    self._texts.append(text)
                if choice.get("finish_reason") is not None:
                    self._finish(choice["index"], choice["finish_reason"])
                self._tokens.learn_prompt(said, choices)
                if self._ask.synthetic:
                    self._tokens.verify(choice["index"], choice["token_ids"])
            if usage := said.get("usage"):
                self._tokens.use(usage, final=True)
        except orjson.JSONDecodeError:
            self.fail(ErrorKind.BAD_JSON, repr(bytes(self._body[:120])))
            return
        except (AttributeError, KeyError, TypeError, ValueError):
            self.fail(ErrorKind.BAD_EVENT, f"not a completion: {bytes(self._body[:120])!r}")
            return
        if len(choices) != self._ask.choices or len(self._finished) != len(choices):
            self.fail(ErrorKind.NO_FINISH, f"{len(self._finished)} finish reasons for {self._ask.choices} choices")
        self._tokens.check(sum(len(choice["token_ids"]) for choice in choices) if self._ask.by_ids else None, 0)

    def _settle(self) -> None:
        """The number of tokens, and where they are counted: what only the end told goes to the last event."""
        tokens = self.record.content_tokens
        self.record.output_tokens = self._tokens.total or sum(tokens)
        if tokens and (rest := self.record.output_tokens - sum(tokens)) > 0:
            tokens[-1] += rest


def _other_content(delta: dict[str, Any]) -> bool:
    """Whether a chat's chunk says something that is not its answer's text."""
    return bool(delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"))
