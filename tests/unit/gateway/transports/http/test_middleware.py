from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.domain import Cause
from gateway.errors import (
    ClientError,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    HeadersTooSlow,
    NotReady,
    Overloaded,
    SluiceError,
    cause_of,
)
from gateway.logs import ACCESS
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.transports.common.accounting import DETACHED
from gateway.transports.http.middleware import ARRIVAL, EXCHANGE
from tests.support.asgi import Client
from tests.support.harness import key_line
from tests.support.time import clock, in_virtual_time
from tests.support.wrapped import Wrapped

SECRET = "sk-sluice-topsecret"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", SECRET), encoding="utf-8")
    return path


def raising(error: Exception, *, after: int = 0) -> Callable[..., Any]:
    """An app that fails after `after` messages."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        messages = [
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"half", "more_body": True},
        ]
        for message in messages[:after]:
            await send(message)
        raise error

    return app


@pytest.mark.parametrize("asked", ["req-1", "a" * 128, "A.b:c/d+e=f@g-1"])
@in_virtual_time
async def test_a_request_id_is_echoed(asked: str) -> None:
    answer = await Wrapped().get(headers={"X-Request-Id": asked})

    assert answer.headers["x-request-id"] == asked
    assert sum(name.lower() == b"x-request-id" for name, _ in answer.messages[0]["headers"]) == 1


@pytest.mark.parametrize("asked", ["", "a" * 129, "a b", "a\r\nset-cookie: x", "é", '"', "a\n"])
@in_virtual_time
async def test_a_request_id_that_cannot_be_echoed_is_replaced(asked: str) -> None:
    """It goes into a header and a log line; what could break out of either is not taken."""
    made = (await Wrapped().get(headers={"X-Request-Id": asked})).headers["x-request-id"]

    assert made != asked
    assert len(made) == 16


@in_virtual_time
async def test_every_request_gets_an_id_of_its_own() -> None:
    wrapped = Wrapped()

    assert (await wrapped.get()).headers["x-request-id"] != (await wrapped.get()).headers["x-request-id"]


@in_virtual_time
async def test_a_body_announced_too_large_is_refused_before_it_is_read() -> None:
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append("app")

    answer = await Wrapped(app).get(headers={"Content-Length": "1001"})

    assert (answer.status, answer.error()["code"], reached) == (413, "body_too_large", [])
    assert "1000 bytes (server.max_body_bytes)" in answer.error()["message"]


@in_virtual_time
async def test_a_body_that_grows_too_large_is_refused_when_it_does() -> None:
    """A chunked body announces nothing."""
    wrapped = Wrapped()

    assert (await wrapped.get(body=[b"x" * 600, b"x" * 401])).status == 413
    assert (await wrapped.get(body=[b"x" * 600, b"x" * 400])).status == 200


@in_virtual_time
async def test_an_unexpected_error_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    wrapped = Wrapped(raising(RuntimeError("the secret reason")))
    answer = await wrapped.get()

    assert answer.status == 500
    assert answer.error()["code"] == "internal_error"
    assert b"secret reason" not in answer.body
    assert wrapped.instrumentation.labels == [("other", "error")]
    assert wrapped.instrumentation.endings == [], "no engine work, no ending"
    assert "the secret reason" in caplog.text, "the log has the details"


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ClientError("No."), ClientDisconnected()])
@in_virtual_time
async def test_an_error_after_the_first_byte_leaves_the_response_incomplete(error: Exception) -> None:
    """The server then breaks the connection without the final chunk, so that the client notices."""
    answer = await Wrapped(raising(error, after=2)).get()

    assert answer.status == 200
    assert answer.body == b"half"
    assert not answer.complete


@in_virtual_time
async def test_retry_after_is_what_the_error_computed() -> None:
    answer = await Wrapped(raising(Overloaded("Full.", retry_after_s=17))).get()

    assert (answer.status, answer.headers["retry-after"]) == (503, "17")


def working(*, is_resumable: bool, cause: Cause | None = None, error: Exception | None = None) -> Callable[..., Any]:
    """An app that makes the engine work, and stops in the middle of its answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        stats = scope[EXCHANGE].stats
        stats.uses_engine, stats.is_resumable, stats.cause, stats.completion_tokens = True, is_resumable, cause, 3
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize("left", [ClientDisconnected(), ClientDisconnected(Cause.CLIENT_STALLED)])
@in_virtual_time
async def test_an_exchange_ends_with_the_reason_for_which_its_reader_left(left: ClientDisconnected) -> None:
    wrapped = Wrapped(working(is_resumable=False, error=left))
    await wrapped.get()

    assert wrapped.instrumentation.endings == [(left.cause, 3)]
    assert wrapped.instrumentation.labels == [("other", left.cause.value)]


@pytest.mark.parametrize("left", [ClientDisconnected(), ClientDisconnected(Cause.CLIENT_STALLED)])
@in_virtual_time
async def test_an_exchange_whose_stream_goes_on_is_detached_and_counts_no_ending(left: ClientDisconnected) -> None:
    wrapped = Wrapped(working(is_resumable=True, error=left))
    await wrapped.get()

    assert wrapped.instrumentation.endings == []
    assert wrapped.instrumentation.labels == [("other", DETACHED)]


@in_virtual_time
async def test_an_exchange_whose_resumable_stream_has_ended_logs_the_cause_and_counts_nothing() -> None:
    """The stream's own end has been counted when it came."""
    wrapped = Wrapped(working(is_resumable=True, cause=Cause.COMPLETED))
    await wrapped.get()

    assert wrapped.instrumentation.endings == []
    assert wrapped.instrumentation.labels == [("other", "completed")]


@in_virtual_time
async def test_a_response_that_stops_without_a_word_is_a_disconnect() -> None:
    wrapped = Wrapped(working(is_resumable=False))
    await wrapped.get()

    assert wrapped.instrumentation.endings == [(Cause.DISCONNECTED, 3)]


@in_virtual_time
async def test_a_server_about_to_stop_asks_for_no_more_on_this_connection() -> None:
    wrapped = Wrapped()

    assert "connection" not in (await wrapped.get()).headers

    wrapped.closing = True

    assert (await wrapped.get()).headers["connection"] == "close"


@in_virtual_time
async def test_the_connection_header_is_sent_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Connection", b"keep-alive")]})
        await send({"type": "http.response.body", "body": b""})

    wrapped = Wrapped(app)
    wrapped.closing = True
    answer = await wrapped.get()

    assert [value for name, value in answer.messages[0]["headers"] if name.lower() == b"connection"] == [b"close"]


@pytest.mark.parametrize(("error", "advice"), [(DeadlineExceeded("Late."), "false"), (HeadersTooSlow("Slow."), None)])
@in_virtual_time
async def test_a_408_that_must_not_come_again_has_a_header_against_retries(
    error: SluiceError, advice: str | None
) -> None:
    """openai-python sends every 408 again by itself, unless this header forbids it."""
    answer = await Wrapped(raising(error)).get()

    assert (answer.status, answer.headers.get("x-should-retry")) == (408, advice)


@pytest.mark.parametrize("status", [429, 503])
@in_virtual_time
async def test_every_503_and_429_carries_retry_after_also_those_that_are_not_ours(status: int) -> None:
    async def theirs(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert int((await Wrapped(theirs).get()).headers["retry-after"]) >= 1
    assert "retry-after" not in (await Wrapped().get()).headers


@in_virtual_time
async def test_a_client_that_leaves_while_it_sends_is_a_disconnect() -> None:
    wrapped = Wrapped()
    client = Client(wrapped.guard, "POST", "/v1/models", body=b"half", unfinished=True)
    client.leave()
    await client.finish()

    assert not client.started
    assert wrapped.instrumentation.labels == [("other", "error")]


@in_virtual_time
async def test_duration_counts_from_the_first_byte_of_the_request() -> None:
    """The server notes when it came; parsing and reading headers belong to the client's wait."""
    wrapped = Wrapped()
    await wrapped.get(extra={ARRIVAL: clock().now() - 2.5})

    assert [seconds for *_, seconds in wrapped.instrumentation.exchanges] == [pytest.approx(2.5)]


@in_virtual_time
async def test_a_request_leaves_one_log_line_without_prompt_or_key(
    keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, ACCESS.name)
    body = orjson.dumps({"messages": [{"role": "user", "content": "my diagnosis"}]})
    headers = {"Authorization": f"Bearer {SECRET}", "X-Request-Id": "req-7"}
    await Client(Wrapped(keys_file=keys_file).guard, "POST", "/v1/models", headers=headers, body=body).finish()
    lines = [record for record in caplog.records if record.name == ACCESS.name]

    assert len(lines) == 1
    assert lines[0].fields == {  # type: ignore[attr-defined]
        "id": None,
        "request_id": "req-7",
        "path": "/v1/models",
        "model": None,
        "status": 200,
        "cause": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "queue_s": None,
        "ttft_s": None,
        "duration_s": 0.0,
        "owner": "ann",
    }
    everything = repr([vars(record) for record in caplog.records])
    assert "my diagnosis" not in everything
    assert "topsecret" not in everything


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
@in_virtual_time
async def test_probes_leave_no_log_line(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, ACCESS.name)
    await Wrapped().get(path)

    assert not caplog.records


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """An app that makes a 503 of its own."""
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("error", [None, Overloaded("."), NotReady("."), Draining("."), EngineFailed(".")])
@in_virtual_time
async def test_503_leaves_only_for_requests_that_the_engine_has_not_been_given(
    error: SluiceError | None, submitted: bool
) -> None:
    """From any source: proxies would send the request to another server, and it would be generated twice."""
    inner = refuse if error is None else raising(error)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        stats = scope[EXCHANGE].stats
        stats.uses_engine, stats.submitted = True, submitted
        await inner(scope, receive, send)

    wrapped = Wrapped(app)
    answer = await wrapped.get()

    assert answer.status == (500 if submitted else 503)
    assert answer.headers["retry-after"] == "1"
    assert "x-should-retry" not in answer.headers, "the client may"
    if error is not None:
        assert answer.error()["retryable"]
        assert wrapped.instrumentation.endings == [(cause_of(error, submitted=submitted), 0)]


@pytest.mark.parametrize("known", [True, False], ids=["ours", "unforeseen"])
@in_virtual_time
async def test_a_failed_request_leaves_nothing_for_the_garbage_collector(known: bool) -> None:
    """Collections are rare, and its body may weigh 16 MiB."""

    class Body:
        """A large one."""

    bodies: list[weakref.ref[Body]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = Body()
        bodies.append(weakref.ref(body))
        parsing = asyncio.get_running_loop().create_future()
        parsing.set_exception(ValueError(body))
        try:
            await parsing
        except ValueError as error:
            # A frame that holds what failed is a cycle with the error that it raised.
            failed: Exception = ClientError("It is wrong.") if known else error
            raise failed from error

    gc.disable()
    try:
        await Wrapped(app).get()
        await asyncio.sleep(0)
        assert [body() for body in bodies] == [None]
    finally:
        gc.enable()
