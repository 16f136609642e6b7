from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.domain import Cause, Delta
from gateway.transports.common import accounting
from tests.support.asgi import Client
from tests.support.harness import CHAT, HttpHarness
from tests.support.time import clock, in_virtual_time, settle

RESUMABLE = {"X-Stream-Resumable": "60"}
SHAPES = pytest.mark.parametrize("headers", [{}, RESUMABLE])
COMMENT = b": keep-alive\n"


def streamed_text(client: Client) -> str:
    """The text of a stream so far."""
    chunks = [event for event in client.events() if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def post_and_generate(harness: HttpHarness, **options: Any) -> Client:
    """A stream that has delivered its first token."""
    client = harness.post(**options)
    await settle()
    harness.engine.runs[0].put_text("a")
    await settle()
    return client


@SHAPES
@in_virtual_time
async def test_silence_in_the_queue_in_prefill_and_between_tokens_is_filled(headers: dict[str, str]) -> None:
    harness = HttpHarness(max_concurrent=1)
    held = await harness.gate.enter()
    client = harness.post(headers=headers)
    await asyncio.sleep(14.9)

    assert not client.started, "a request may still fail with a status of its own"

    await asyncio.sleep(0.2)

    assert (client.status, client.body) == (200, COMMENT)

    held.release()
    await asyncio.sleep(15)

    assert client.body == COMMENT * 2

    harness.engine.runs[0].put_text("a")
    await settle()
    before = client.body
    await asyncio.sleep(14.9)

    assert client.body == before, "silence counts from the last byte"

    await asyncio.sleep(15.2)

    assert client.body == before + COMMENT * 2

    harness.engine.runs[0].end("b")
    await client.finish()

    assert client.events()[-1] == "[DONE]"
    assert client.body.endswith(b"\n\n")


@SHAPES
@in_virtual_time
async def test_silence_while_the_engine_is_restarted_is_filled(headers: dict[str, str]) -> None:
    harness = HttpHarness()
    client = await post_and_generate(harness, headers=headers)
    harness.registry.on_engine_lost()
    before = client.body
    await asyncio.sleep(46)

    assert client.body == before + COMMENT * 3

    harness.registry.on_engine_recovered()
    harness.engine.runs[0].end("b")
    await client.finish()

    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@pytest.mark.parametrize("began_s", [0.1 * number for number in range(20)])
@in_virtual_time
async def test_rounding_does_not_make_the_timer_run_for_ever(began_s: float) -> None:
    """Seconds do not add up exactly: `(t + 0.3) - t` may be less than 0.3."""
    harness = HttpHarness(keepalive_s=0.3, stall_timeout_s=0.7)
    await asyncio.sleep(began_s)
    client = harness.post()
    await asyncio.sleep(1)

    assert client.comments == 3

    client.reading.clear()
    await client.finish()

    assert harness.instrumentation.endings == [(Cause.CLIENT_STALLED, 0)]


@in_virtual_time
async def test_a_stream_with_output_gets_no_keepalives() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    for _ in range(20):
        await asyncio.sleep(14)
        harness.engine.runs[0].put_text("a")
    harness.engine.runs[0].end()
    await client.finish()

    assert client.comments == 0


@in_virtual_time
async def test_a_whole_answer_cannot_be_kept_alive_by_comments() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await asyncio.sleep(100)

    assert not client.started

    harness.engine.runs[0].document(b"{}")
    harness.engine.runs[0].finish()
    await client.finish()

    assert client.body == b"{}"


@SHAPES
@in_virtual_time
async def test_a_failure_after_a_keepalive_is_an_event_of_the_stream(headers: dict[str, str]) -> None:
    """The 200 is out; the client must not wait for an answer that will not come."""
    harness = HttpHarness(max_concurrent=1, queue_timeout_s=20)
    held = await harness.gate.enter()
    client = await harness.post(headers=headers).finish()
    held.release()

    assert (client.status, client.comments) == (200, 1)
    error, done = client.events()
    assert (error["error"]["code"], error["error"]["retryable"], done) == ("overloaded", True, "[DONE]")
    assert harness.instrumentation.endings == [(Cause.OVERLOADED, 0)]
    assert harness.at_rest


@pytest.mark.parametrize("when", ["middle", "end"])
@in_virtual_time
async def test_a_client_that_stops_reading_is_dropped_when_its_time_is_up(when: str) -> None:
    harness = HttpHarness(stall_timeout_s=30)
    client = harness.post(direct_sink=True)
    await asyncio.sleep(7)
    engine_run = harness.engine.runs[0]
    engine_run.put_text("a", 2)
    await settle()
    client.reading.clear()
    engine_run.put_text("b", 3)
    if when == "end":
        engine_run.end("c")
    began = clock().now()
    await asyncio.sleep(29.9)
    if when == "middle":
        engine_run.put_text("more")

    assert (client.broken, client.task.done()) == (False, False)

    await client.finish()

    assert client.broken, "closing politely would wait for the client to read"
    assert clock().now() == pytest.approx(began + 30, abs=1e-3)
    assert engine_run.aborts == (1 if when == "middle" else 0)
    assert harness.at_rest
    assert [cause for cause, _ in harness.instrumentation.endings] == [Cause.CLIENT_STALLED]
    assert harness.instrumentation.labels == [(CHAT, "client_stalled")]


@in_virtual_time
async def test_a_stalled_client_without_a_direct_sink_is_dropped_too() -> None:
    harness = HttpHarness(stall_timeout_s=30)
    client = harness.post()
    await settle()
    client.reading.clear()
    harness.engine.runs[0].put_text("a")
    await asyncio.wait_for(client.finish(), 31)

    assert harness.instrumentation.endings == [(Cause.CLIENT_STALLED, 1)]


@in_virtual_time
async def test_a_slow_client_is_no_stalled_one() -> None:
    harness = HttpHarness(stall_timeout_s=30)
    client = harness.post()
    await settle()
    for _ in range(5):
        client.reading.clear()
        harness.engine.runs[0].put_text("a")
        await asyncio.sleep(29)
        client.reading.set()
        await settle()
    harness.engine.runs[0].end()
    await client.finish()

    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@in_virtual_time
async def test_one_stalled_client_slows_no_other() -> None:
    harness = HttpHarness()
    stalled, healthy = harness.post(), harness.post()
    await settle()
    stalled.reading.clear()
    for number in range(20):
        for engine_run in harness.engine.runs:
            engine_run.put_text(f"{number} ")
        await settle()

        assert len(healthy.bodies) == number + 1
    for engine_run in harness.engine.runs:
        engine_run.end()
    await healthy.finish()

    assert clock().now() == pytest.approx(1000, abs=1e-3)

    stalled.leave()
    await stalled.finish()


@in_virtual_time
async def test_a_resumable_stream_drops_its_stalled_client_and_goes_on() -> None:
    harness = HttpHarness(stall_timeout_s=30)
    client = harness.post(headers=RESUMABLE, direct_sink=True)
    await settle()
    client.reading.clear()
    engine_run = harness.engine.runs[0]
    engine_run.put_text("a")
    await client.finish()

    assert (client.broken, engine_run.aborts, harness.instrumentation.endings) == (True, 0, [])
    assert harness.instrumentation.labels == [(CHAT, accounting.DETACHED)]

    engine_run.end("b")
    back = await harness.resume(engine_run.id).finish()

    assert back.events()[-1] == "[DONE]"
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]
    assert harness.instrumentation.resumes == ["ok"]


@SHAPES
@in_virtual_time
async def test_the_middle_of_a_stream_is_delivered_directly_and_its_start_and_end_are_not(
    headers: dict[str, str],
) -> None:
    harness = HttpHarness(keepalive_s=15)
    client = harness.post(headers=headers, direct_sink=True)
    await settle()
    engine_run = harness.engine.runs[0]
    for text in ("a", "b", "c"):
        engine_run.put_text(text)
        await settle()

    assert client.written == 2, "the first token carries the status line with it"

    client.reading.clear()
    engine_run.put_text("d")
    await settle()

    assert client.written == 2

    client.reading.set()
    await asyncio.sleep(14)
    engine_run.put_text("e")
    await asyncio.sleep(14)

    assert (client.written, client.comments) == (3, 0), "what takes the line is a sign of life"

    await asyncio.sleep(2)

    assert client.comments == 1

    engine_run.end("f")
    await client.finish()

    assert client.written == 3
    assert streamed_text(client) == "abcdef"
    assert [number for number, _ in client.numbered() if number] == (list(range(1, 9)) if headers else [])
    assert harness.at_rest


@in_virtual_time
async def test_output_of_one_turn_is_delivered_together() -> None:
    harness = HttpHarness()
    client = await post_and_generate(harness, direct_sink=True)
    engine_run = harness.engine.runs[0]
    for text in "bcd":
        engine_run.sink.put(Delta(text, 1))
    await settle()

    assert client.written == 1

    engine_run.end()
    await client.finish()

    assert streamed_text(client) == "abcd"


@in_virtual_time
async def test_nothing_is_written_for_a_client_that_left_in_the_same_turn() -> None:
    harness = HttpHarness()
    client = await post_and_generate(harness, direct_sink=True)
    engine_run = harness.engine.runs[0]
    client.leave()
    engine_run.put_text("b")
    await client.finish()

    assert client.written == 0
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 2)]


@in_virtual_time
async def test_a_resumable_stream_keeps_its_deadline_without_readers() -> None:
    harness = HttpHarness()
    client = await post_and_generate(harness, headers={**RESUMABLE, "X-Request-Timeout": "5"})
    client.leave()
    await client.finish()
    await asyncio.sleep(6)

    assert harness.instrumentation.endings == [(Cause.DEADLINE_EXCEEDED, 1)]


@in_virtual_time
async def test_time_to_first_token_is_measured_at_the_first_reader() -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await asyncio.sleep(20)
    harness.engine.runs[0].put_text("a")
    await settle()
    back = harness.resume(harness.engine.runs[0].id)
    await settle()
    harness.engine.runs[0].end("b")
    await client.finish()
    await back.finish()

    assert harness.instrumentation.first_tokens == [pytest.approx(20, abs=1e-3)], (
        "neither a comment nor a second reader counts"
    )
