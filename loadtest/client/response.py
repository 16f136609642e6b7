"""Reads one response: its times, its tokens, and whether it is correct and complete. Pure: bytes and times in, a
`Record` out.

The first violation names the error; reading goes on all the same, so that times stay complete. Checked are: every event
is JSON with choices, of the same completion; ids of resumable streams have no gap; exactly one finish reason for each
choice and no content after it; usage, once, equal to the tokens counted and within max_tokens; `[DONE]`, once and last;
and, for the synthetic engine, every single token.
"""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import Any

import orjson

from loadtest.client import sse
from loadtest.client.token_check import TokenCheck
from loadtest.measure.record import ReadMode, Record
from loadtest.measure.result import ErrorKind
from loadtest.scenario.workload import PreparedRequest

_DETAIL_LENGTH = 300


class TransportEnd(Enum):
    """How the connection's part of a response ended."""

    COMPLETE = "complete"  # the HTTP message is complete
    CLOSED = ErrorKind.TRUNCATED  # the server closed before that
    RESET = ErrorKind.RESET
    CONNECT = ErrorKind.CONNECT
    TLS = ErrorKind.TLS
    TIMEOUT_FIRST = ErrorKind.TIMEOUT_FIRST
    TIMEOUT_IDLE = ErrorKind.TIMEOUT_IDLE
    DEADLINE = ErrorKind.DEADLINE
    ABORTED = "aborted"  # the client left, as planned


class ResponseReader:
    """The response to one `PreparedRequest`."""

    def __init__(self, request: PreparedRequest, record: Record) -> None:
        self.record = record
        self.last_id: bytes | None = None
        self.is_done = False
        self._request = request
        self._parser = sse.SseParser()
        self._status = 0
        self._is_events = False
        self._body = bytearray()
        self._text_parts: list[str] = []
        self._finished_choices: set[int] = set()
        self._token_check = TokenCheck(request, record, self.fail)

    @property
    def text(self) -> str:
        """The text of the answer, if it was to be kept."""
        return "".join(self._text_parts)

    @property
    def content_events(self) -> int:
        """Events with content so far."""
        return len(self.record.content_ns)

    # From the connection.

    def on_first_byte(self, at_ns: int) -> None:
        """Of the response, or of its continuation after a resumption."""
        if not self.record.first_byte_ns:
            self.record.first_byte_ns = at_ns

    def on_head(self, status: int, content_type: str, request_id: str) -> None:
        self._status = self.record.status = status
        self.record.request_id = self.record.request_id or request_id
        self._is_events = content_type.startswith("text/event-stream")
        if self._request.stream and status == 200 and not self._is_events:
            self.fail(ErrorKind.BAD_EVENT, f"content-type {content_type!r} for a stream")

    def on_body(self, at_ns: int, data: bytes) -> None:
        if not (self._is_events and self._status == 200):
            self._body += data
            return
        try:
            events = self._parser.feed(data)
        except sse.EventTooLarge as error:
            self.fail(ErrorKind.BAD_EVENT, str(error))
            return
        for number, document in events:
            if number is not None:
                self._check_event_id(number)
            if document is not None:
                self.record.events += 1
                self._on_event(at_ns, document)

    def on_reconnect(self) -> None:
        """A new connection continues the stream; the unfinished event of the old one is dropped."""
        self._parser = sse.SseParser()

    def finish(self, at_ns: int, end: TransportEnd, detail: str = "") -> Record:
        """The connection has ended."""
        record = self.record
        record.ended_ns = at_ns
        stalled = record.read_mode is ReadMode.STALL and bool(self.record.content_ns)
        if end is TransportEnd.ABORTED:
            record.left_by_plan = record.error is None
        elif end is TransportEnd.COMPLETE:
            self._finish_complete(at_ns)
        elif stalled and end in {TransportEnd.CLOSED, TransportEnd.RESET}:
            record.left_by_plan = record.error is None
        elif self.is_done and end in {TransportEnd.CLOSED, TransportEnd.RESET}:
            # The stream was complete; a missing last HTTP chunk costs the client nothing.
            self._check_stream_end()
        else:
            self.fail(ErrorKind(end.value), detail)
        self._settle_token_counts()
        return record

    def _finish_complete(self, at_ns: int) -> None:
        if self._status != 200:
            self._on_http_error()
        elif self._request.stream:
            self._check_stream_end()
        else:
            self._on_json_response(at_ns)

    def fail(self, kind: ErrorKind, detail: str) -> None:
        """Record an error; the first one counts."""
        if self.record.error is None:
            self.record.error = kind
            self.record.detail = detail[:_DETAIL_LENGTH]

    # Events.

    def _check_event_id(self, event_id: bytes) -> None:
        try:
            expected = int(self.last_id or 0) + 1
            if int(event_id) != expected:
                self.fail(ErrorKind.OUT_OF_ORDER, f"event id {int(event_id)} instead of {expected}")
        except ValueError:
            self.fail(ErrorKind.OUT_OF_ORDER, f"event id {event_id[:40]!r} is not a number")
            return
        self.last_id = event_id

    def _on_event(self, at_ns: int, data: bytes) -> None:
        if self.is_done:
            self.fail(ErrorKind.BAD_EVENT, "an event after [DONE]")
            return
        if data == b"[DONE]":
            self.is_done = True
            self.record.done_ns = at_ns
            return
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.fail(ErrorKind.BAD_JSON, repr(data[:120]))
            return
        if not isinstance(chunk, dict):
            self.fail(ErrorKind.BAD_EVENT, repr(data[:120]))
            return
        if chunk.get("error"):
            self._on_error_event(chunk["error"])
            return
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            self.fail(ErrorKind.BAD_EVENT, f"no choices in {data[:120]!r}")
            return
        self._check_completion_id(chunk.get("id"))
        try:
            self._on_chunk(at_ns, chunk, choices)
        except (AttributeError, KeyError, TypeError, ValueError):
            self.fail(ErrorKind.BAD_EVENT, f"not a completion chunk: {data[:120]!r}")

    def _on_chunk(self, at_ns: int, chunk: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        has_content, counted = False, 0
        self._token_check.find_prompt_ids(chunk, choices)
        for choice in choices:
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else delta.get("content")
            ids = choice.get("token_ids")
            index = choice["index"]
            if text or ids or (delta is not None and _has_other_content(delta)):
                has_content = True
                if index in self._finished_choices:
                    self.fail(ErrorKind.OUT_OF_ORDER, "content after the finish reason")
                if text and self._request.keeps_text:
                    self._text_parts.append(text)
                if ids:
                    counted += len(ids)
                    self._token_check.verify(index, ids)
            if (reason := choice.get("finish_reason")) is not None:
                self._on_finish_reason(index, reason)
        if usage := chunk.get("usage"):
            grown = self._token_check.add_usage(usage, final=not choices)
            counted = counted if self._request.counts_by_ids else grown
        if has_content:
            countable = self._request.counts_by_ids or (self._request.counts_by_usage and usage)
            self.record.content_ns.append(at_ns)
            self.record.content_tokens.append(counted if countable else 1)
        elif counted and choices and self.record.content_tokens:
            # Tokens without text of their own, such as the end of a sequence.
            self.record.content_tokens[-1] += counted

    def _check_completion_id(self, completion_id: object) -> None:
        if not isinstance(completion_id, str) or not completion_id:
            self.fail(ErrorKind.BAD_EVENT, "an event without the completion's id")
        elif not self.record.completion_id:
            self.record.completion_id = completion_id
        elif completion_id != self.record.completion_id:
            self.fail(ErrorKind.CROSS_TALK, f"an event of {completion_id[:80]}")

    def _on_finish_reason(self, index: int, reason: object) -> None:
        if index in self._finished_choices:
            self.fail(ErrorKind.BAD_EVENT, f"a second finish reason ({reason!r}) of choice {index}")
        elif reason == "abort":
            self.fail(ErrorKind.BAD_EVENT, "finish reason 'abort', which hides an error")
        self._finished_choices.add(index)

    def _on_error_event(self, error: object) -> None:
        body = error if isinstance(error, dict) else {"message": str(error)}
        if self.record.read_mode is ReadMode.STALL and body.get("code") == "client_stalled":
            self.record.left_by_plan = True
            return
        self.fail(ErrorKind.SSE_ERROR, f"{body.get('code')}: {body.get('message')}")

    # At the end.

    def _on_http_error(self) -> None:
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

    def _check_stream_end(self) -> None:
        if self.record.left_by_plan or self.record.error is not None:
            return
        if not self.is_done:
            self.fail(ErrorKind.NO_DONE, "the answer is complete without [DONE]")
        missing = self._request.choices - len(self._finished_choices)
        if missing:
            self.fail(ErrorKind.NO_FINISH, f"no finish reason for {missing} of {self._request.choices} choices")
        self._token_check.check_totals(
            sum(self.record.content_tokens) if self._request.counts_by_ids else None, self.content_events
        )

    def _on_json_response(self, at_ns: int) -> None:
        """A response that is not streamed."""
        self.record.done_ns = at_ns
        try:
            document = orjson.loads(self._body)
            choices = document["choices"]
            self._check_completion_id(document["id"])
            for choice in choices:
                message = choice.get("message")
                text = (choice["text"] if message is None else message.get("content")) or ""
                if self._request.keeps_text:
                    self._text_parts.append(text)
                if choice.get("finish_reason") is not None:
                    self._on_finish_reason(choice["index"], choice["finish_reason"])
                self._token_check.find_prompt_ids(document, choices)
                if self._request.is_verified:
                    self._token_check.verify(choice["index"], choice["token_ids"])
            if usage := document.get("usage"):
                self._token_check.add_usage(usage, final=True)
        except orjson.JSONDecodeError:
            self.fail(ErrorKind.BAD_JSON, repr(bytes(self._body[:120])))
            return
        except (AttributeError, KeyError, TypeError, ValueError):
            self.fail(ErrorKind.BAD_EVENT, f"not a completion: {bytes(self._body[:120])!r}")
            return
        if len(choices) != self._request.choices or len(self._finished_choices) != len(choices):
            self.fail(
                ErrorKind.NO_FINISH, f"{len(self._finished_choices)} finish reasons for {self._request.choices} choices"
            )
        self._token_check.check_totals(
            sum(len(choice["token_ids"]) for choice in choices) if self._request.counts_by_ids else None, 0
        )

    def _settle_token_counts(self) -> None:
        """Set the number of tokens; those that only the last usage counted are added to the last event."""
        tokens = self.record.content_tokens
        self.record.output_tokens = self._token_check.total or sum(tokens)
        if tokens and (rest := self.record.output_tokens - sum(tokens)) > 0:
            tokens[-1] += rest


def _has_other_content(delta: dict[str, Any]) -> bool:
    """Whether a chat's chunk has content other than the answer's text."""
    return bool(delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"))
