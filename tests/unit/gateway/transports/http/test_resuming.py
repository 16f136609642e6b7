from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.domain import Cause
from tests.support.harness import CHAT, HTTP_LIMITS, HttpHarness, key_line
from tests.support.time import in_virtual_time, settle

RESUMABLE = {"X-Stream-Resumable": "60"}


@pytest.mark.parametrize("name", ["X-Request-Timeout", "X-Stream-Resumable"])
@in_virtual_time
async def test_a_header_that_is_no_number_is_a_400_that_names_it(name: str) -> None:
    harness = HttpHarness()
    client = await harness.post(headers={name: "soon"}).finish()

    assert (client.status, client.error()["param"]) == (400, name)
    assert harness.engine.bodies == []


@pytest.mark.parametrize(("asked", "granted"), [("60", "60"), ("2.5", "2.5"), ("1e9", "600"), ("0", "0")])
@in_virtual_time
async def test_the_grace_is_echoed_as_granted(asked: str, granted: str) -> None:
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
async def test_a_stream_can_be_resumed_by_query_parameter() -> None:
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
async def test_a_defect_while_resuming_is_reported_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret reason")

    harness = HttpHarness()
    monkeypatch.setattr(harness.registry, "find", broken)
    back = await harness.resume("chatcmpl-1").finish()

    assert (back.status, harness.instrumentation.resumes) == (500, ["internal_error"])


@in_virtual_time
async def test_a_reader_that_has_read_everything_gets_204() -> None:
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
async def test_unknown_streams_are_404_and_expired_ones_410() -> None:
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
async def test_the_connection_of_a_reader_that_falls_behind_the_limit_is_broken() -> None:
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
async def test_a_stream_that_is_not_resumed_is_cancelled_after_its_grace() -> None:
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
async def test_a_reader_that_resumes_and_leaves_again_is_no_failure() -> None:
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
async def test_a_resumable_stream_cancelled_by_its_id_ends_for_its_readers_with_that_error() -> None:
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
async def test_a_client_that_accepts_json_gets_the_status(accept: str | None, is_status: bool) -> None:
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
async def test_a_stream_of_another_owner_cannot_be_joined(tmp_path: Path) -> None:
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
