from __future__ import annotations

import asyncio
import logging

import orjson
import pytest

from gateway.domain import Cause
from gateway.errors import ClientError, EngineFailed
from gateway.logs import ACCESS
from tests.support.harness import CHAT, HttpHarness
from tests.support.time import clock, in_virtual_time, settle


@pytest.mark.parametrize("stream", [True, False])
@in_virtual_time
async def test_an_error_before_the_first_piece_is_a_real_status(stream: bool) -> None:
    harness = HttpHarness()
    client = harness.post(stream=stream)
    await settle()
    harness.engine.runs[0].fail(EngineFailed("The engine gave up.", retry_after_s=3))
    await client.finish()

    # Not 503: proxies would have it generated again elsewhere.
    assert (client.status, client.headers["retry-after"]) == (500, "3")
    assert "x-should-retry" not in client.headers
    assert client.error() == {
        "message": "The engine gave up.",
        "type": "server_error",
        "code": "engine_failed",
        "param": None,
        "retryable": True,
        "resumable": False,
    }
    assert harness.instrumentation.endings == [(Cause.ENGINE_FAILED, 0)]
    assert harness.at_rest


@pytest.mark.parametrize("stage", ["prepare_error", "submit_error"])
@in_virtual_time
async def test_a_request_that_cannot_be_served_is_a_real_status(stage: str) -> None:
    harness = HttpHarness()
    setattr(harness.engine, stage, ClientError("max_tokens is too large.", param="max_tokens"))
    client = await harness.post().finish()

    assert (client.status, client.error()["param"]) == (400, "max_tokens")
    assert harness.instrumentation.endings == [(Cause.REJECTED, 0)]
    assert harness.at_rest


@pytest.mark.parametrize("stream", [True, False])
@in_virtual_time
async def test_a_client_that_leaves_the_queue_frees_its_place(stream: bool) -> None:
    harness = HttpHarness(max_concurrent=1)
    held = await harness.gate.enter()
    client = harness.post(stream=stream)
    await settle()

    assert harness.gate.queued == 1

    client.leave()
    await client.finish()

    assert harness.gate.queued == 0
    assert harness.engine.runs == []
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]

    held.release()


@pytest.mark.parametrize("stage", ["prepare_hold", "submit_hold"])
@in_virtual_time
async def test_a_client_that_leaves_before_the_engine_answers_leaves_nothing_behind(stage: str) -> None:
    harness = HttpHarness()
    setattr(harness.engine, stage, asyncio.Event())
    client = harness.post()
    await settle()
    client.leave()
    await client.finish()

    assert harness.at_rest
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tokens", [0, 3])
@in_virtual_time
async def test_a_client_that_leaves_a_running_request_aborts_it_at_once(stream: bool, tokens: int) -> None:
    """Before the first token, mid-stream, and while a whole answer is made; what was generated is counted as waste."""
    harness = HttpHarness()
    client = harness.post(stream=stream, n=1 if stream else 2)
    await settle()
    run = harness.engine.runs[0]
    if tokens and stream:
        run.put_text("abc", tokens)
        await settle()
    elif tokens:
        run.prepared.stats.add_tokens(tokens, None)
    began = clock().now()
    client.leave()
    await client.finish()

    assert clock().now() == began, "no timer stands between leaving and aborting"
    assert run.aborts == 1
    assert harness.at_rest
    assert not client.complete
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, tokens)]
    assert harness.instrumentation.labels[0][1] == "disconnected"

    run.put_text("late")
    run.end("later")

    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, tokens)]


@in_virtual_time
async def test_a_client_that_stops_reading_and_leaves_is_noticed() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    client.reading.clear()
    harness.engine.runs[0].put_text("a")
    await settle()
    client.leave()
    await client.finish()

    assert harness.engine.runs[0].aborts == 1
    assert harness.at_rest


@in_virtual_time
async def test_a_cancelled_server_task_stays_cancelled() -> None:
    """uvicorn cancels its tasks at a forced shutdown; that is not a client that left."""
    harness = HttpHarness()
    client = harness.post()
    await settle()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.finish()

    assert harness.engine.runs[0].aborts == 1
    assert harness.at_rest


@in_virtual_time
async def test_a_body_in_parts_is_put_together() -> None:
    harness = HttpHarness()
    client = harness.request("POST", CHAT, body=[b'{"str', b'eam": ', b"true}"])
    await settle()
    harness.engine.runs[0].end("x")
    await client.finish()

    assert harness.engine.bodies == [b'{"stream": true}']
    assert client.status == 200


@in_virtual_time
async def test_a_client_that_leaves_before_its_body_is_complete_is_not_parsed() -> None:
    harness = HttpHarness()
    client = harness.request("POST", CHAT, body=b'{"stream"', unfinished=True)
    await settle()
    client.leave()
    await client.finish()

    assert harness.engine.bodies == []
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]


@in_virtual_time
async def test_a_client_that_left_before_its_stream_was_opened_is_found_with_it() -> None:
    harness = HttpHarness()
    client = harness.post()
    client.gone.set()
    client._parts.clear()
    await client.finish()
    other = harness.post()
    await asyncio.sleep(0)
    other.leave()
    await other.finish()

    assert harness.at_rest
    assert [cause for cause, _ in harness.instrumentation.endings] == [Cause.DISCONNECTED] * 2


@in_virtual_time
async def test_the_body_of_a_request_that_is_not_json_is_a_400() -> None:
    harness = HttpHarness()
    client = await harness.request("POST", CHAT, body=b"{").finish()

    assert (client.status, client.error()["type"]) == (400, "invalid_request_error")
    assert orjson.loads(client.body)["error"]["retryable"] is False


@in_virtual_time
async def test_the_log_line_of_a_stream_has_its_course_and_none_of_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    harness = HttpHarness(max_concurrent=1)
    held = await harness.gate.enter()
    client = harness.post(messages=[{"role": "user", "content": "my diagnosis"}], headers={"X-Request-Id": "req-7"})
    await asyncio.sleep(1)
    held.release()
    await asyncio.sleep(2)
    harness.engine.runs[0].put_text("a grave illness", 3)
    await asyncio.sleep(3)
    harness.engine.runs[0].end()
    await client.finish()
    line = next(record for record in caplog.records if record.name == ACCESS.name)

    assert line.fields == {  # type: ignore[attr-defined]
        "id": harness.engine.runs[0].id,
        "request_id": "req-7",
        "path": CHAT,
        "model": "scripted",
        "status": 200,
        "cause": "completed",
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "queue_s": pytest.approx(1, abs=1e-3),
        "ttft_s": pytest.approx(3, abs=1e-3),
        "duration_s": pytest.approx(6, abs=1e-3),
        "owner": None,
    }
    everything = repr([vars(record) for record in caplog.records])
    assert "diagnosis" not in everything
    assert "illness" not in everything
