"""The reader of responses: its counts, and an error kind for every violation."""

from __future__ import annotations

import orjson
import pytest

from gateway.engine import deterministic_tokens
from loadtest.client.response import TransportEnd
from loadtest.measure.record import ReadMode, Record
from loadtest.measure.result import ErrorKind
from loadtest.scenario.workload import ReadPlan
from tests.unit.loadtest.requests import ID, chunk, ending, event, make_reader, usage

ROLE = event(chunk("", choice={"delta": {"role": "assistant", "content": ""}}))
TWO = event(chunk("Hello")) + event(chunk(" you"))


def read(*parts: bytes, end: TransportEnd = TransportEnd.COMPLETE, **changes: object) -> Record:
    """The record of a stream of these parts, the first at 10 ns, the next at 20."""
    reader = make_reader(**changes)
    for number, part in enumerate(parts, 1):
        reader.on_body(10 * number, part)
    return reader.finish(10 * len(parts) + 1, end)


def test_a_good_stream_has_all_its_times_and_tokens() -> None:
    reader = make_reader()
    for at_ns, part in ((10, ROLE), (20, event(chunk("Hello"))), (30, event(chunk(" you"))), (40, ending(2))):
        reader.on_body(at_ns, part)
    record = reader.finish(50, TransportEnd.COMPLETE)

    assert record.error is None, record.detail
    assert record.is_ok
    assert reader.text == "Hello you"
    assert list(record.content_ns) == [20, 30], "the role's chunk is no content"
    assert (record.first_byte_ns, record.done_ns, record.ended_ns) == (5, 40, 50)
    assert (record.prompt_tokens, record.output_tokens, record.events) == (7, 2, 6)
    assert record.completion_id == ID


def test_several_tokens_in_one_event_are_counted_apart() -> None:
    """By usage in every event: the gap stays one gap, the tokens are three."""
    record = read(
        event(chunk("Hello", usage=usage(1))),
        event(chunk(" all of you", usage=usage(4))),
        ending(4),
        counts_by_usage=True,
    )

    assert record.error is None, record.detail
    assert list(record.content_tokens) == [1, 3]


def test_tokens_counted_only_at_the_end_go_to_the_last_event() -> None:
    record = read(TWO, ending(5))

    assert list(record.content_tokens) == [1, 4]


def test_reasoning_and_tool_calls_are_content() -> None:
    parts = [
        event(chunk(choice={"delta": {"reasoning_content": "hm"}})),
        event(chunk(choice={"delta": {"tool_calls": [{}]}})),
    ]
    record = read(*parts, ending(2))

    assert list(record.content_ns) == [10, 20]


BROKEN: list[tuple[ErrorKind, bytes, dict[str, object]]] = [
    (ErrorKind.SSE_ERROR, TWO + event({"error": {"code": "engine_failed", "message": "x"}}) + event(b"[DONE]"), {}),
    (ErrorKind.NO_DONE, TWO + event(chunk(finish="stop")) + event({"id": ID, "choices": [], "usage": usage(2)}), {}),
    (ErrorKind.NO_FINISH, TWO + event({"id": ID, "choices": [], "usage": usage(2)}) + event(b"[DONE]"), {}),
    (ErrorKind.NO_FINISH, TWO + ending(2), {"choices": 2}),
    (ErrorKind.BAD_JSON, TWO + event(b'{"id": "chat') + ending(2), {}),
    (ErrorKind.BAD_EVENT, TWO + event(b"[1]") + ending(2), {}),
    (ErrorKind.BAD_EVENT, TWO + event({"id": ID, "object": "what"}) + ending(2), {}),
    (ErrorKind.BAD_EVENT, TWO + event({"id": ID, "choices": [1]}) + ending(2), {}),
    (ErrorKind.BAD_EVENT, TWO + event({"choices": []}) + ending(2), {}),
    (ErrorKind.BAD_EVENT, TWO + ending(2) + event(chunk("!")), {}),
    (ErrorKind.BAD_EVENT, TWO + event(chunk(finish="stop")) + ending(2), {}),
    (ErrorKind.BAD_EVENT, TWO + event(chunk(finish="abort")) + event(b"[DONE]"), {}),
    (ErrorKind.USAGE_MISMATCH, TWO + event(chunk(finish="stop")) + event(b"[DONE]"), {}),
    (ErrorKind.USAGE_MISMATCH, TWO + ending(101), {}),
    (ErrorKind.USAGE_MISMATCH, TWO + ending(1), {}),
    (ErrorKind.USAGE_MISMATCH, event(chunk("a", usage=usage(1))) + ending(2), {"counts_by_usage": True}),
    (
        ErrorKind.USAGE_MISMATCH,
        event(chunk("a", usage=usage(3))) + event(chunk("b", usage=usage(2))),
        {"counts_by_usage": True},
    ),
    (ErrorKind.USAGE_MISMATCH, event(chunk("a", choice={"token_ids": [1, 2]})) + ending(3), {"counts_by_ids": True}),
    (ErrorKind.OUT_OF_ORDER, event(chunk("a"), 1) + event(chunk("b"), 3), {}),
    (ErrorKind.OUT_OF_ORDER, event(chunk("a"), 1) + event(chunk("b"), 1), {}),
    (ErrorKind.OUT_OF_ORDER, TWO + event(chunk(finish="stop")) + event(chunk("more")) + ending(3), {}),
    (ErrorKind.CROSS_TALK, TWO + event({**chunk("x"), "id": "chatcmpl-2"}) + ending(3), {}),
]


@pytest.mark.parametrize(("kind", "body", "changes"), BROKEN, ids=lambda value: str(value)[:30])
def test_each_violation_has_its_error_kind(kind: ErrorKind, body: bytes, changes: dict[str, object]) -> None:
    record = read(body, **changes)

    assert record.error is kind, record.detail
    assert record.detail


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (TransportEnd.CLOSED, ErrorKind.TRUNCATED),
        (TransportEnd.RESET, ErrorKind.RESET),
        (TransportEnd.CONNECT, ErrorKind.CONNECT),
        (TransportEnd.TLS, ErrorKind.TLS),
        (TransportEnd.TIMEOUT_FIRST, ErrorKind.TIMEOUT_FIRST),
        (TransportEnd.TIMEOUT_IDLE, ErrorKind.TIMEOUT_IDLE),
        (TransportEnd.DEADLINE, ErrorKind.DEADLINE),
    ],
)
def test_each_end_of_a_connection_has_its_error_kind(end: TransportEnd, kind: ErrorKind) -> None:
    assert read(TWO, end=end).error is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ErrorKind.HTTP_4XX),
        (404, ErrorKind.HTTP_4XX),
        (429, ErrorKind.HTTP_429),
        (503, ErrorKind.HTTP_503_SHED),
        (500, ErrorKind.HTTP_5XX),
    ],
)
def test_a_refusal_has_its_error_kind_and_message(status: int, kind: ErrorKind) -> None:
    reader = make_reader()
    reader.on_head(status, "application/json", "r-1")
    reader.on_body(10, orjson.dumps({"error": {"message": "because"}}))
    record = reader.finish(20, TransportEnd.COMPLETE)

    assert record.error is kind
    assert record.detail == f"{status}: because"


def test_a_stream_needs_the_content_type_of_events() -> None:
    reader = make_reader()
    reader.on_head(200, "application/json", "r-1")
    reader.on_body(10, b"{}")

    assert reader.finish(20, TransportEnd.COMPLETE).error is ErrorKind.BAD_EVENT


def test_a_connection_that_ends_after_done_is_no_error() -> None:
    assert read(TWO + ending(2), end=TransportEnd.CLOSED).error is None


def test_the_first_error_counts() -> None:
    record = read(TWO + event(b"{") + event({"error": {"message": "x"}}), end=TransportEnd.CLOSED)

    assert record.error is ErrorKind.BAD_JSON


# Every token.

PROMPT = [300, 301, 302]


def tokens_event(*ids: int, prompt: list[int] | None = None) -> bytes:
    more = {"prompt_token_ids": prompt} if prompt is not None else {}
    return event(chunk("x", choice={"token_ids": list(ids)}, **more))


def test_every_token_is_compared_with_the_synthetic_engines() -> None:
    expected = deterministic_tokens.tokens(PROMPT[0], len(PROMPT), 4)
    record = read(
        tokens_event(*expected[:1], prompt=PROMPT),
        tokens_event(*expected[1:]),
        ending(4),
        counts_by_ids=True,
        is_verified=True,
    )

    assert record.error is None, record.detail
    assert record.verified_tokens == 4
    assert list(record.content_tokens) == [1, 3]


def test_a_wrong_token_is_found_at_its_position() -> None:
    expected = deterministic_tokens.tokens(PROMPT[0], len(PROMPT), 4)
    record = read(
        tokens_event(expected[0], expected[1], expected[3]),
        counts_by_ids=True,
        is_verified=True,
        prompt_start=(PROMPT[0], len(PROMPT)),
    )

    assert record.error is ErrorKind.WRONG_TOKEN
    assert record.verified_tokens == 0


def test_a_lost_token_is_a_wrong_one() -> None:
    expected = deterministic_tokens.tokens(PROMPT[0], len(PROMPT), 4)
    record = read(
        tokens_event(expected[0], prompt=PROMPT), tokens_event(expected[2]), counts_by_ids=True, is_verified=True
    )

    assert record.error is ErrorKind.WRONG_TOKEN


# Clients that do not read to the end.


def test_a_planned_abort_is_neither_a_success_nor_an_error() -> None:
    record = read(TWO, end=TransportEnd.ABORTED, read_plan=ReadPlan(ReadMode.CANCEL))

    assert record.error is None
    assert record.left_by_plan
    assert not record.is_ok
    assert record.output_tokens == 2


def test_an_error_before_a_planned_abort_counts() -> None:
    record = read(TWO + event(b"{"), end=TransportEnd.ABORTED, read_plan=ReadPlan(ReadMode.CANCEL))

    assert record.error is ErrorKind.BAD_JSON
    assert not record.left_by_plan


@pytest.mark.parametrize("end", [TransportEnd.CLOSED, TransportEnd.RESET])
def test_a_server_may_drop_a_client_that_does_not_read(end: TransportEnd) -> None:
    record = read(TWO, end=end, read_plan=ReadPlan(ReadMode.STALL))

    assert record.error is None
    assert record.left_by_plan


def test_client_stalled_is_no_error_for_a_stalled_client() -> None:
    stalled = event({"error": {"code": "client_stalled", "message": "x"}}) + event(b"[DONE]")

    assert read(TWO + stalled, read_plan=ReadPlan(ReadMode.STALL)).left_by_plan
    assert read(TWO + stalled).error is ErrorKind.SSE_ERROR


def test_a_resumed_stream_goes_on_with_the_next_number() -> None:
    reader = make_reader(read_plan=ReadPlan(ReadMode.RESUME))
    reader.on_body(10, event(chunk("Hello"), 1) + b"id: 2\ndata: {half")
    reader.on_reconnect()
    reader.on_body(20, event(chunk(" you"), 2) + event(chunk(finish="stop"), 3))
    reader.on_body(30, event({"id": ID, "choices": [], "usage": usage(2)}, 4) + event(b"[DONE]", 5))
    record = reader.finish(40, TransportEnd.COMPLETE)

    assert record.error is None, record.detail
    assert reader.text == "Hello you"


# Responses that are not streamed.


def json_response(**changes: object) -> bytes:
    choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}
    return orjson.dumps({"id": ID, "choices": [choice], "usage": usage(1), **changes})


def test_a_json_response() -> None:
    record = read(json_response()[:20], json_response()[20:], stream=False)

    assert record.error is None, record.detail
    assert (record.output_tokens, record.done_ns) == (1, 21)
    assert record.first_token_ns == 0, "its first token was not visible"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", ErrorKind.BAD_JSON),
        (b"[]", ErrorKind.BAD_EVENT),
        (json_response(choices=[]), ErrorKind.NO_FINISH),
        (json_response(usage=None), ErrorKind.USAGE_MISMATCH),
        (json_response(usage=usage(1000)), ErrorKind.USAGE_MISMATCH),
    ],
)
def test_each_broken_json_response_has_its_error_kind(body: bytes, kind: ErrorKind) -> None:
    assert read(body, stream=False).error is kind


def test_every_kind_of_error_is_tested_somewhere() -> None:
    """Those of this file; `test_load_worker` tests dropped arrivals."""
    here = {kind for kind, _, _ in BROKEN} | {ErrorKind.WRONG_TOKEN, ErrorKind.DROPPED_ARRIVAL}
    ends = {"truncated", "reset", "connect", "tls", "timeout_first", "timeout_idle", "deadline"}
    statuses = {"http_4xx", "http_429", "http_503_shed", "http_5xx"}

    assert {str(kind) for kind in ErrorKind} == {str(kind) for kind in here} | ends | statuses
