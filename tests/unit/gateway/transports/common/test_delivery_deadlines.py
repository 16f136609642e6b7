"""Streams that end at their deadline, or at that of the drain."""

from __future__ import annotations

import pytest

from gateway.domain import Cause
from tests.support.harness import HttpHarness
from tests.support.time import clock, in_virtual_time, settle


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("queued", [True, False])
@in_virtual_time
async def test_a_deadline_before_the_first_byte_is_a_408_that_clients_do_not_retry(stream: bool, queued: bool) -> None:
    harness = HttpHarness(max_concurrent=1)
    held = await harness.gate.enter()
    client = harness.post(headers={"X-Request-Timeout": "5"}, stream=stream)
    await settle()
    if not queued:
        held.release()
        await settle()
        harness.engine.runs[0].prepared.stats.add_tokens(0 if stream else 4, None)
    await client.finish()
    held.release()
    words = "while it waited; nothing was generated" if queued else f"after {0 if stream else 4} completion tokens"

    assert (client.status, client.error()["code"]) == (408, "deadline_exceeded")
    assert client.headers["x-should-retry"] == "false"
    assert client.error()["message"] == f"The request passed its deadline of 5 s {words}."
    assert clock().now() == pytest.approx(1005, abs=1e-3)
    assert [one.aborts for one in harness.engine.runs] == ([] if queued else [1])
    assert harness.instrumentation.endings == [(Cause.DEADLINE_EXCEEDED, 0 if queued or stream else 4)]
    assert harness.at_rest


@in_virtual_time
async def test_a_deadline_in_the_middle_is_an_event_after_the_partial_output() -> None:
    harness = HttpHarness()
    client = harness.post(headers={"X-Request-Timeout": "5"})
    await settle()
    harness.engine.runs[0].put_text("Hel", 2)
    await client.finish()

    *_, text, error, done = client.events()
    assert text["choices"][0]["delta"]["content"] == "Hel"
    assert (error["error"]["code"], done, client.complete) == ("deadline_exceeded", "[DONE]", True)
    assert harness.instrumentation.endings == [(Cause.DEADLINE_EXCEEDED, 2)]


@in_virtual_time
async def test_at_the_drains_deadline_a_stream_ends_with_that_error() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    harness.engine.runs[0].put_text("a", 2)
    await settle()
    await harness.registry.drain(5)
    await client.finish()

    *_, error, done = client.events()
    assert (error["error"]["code"], error["error"]["retryable"], done) == ("server_draining", True, "[DONE]")
    assert harness.instrumentation.endings == [(Cause.SERVER_DRAINING, 2)]
