from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from gateway.domain import Cause
from gateway.errors import EngineFailed
from gateway.protocols.base import Framing
from gateway.transports.http.middleware import EXCHANGE, Exchange
from gateway.transports.http.stream_endpoints import StreamEndpoint
from tests.support.asgi import Client
from tests.support.harness import CHAT, COMPLETION, HttpHarness, PlainProtocol
from tests.support.instrumentation import some_stats
from tests.support.time import in_virtual_time, settle


def streamed_text(client: Client) -> str:
    """The text that a client of a chat has read so far."""
    events = [event for event in client.events() if event != "[DONE]" and event.get("choices")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


@in_virtual_time
async def test_a_stream_is_sent_part_by_part_and_ends_with_done() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    run = harness.engine.runs[0]

    assert not client.started, "no status before the first piece: the request may still fail"

    run.put_text("Hel")
    await settle()

    assert (client.status, streamed_text(client)) == (200, "Hel")
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["x-stream-id"] == run.id
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", run.id), "an id that gives access must not be guessable"

    run.put_text("lo")
    await settle()
    run.end("!")
    await client.finish()

    assert client.complete
    assert streamed_text(client) == "Hello!"
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

    assert streamed_text(client) == "0 1 2 3 4 5 6 7 8 9 end"
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
async def test_documents_that_the_engine_formats_pass_through_as_events() -> None:
    harness = HttpHarness()
    client = harness.post(COMPLETION, formatted=True)
    await settle()
    harness.engine.runs[0].document(b'{"a":1}')
    harness.engine.runs[0].document(b'{"b":2}')
    harness.engine.runs[0].sink.finish()
    await client.finish()

    assert client.events() == [{"a": 1}, {"b": 2}, "[DONE]"]


@in_virtual_time
async def test_an_error_midway_is_an_event_followed_by_done() -> None:
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
async def test_a_failure_right_after_the_first_part_keeps_the_part() -> None:
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
async def test_tokens_without_text_cause_no_write() -> None:
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
async def test_many_clients_at_once_keep_their_texts_apart_and_leave_no_slot_taken() -> None:
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
        assert number % 5 == 4 or streamed_text(client) == f"I am {number}."
    assert (
        sorted(cause.value for cause, _ in harness.instrumentation.endings) == ["completed"] * 16 + ["disconnected"] * 4
    )


class NamedEvents(PlainProtocol):
    """A protocol whose clients count events, as Anthropic's do."""

    ping = b'{"type":"ping"}'

    def framing(self, *, is_numbered: bool) -> Framing:
        return lambda documents, first: b"".join([b"event: any\ndata: %b\n\n" % document for document in documents])


@in_virtual_time
async def test_a_stream_has_the_events_pings_and_end_of_its_protocol() -> None:
    """A protocol needs nothing of streams or transports beside its path."""
    harness = HttpHarness(keepalive_s=15)
    endpoint = StreamEndpoint("/v1/any", NamedEvents(), harness.starter, harness.responder, harness.clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        stats = some_stats(harness.instrumentation, arrival_s=harness.clock.now())
        scope[EXCHANGE] = Exchange(stats.caller, stats, "/v1/any", "POST")
        await endpoint(scope, receive, send)

    client = Client(app, "POST", "/v1/any", body=b'{"stream": true}', direct_sink=True)
    await settle()
    harness.engine.runs[0].put_text("a")
    await asyncio.sleep(16)
    harness.engine.runs[0].put_text("b")
    harness.engine.runs[0].end("c")
    await client.finish()

    documents = [b"<a>", NamedEvents.ping, b"<b>", b"<c>", b"end"]
    assert client.body == b"".join([b"event: any\ndata: %b\n\n" % document for document in documents])
