"""What a stream's client sees of silence, stalls, deadlines, cuts and returns, from the socket's side of everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway import asgi
from gateway.domain import Cause, Delta
from gateway.engine.base import Route
from gateway.engine.supervisor import Phase
from gateway.errors import EngineFailed, Overloaded
from gateway.transports.common import accounting
from gateway.transports.http import connection
from tests.support.asgi import Client, read_events
from tests.support.engine import Run
from tests.support.harness import CHAT, HTTP_LIMITS, HttpHarness, key_line
from tests.support.time import clock, in_virtual_time, run, settle

RESUMABLE = {"X-Stream-Resumable": "60"}
SHAPES = pytest.mark.parametrize("headers", [{}, RESUMABLE])
COMMENT = b": keep-alive\n"


def said(client: Client) -> str:
    """The text of a stream so far."""
    chunks = [event for event in client.events() if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# Silence.


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
    client = harness.post(headers=headers)
    await settle()
    harness.engine.runs[0].put_text("a")
    await settle()
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
async def test_rounding_does_not_make_the_pulse_turn_for_ever(began_s: float) -> None:
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
async def test_a_stream_that_speaks_is_sent_no_comments() -> None:
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
async def test_a_failure_after_a_sign_of_life_is_told_in_the_stream(headers: dict[str, str]) -> None:
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


# Stalls.


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
async def test_a_stalled_client_without_a_way_to_break_its_connection_is_dropped_too() -> None:
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
async def test_one_stalled_client_slows_nobody_else() -> None:
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


def test_the_server_and_the_edge_agree_on_where_the_connection_is_found() -> None:
    assert connection.DIRECT_SINK == asgi.DIRECT_SINK


# Past ASGI.


@SHAPES
@in_virtual_time
async def test_the_middle_of_a_stream_takes_the_line_and_its_start_and_end_do_not(headers: dict[str, str]) -> None:
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
    assert said(client) == "abcdef"
    assert [number for number, _ in client.numbered() if number] == (list(range(1, 9)) if headers else [])
    assert harness.at_rest


@in_virtual_time
async def test_what_is_said_in_one_turn_takes_the_line_together() -> None:
    harness = HttpHarness()
    client = harness.post(direct_sink=True)
    await settle()
    engine_run = harness.engine.runs[0]
    engine_run.put_text("a")
    await settle()
    for text in "bcd":
        engine_run.sink.put(Delta(text, 1))
    await settle()

    assert client.written == 1

    engine_run.end()
    await client.finish()

    assert said(client) == "abcd"


@in_virtual_time
async def test_nothing_is_written_for_a_client_who_left_in_the_same_turn() -> None:
    harness = HttpHarness()
    client = harness.post(direct_sink=True)
    await settle()
    engine_run = harness.engine.runs[0]
    engine_run.put_text("a")
    await settle()
    client.leave()
    engine_run.put_text("b")
    await client.finish()

    assert client.written == 0
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 2)]


# Deadlines.


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("queued", [True, False])
@in_virtual_time
async def test_a_deadline_before_the_first_byte_is_a_408_that_nobody_retries(stream: bool, queued: bool) -> None:
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


@pytest.mark.parametrize("name", ["X-Request-Timeout", "X-Stream-Resumable"])
@in_virtual_time
async def test_a_header_that_is_no_number_is_a_400_that_names_it(name: str) -> None:
    harness = HttpHarness()
    client = await harness.post(headers={name: "soon"}).finish()

    assert (client.status, client.error()["param"]) == (400, name)
    assert harness.engine.bodies == []


@in_virtual_time
async def test_a_resumable_stream_keeps_its_deadline_while_nobody_reads() -> None:
    harness = HttpHarness()
    client = harness.post(headers={**RESUMABLE, "X-Request-Timeout": "5"})
    await settle()
    harness.engine.runs[0].put_text("a")
    await settle()
    client.leave()
    await client.finish()
    await asyncio.sleep(6)

    assert harness.instrumentation.endings == [(Cause.DEADLINE_EXCEEDED, 1)]


# Coming back.


@pytest.mark.parametrize(("asked", "granted"), [("60", "60"), ("2.5", "2.5"), ("1e9", "600"), ("0", "0")])
@in_virtual_time
async def test_the_grace_is_echoed_as_it_is_granted(asked: str, granted: str) -> None:
    harness = HttpHarness()
    client = harness.post(headers={"X-Stream-Resumable": asked})
    await settle()
    harness.engine.runs[0].end("a")
    await client.finish()

    assert client.headers["x-stream-resumable"] == granted
    assert [number for number, _ in client.numbered()] == [1, 2, 3]


@in_virtual_time
async def test_plain_streams_have_neither_numbers_nor_that_header() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    harness.engine.runs[0].end("a")
    await client.finish()

    assert "x-stream-resumable" not in client.headers
    assert {number for number, _ in client.numbered()} == {None}


Play = Callable[[Run], list[Callable[[], object]]]


def plain(engine_run: Run) -> list[Callable[[], object]]:
    """Text, with an emoji to cut in two, and a token that adds none."""
    return [
        lambda: engine_run.put_text("Hel"),
        lambda: engine_run.put_text(""),
        lambda: engine_run.put_text("lo \N{GRINNING FACE}\n\n"),
        lambda: engine_run.end("!"),
    ]


def formatted(engine_run: Run) -> list[Callable[[], object]]:
    """Chunks that vLLM has formatted."""
    return [
        lambda: engine_run.document(b'{"a":"data: x"}'),
        lambda: engine_run.document('{"b":"\N{GRINNING FACE}"}'.encode()),
        engine_run.finish,
    ]


def failing(engine_run: Run) -> list[Callable[[], object]]:
    """An error in the middle."""
    return [
        lambda: engine_run.put_text("Hel"),
        lambda: engine_run.fail(EngineFailed("The engine died.")),
    ]


def failing_silently(engine_run: Run) -> list[Callable[[], object]]:
    """An error after nothing but a sign of life."""
    return [lambda: engine_run.fail(Overloaded("Full."))]


PLAYS = pytest.mark.parametrize("play", [plain, formatted, failing, failing_silently])


def seen(body: bytes) -> tuple[bytes, int]:
    """What a reader keeps of a body that was cut: its whole events, and the number of the last of them."""
    whole = body[: body.rfind(b"\n\n") + 2] if b"\n\n" in body else b""
    return whole, max((number or 0 for number, _ in read_events(whole)), default=0)


@PLAYS
def test_a_stream_cut_at_every_byte_and_resumed_is_byte_for_byte_the_uncut_one(play: Play) -> None:
    """Both while the stream is still running and after its end."""

    async def cut_everywhere() -> None:
        harness = HttpHarness(keepalive_s=10)
        client = harness.post(headers=RESUMABLE, formatted=play is formatted)
        await asyncio.sleep(11)
        engine_run = harness.engine.runs[0]
        resumed: list[tuple[bytes, Client]] = []

        def resume_everywhere(body: bytes) -> None:
            known = {whole for whole, _ in resumed}
            for cut in range(len(body) + 1):
                whole, last = seen(body[:cut])
                if whole not in known:
                    known.add(whole)
                    resumed.append((whole, harness.resume(engine_run.id, last)))

        for act in play(engine_run):
            resume_everywhere(client.body)
            act()
            await settle()
        await client.finish()
        uncut = client.body.removeprefix(b": keep-alive\n")
        for cut in range(len(uncut) + 1):
            whole, last = seen(uncut[:cut])
            back = await harness.resume(engine_run.id, last).finish()

            assert whole + back.body == uncut, f"cut at byte {cut}, after event {last}"
            assert (back.status, back.complete) == ((204 if whole == uncut else 200), True)

        for whole, back in resumed:
            await back.finish()

            assert whole.removeprefix(b": keep-alive\n") + back.body == uncut

        assert [document for _, document in read_events(uncut)][-1] == "[DONE]"
        assert [number for number, _ in read_events(uncut)] == list(range(1, uncut.count(b"\n\n") + 1))

    run(cut_everywhere(), debug=False)


@in_virtual_time
async def test_two_readers_at_once_read_the_same_and_one_that_leaves_does_not_end_it() -> None:
    harness = HttpHarness()
    first = harness.post(headers=RESUMABLE)
    await settle()
    engine_run = harness.engine.runs[0]
    engine_run.put_text("a")
    await settle()
    second, third = harness.resume(engine_run.id), harness.resume(engine_run.id, 2)
    await settle()
    engine_run.put_text("b")
    await settle()
    first.leave()
    await first.finish()
    engine_run.end("c")
    for client in (second, third):
        await client.finish()

    assert second.body.startswith(first.body)
    assert second.body.endswith(third.body)
    assert [number for number, _ in second.numbered()] == [1, 2, 3, 4, 5]
    assert [number for number, _ in third.numbered()] == [3, 4, 5]
    assert harness.instrumentation.resumes == ["ok", "ok"]
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]
    assert sorted(harness.instrumentation.labels) == [(CHAT, "detached"), *[("/v1/streams/{stream_id}", "ok")] * 2]


@in_virtual_time
async def test_a_reader_may_come_back_by_the_query_too() -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].end("a")
    await client.finish()
    path = f"/v1/streams/{harness.engine.runs[0].id}"
    by_query = await harness.request("GET", f"{path}?starting_after=2").finish()
    by_both = await harness.request("GET", f"{path}?starting_after=2", headers={"Last-Event-ID": "1"}).finish()

    assert [number for number, _ in by_query.numbered()] == [3]
    assert [number for number, _ in by_both.numbered()] == [2, 3], "an EventSource that reconnects sends both"


@in_virtual_time
async def test_a_defect_met_by_somebody_who_comes_back_is_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret reason")

    harness = HttpHarness()
    monkeypatch.setattr(harness.registry, "find", broken)
    back = await harness.resume("chatcmpl-1").finish()

    assert (back.status, harness.instrumentation.resumes) == (500, ["internal_error"])


@in_virtual_time
async def test_a_reader_that_has_read_everything_is_told_to_stop() -> None:
    """204 is what stops an EventSource."""
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].end("a")
    await client.finish()
    back = await harness.resume(harness.engine.runs[0].id, 3).finish()

    assert (back.status, back.body) == (204, b"")
    assert harness.instrumentation.resumes == ["read_out"]


@pytest.mark.parametrize("last", ["4", "99", "x", "-1"])
@in_virtual_time
async def test_a_wrong_cursor_is_a_400_that_names_it(last: str) -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].end("a")
    await client.finish()
    path = f"/v1/streams/{harness.engine.runs[0].id}"
    back = await harness.request("GET", path, headers={"Last-Event-ID": last}).finish()

    assert (back.status, back.error()["param"]) == (400, "Last-Event-ID")
    assert harness.instrumentation.resumes == ["invalid_request"]


@in_virtual_time
async def test_streams_that_are_not_there_are_404_and_those_that_were_410() -> None:
    harness = HttpHarness()
    client, not_resumable = harness.post(headers=RESUMABLE), harness.post()
    await settle()
    kept, other = harness.engine.runs
    plain_one = await harness.resume(other.id).finish()
    unknown = await harness.resume("chatcmpl-unknown").finish()
    for engine_run in harness.engine.runs:
        engine_run.end("a")
    await client.finish()
    await not_resumable.finish()
    await asyncio.sleep(121)
    gone = await harness.resume(kept.id, 1).finish()

    assert [answer.status for answer in (plain_one, unknown, gone)] == [404, 404, 410]
    assert gone.error()["code"] == "expired"
    assert harness.instrumentation.resumes == ["not_found", "not_found", "expired"]
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)] * 2, "coming back ends nothing"


@in_virtual_time
async def test_events_that_passed_the_streams_limit_are_a_410() -> None:
    harness = HttpHarness(limits=replace(HTTP_LIMITS, max_bytes=4096))
    client = harness.post(headers=RESUMABLE)
    await settle()
    for _ in range(50):
        harness.engine.runs[0].put_text("x" * 100)
        await settle()
    back = await harness.resume(harness.engine.runs[0].id, 3).finish()

    assert (back.status, back.error()["code"]) == (410, "expired")

    harness.engine.runs[0].end()
    await client.finish()

    assert [number for number, _ in client.numbered()] == list(range(1, 54))


@in_virtual_time
async def test_a_reader_that_falls_behind_the_limit_is_cut_off_so_that_it_notices() -> None:
    harness = HttpHarness(limits=replace(HTTP_LIMITS, max_bytes=4096))
    slow, fast = harness.post(headers=RESUMABLE), None
    await settle()
    engine_run = harness.engine.runs[0]
    engine_run.put_text("a")
    await settle()
    fast = harness.resume(engine_run.id)
    slow.reading.clear()
    for _ in range(50):
        engine_run.put_text("x" * 100)
        await settle()
    slow.reading.set()
    await slow.finish()

    assert not slow.complete

    engine_run.end()
    await fast.finish()

    assert fast.events()[-1] == "[DONE]"
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@in_virtual_time
async def test_a_stream_that_nobody_comes_back_for_is_cancelled_after_its_grace() -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].put_text("a", 5)
    await settle()
    client.leave()
    await client.finish()
    await asyncio.sleep(59)

    assert harness.engine.runs[0].aborts == 0

    await asyncio.sleep(2)

    assert harness.engine.runs[0].aborts == 1
    assert harness.instrumentation.endings == [(Cause.CANCELLED, 5)]
    assert harness.at_rest

    back = await harness.resume(harness.engine.runs[0].id, 2).finish()
    error, done = back.events()
    assert (error["error"]["code"], done) == ("cancelled", "[DONE]")


@in_virtual_time
async def test_a_reader_who_comes_back_and_leaves_again_is_no_failure() -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].put_text("a")
    await settle()
    client.leave()
    await client.finish()
    back = harness.resume(harness.engine.runs[0].id, 2)
    await settle()
    back.leave()
    await back.finish()
    await asyncio.sleep(59)
    harness.engine.runs[0].end()

    assert harness.instrumentation.resumes == ["ok"]
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@in_virtual_time
async def test_a_resumable_stream_is_cancelled_by_its_id_and_its_readers_hear_so() -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].put_text("a", 2)
    await settle()
    stream_id = harness.engine.runs[0].id
    answers = [await harness.request("DELETE", f"/v1/streams/{stream_id}").finish() for _ in range(2)]
    await client.finish()

    assert [answer.json() for answer in answers] == [
        {
            "id": stream_id,
            "status": "cancelled",
            "resumable": True,
            "events": 4,
            "prompt_tokens": 7,
            "completion_tokens": 2,
        }
    ] * 2
    assert client.events()[-2]["error"]["code"] == "cancelled"
    assert harness.instrumentation.endings == [(Cause.CANCELLED, 2)]
    assert harness.at_rest


@pytest.mark.parametrize(
    ("accept", "is_status"),
    [
        ("application/json", True),
        ("text/html, application/json;q=0.9", True),
        ("text/event-stream", False),
        ("*/*", False),
        (None, False),
        ("application/json, text/event-stream", False),
    ],
)
@in_virtual_time
async def test_who_accepts_json_gets_the_status_instead(accept: str | None, is_status: bool) -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    harness.engine.runs[0].end("a")
    await client.finish()
    headers = {} if accept is None else {"Accept": accept}
    back = await harness.resume(harness.engine.runs[0].id, headers=headers).finish()

    assert back.status == 200
    if is_status:
        assert back.json() == {
            "id": harness.engine.runs[0].id,
            "status": "completed",
            "resumable": True,
            "events": 3,
            "prompt_tokens": 7,
            "completion_tokens": 1,
        }
        assert harness.instrumentation.resumes == []
    else:
        assert back.body == client.body


@in_virtual_time
async def test_a_live_plain_request_has_a_status_too() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await settle()
    path = f"/v1/streams/{harness.engine.runs[0].id}"
    back = await harness.request("GET", path, headers={"Accept": "application/json"}).finish()

    assert (back.json()["status"], back.json()["resumable"]) == ("running", False)

    client.leave()
    await client.finish()


@in_virtual_time
async def test_anothers_stream_cannot_be_joined(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", "sk-a") + key_line("bob", "sk-b"), encoding="utf-8")
    ann, bob = {"Authorization": "Bearer sk-a"}, {"Authorization": "Bearer sk-b"}
    harness = HttpHarness(keys_file=path)
    client = harness.post(headers={**RESUMABLE, **ann})
    await settle()
    stream_id = harness.engine.runs[0].id
    other = await harness.resume(stream_id, 0, headers=bob).finish()
    own = harness.resume(stream_id, 0, headers=ann)
    await settle()
    harness.engine.runs[0].end("a")
    await own.finish()
    await client.finish()

    assert (other.status, own.body) == (404, client.body)


@in_virtual_time
async def test_time_to_first_token_is_the_first_readers() -> None:
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


# Drain.


@in_virtual_time
async def test_a_drain_turns_new_requests_away_and_lets_running_ones_finish() -> None:
    harness = HttpHarness()
    client = harness.post()
    await settle()
    drain = asyncio.get_running_loop().create_task(harness.registry.drain(30))
    await settle()
    refused = await harness.post().finish()

    assert (refused.status, refused.error()["code"]) == (503, "server_draining")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"

    harness.engine.runs[0].end("a")
    await client.finish()
    await drain

    assert client.events()[-1] == "[DONE]"
    assert harness.instrumentation.endings == [(Cause.REFUSED_DRAINING, 0), (Cause.COMPLETED, 0)], "nothing was cut"


@in_virtual_time
async def test_a_drain_counts_what_it_refuses_on_vllms_own_endpoints() -> None:
    """Refused, not cut; and what asks for no work has no ending."""
    harness = HttpHarness()
    harness.engine.routes = {("POST", "/v1/embeddings"): Route.USES_ENGINE, ("GET", "/v1/models"): Route.LIGHT}
    client = harness.post()
    await settle()
    drain = asyncio.get_running_loop().create_task(harness.registry.drain(30))
    await settle()
    refused = [
        await harness.request(method, path, body=b"{}").finish()
        for method, path in (("POST", "/v1/embeddings"), ("GET", "/v1/models"))
    ]
    harness.engine.runs[0].end("a")
    await client.finish()
    await drain

    assert [one.status for one in refused] == [503, 503]
    assert harness.instrumentation.endings == [(Cause.REFUSED_DRAINING, 0), (Cause.COMPLETED, 0)]


@in_virtual_time
async def test_while_the_engine_is_down_a_request_is_refused_not_failed() -> None:
    harness = HttpHarness()
    harness.supervisor.phase = Phase.RESTARTING
    refused = await harness.post().finish()

    assert (refused.status, refused.error()["code"]) == (503, "engine_failed")
    assert harness.instrumentation.endings == [(Cause.REFUSED_UNREADY, 0)]


@in_virtual_time
async def test_at_the_drains_deadline_a_stream_says_so() -> None:
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
