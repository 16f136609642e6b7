from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import orjson
import pytest

from gateway.asgi import read_body
from gateway.domain import Cause
from gateway.errors import ClientError, EngineFailed
from gateway.logs import ACCESS
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.transports.http.disconnect import DisconnectWatcher
from tests.support.asgi import Client
from tests.support.harness import CHAT, COMPLETION, HttpHarness
from tests.support.time import clock, in_virtual_time, settle


def said(client: Client) -> str:
    """The text that a client of a chat has read so far."""
    events = [event for event in client.events() if event != "[DONE]" and event.get("choices")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


@in_virtual_time
async def test_a_stream_is_sent_piece_by_piece_and_closed_by_done() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    run = harness.engine.runs[0]

    assert not client.started, "no status before the first piece: the request may still fail"

    run.put_text("Hel")
    await settle()

    assert (client.status, said(client)) == (200, "Hel")
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["x-stream-id"] == run.id
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", run.id), "an id that gives access must not be guessable"

    run.put_text("lo")
    await settle()
    run.end("!")
    await client.finish()

    assert client.complete
    assert said(client) == "Hello!"
    assert client.events()[-1] == "[DONE]"
    assert [len(body) > 0 for body in client.bodies] == [True] * 3, "one send for each wake-up"
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]
    assert harness.instrumentation.labels == [(CHAT, "completed")]
    assert harness.at_rest
    assert run.aborts == 0


@in_virtual_time
async def test_a_slow_reader_gets_everything_in_fewer_sends() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    run = harness.engine.runs[0]
    client.reading.clear()
    for number in range(10):
        run.put_text(f"{number} ")
        await settle()
    run.end("end")
    client.reading.set()
    await client.finish()

    assert said(client) == "0 1 2 3 4 5 6 7 8 9 end"
    assert len(client.bodies) == 2
    assert sum(harness.instrumentation.spared) == 8, "nine of ten texts went inside another, the ending by itself"
    *_, text, ending, done = client.events()
    assert text["choices"][0] | {"delta": {"content": "1 2 3 4 5 6 7 8 9 end"}} == text["choices"][0]
    assert ending["choices"][0]["delta"] == {"content": ""}
    assert (ending["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


@in_virtual_time
async def test_time_to_first_token_is_measured_from_arrival_once() -> None:
    harness = HttpHarness()
    client = harness.post()
    await asyncio.sleep(2)
    harness.engine.runs[0].put_text("a")
    await asyncio.sleep(1)
    harness.engine.runs[0].end("b")
    await client.finish()

    assert harness.instrumentation.first_tokens == [pytest.approx(2, abs=1e-3)]
    assert harness.instrumentation.gaps == [pytest.approx(1, abs=1e-3)]


@in_virtual_time
async def test_documents_of_the_engines_own_pass_through_as_events() -> None:
    harness = HttpHarness()
    client = harness.post(COMPLETION, formatted=True)
    await settle()
    harness.engine.runs[0].document(b'{"a":1}')
    harness.engine.runs[0].document(b'{"b":2}')
    harness.engine.runs[0].sink.finish()
    await client.finish()

    assert client.events() == [{"a": 1}, {"b": 2}, "[DONE]"]


@in_virtual_time
async def test_a_whole_answer_is_one_json_document() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await settle()
    harness.engine.runs[0].document(b'{"id":"chatcmpl-1"}', tokens=5)
    harness.engine.runs[0].sink.finish()
    await client.finish()

    assert (client.status, client.json()) == (200, {"id": "chatcmpl-1"})
    assert client.headers["content-length"] == str(len(client.body))
    assert client.headers["x-stream-id"] == harness.engine.runs[0].id
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]
    assert harness.at_rest


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


@in_virtual_time
async def test_an_error_midway_is_an_event_and_then_done() -> None:
    """Never a silent end, never finish_reason "abort": clients wait for `[DONE]`."""
    harness = HttpHarness()
    client = harness.post()
    await settle()
    harness.engine.runs[0].put_text("Hel", 2)
    await settle()
    harness.engine.runs[0].fail(EngineFailed("The engine died."))
    await client.finish()

    *_, error, done = client.events()
    assert (client.status, done, client.complete) == (200, "[DONE]", True)
    assert (error["error"]["code"], error["error"]["retryable"]) == ("engine_failed", True)
    assert harness.instrumentation.endings == [(Cause.ENGINE_FAILED, 2)]
    assert harness.at_rest


@in_virtual_time
async def test_a_failure_right_behind_the_first_piece_keeps_the_piece() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    harness.engine.runs[0].put_text("Hel")
    harness.engine.runs[0].fail(EngineFailed("The engine died."))
    await client.finish()

    assert [event if event == "[DONE]" else next(iter(event)) for event in client.events()] == [
        "id",
        "id",
        "error",
        "[DONE]",
    ]


@pytest.mark.parametrize("stream", [True, False])
@in_virtual_time
async def test_a_client_that_leaves_the_queue_makes_room(stream: bool) -> None:
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
async def test_closing_right_after_done_is_a_completion() -> None:
    """openai-python closes its socket as soon as it has read `[DONE]`, before the final chunk of the response."""
    harness = HttpHarness()
    client = harness.post()
    await settle()
    harness.engine.runs[0].put_text("a")
    await settle()
    client.reading.clear()
    harness.engine.runs[0].end("b")
    await settle()
    client.leave()
    await client.finish()

    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]
    assert harness.engine.runs[0].aborts == 0
    assert harness.at_rest


@in_virtual_time
async def test_an_answer_without_a_document_is_our_defect_and_never_an_empty_200() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await settle()
    harness.engine.runs[0].sink.finish()
    await client.finish()

    assert (client.status, client.error()["code"]) == (500, "internal_error")


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
async def test_reading_a_body_tells_when_the_client_has_gone() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert await read_body(receive) is None


@in_virtual_time
async def test_presence_lets_the_scopes_own_error_out() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ClientError):
        async with DisconnectWatcher(receive):
            raise ClientError("No.")


@in_virtual_time
async def test_presence_that_is_excused_lets_the_client_leave() -> None:
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async with DisconnectWatcher(receive) as presence:
        presence.disarm()
        gone.set()
        await settle()


@in_virtual_time
async def test_a_client_that_is_still_there_can_be_dropped_with_a_cause_even_when_it_is_excused() -> None:
    """The last write may be stuck, too."""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def hold(presence: DisconnectWatcher) -> None:
        async with presence:
            presence.disarm()
            await asyncio.Event().wait()

    presence = DisconnectWatcher(receive)
    task = asyncio.get_running_loop().create_task(hold(presence))
    await settle()
    presence.disconnect(Cause.CLIENT_STALLED)
    with pytest.raises(ClientDisconnected) as caught:
        await task

    assert caught.value.cause is Cause.CLIENT_STALLED


@in_virtual_time
async def test_what_is_received_besides_the_departure_is_passed_over() -> None:
    messages = [{"type": "http.request"}, {"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def stay() -> None:
        async with DisconnectWatcher(receive):
            await asyncio.Event().wait()

    with pytest.raises(ClientDisconnected):
        await stay()

    assert messages == []


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
async def test_tokens_that_add_no_text_are_no_reason_to_write() -> None:
    harness = HttpHarness()
    client = harness.post(COMPLETION, formatted=True)
    await settle()
    for _ in range(5):
        harness.engine.runs[0].put_text("")
        await settle()

    assert not client.started

    harness.engine.runs[0].document(b"{}")
    harness.engine.runs[0].finish()
    await client.finish()

    assert client.body == b"data: {}\n\ndata: [DONE]\n\n"


@in_virtual_time
async def test_many_clients_at_once_keep_their_texts_apart_and_leave_no_seat_taken() -> None:
    harness = HttpHarness(max_concurrent=3, max_waiting=50)
    clients = [harness.post(number=number) for number in range(20)]
    served = 0
    while served < len(clients):
        await settle()
        for run in harness.engine.runs[served:]:
            served += 1
            number = run.prepared.call.document["number"]
            if number % 5 == 4:
                clients[number].leave()
            else:
                run.put_text(f"I am {number}")
                run.end(".")

        assert harness.gate.slots_taken <= 3

    await asyncio.gather(*(client.finish() for client in clients))

    assert harness.at_rest
    for number, client in enumerate(clients):
        assert number % 5 == 4 or said(client) == f"I am {number}."
    assert (
        sorted(cause.value for cause, _ in harness.instrumentation.endings) == ["completed"] * 16 + ["disconnected"] * 4
    )


@in_virtual_time
async def test_the_body_of_a_request_that_is_not_json_is_a_400() -> None:
    harness = HttpHarness()
    client = await harness.request("POST", CHAT, body=b"{").finish()

    assert (client.status, client.error()["type"]) == (400, "invalid_request_error")
    assert orjson.loads(client.body)["error"]["retryable"] is False


@in_virtual_time
async def test_the_log_line_of_a_stream_tells_its_course_and_nothing_of_its_text(
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
