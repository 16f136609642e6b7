from __future__ import annotations

import asyncio

import pytest

from gateway.domain import Cause, RequestOptions
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Expired,
    NotFound,
    SluiceError,
)
from gateway.streams.registry import Status
from tests.support.harness import StreamHarness, admit, cause, read_all, start_embedding, start_reading, with_engine_app
from tests.support.instrumentation import a_caller, some_stats
from tests.support.time import clock, in_virtual_time, settle


@in_virtual_time
async def test_live_streams_recover_with_their_engine() -> None:
    harness = StreamHarness()
    streams = [harness.open(), harness.open(grace_s=5.0)]
    queued = harness.open()
    await settle()
    harness.registry.on_engine_lost()

    assert [stream.status for stream in (*streams, queued)] == ["recovering", "recovering", "queued"]

    harness.registry.on_engine_recovered()

    assert [stream.status for stream in (*streams, queued)] == ["running", "running", "queued"]

    harness.registry.end_all()


@in_virtual_time
async def test_a_finished_resumable_stream_can_be_read_for_its_retention_and_is_then_expired() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].put_text("a")
    stream.writer.flush()
    harness.engine.runs[0].end("b")
    documents, _ = await read_all(stream)
    await asyncio.sleep(49)

    assert (await read_all(harness.registry.find(stream.id, a_caller()), 2))[0] == documents[2:]
    assert harness.registry.kept_bytes == stream.writer.log.size_bytes > 0

    await asyncio.sleep(2)
    with pytest.raises(Expired) as caught:
        harness.registry.find(stream.id, a_caller())

    assert caught.value.status == 410
    assert harness.registry.kept_bytes == 0


@in_virtual_time
async def test_a_plain_stream_that_is_over_is_unknown() -> None:
    harness = StreamHarness()
    stream = harness.open()
    following = start_reading(stream)
    await settle()

    assert harness.registry.find(stream.id, a_caller()) is stream

    harness.engine.runs[0].end("x")
    await following
    with pytest.raises(NotFound):
        harness.registry.find(stream.id, a_caller())
    assert harness.registry.kept_bytes == 0


@pytest.mark.parametrize("where", ["live", "kept", "gone"])
@pytest.mark.parametrize("owner", ["bob", None])
@in_virtual_time
async def test_a_stream_of_another_owner_cannot_be_read_cancelled_or_detected(owner: str | None, where: str) -> None:
    harness = StreamHarness()
    stream = harness.open(owner="ann", grace_s=10)
    await settle()
    if where != "live":
        harness.engine.runs[0].end("x")
    if where == "gone":
        await asyncio.sleep(51)
    for act in (harness.registry.find, harness.registry.status, harness.registry.cancel):
        with pytest.raises(NotFound) as other:
            act(stream.id, a_caller(owner))
        with pytest.raises(NotFound) as unknown:
            act("chatcmpl-9", a_caller(owner))

        assert other.value.body() == {
            "error": {
                **unknown.value.body()["error"],
                "message": unknown.value.message.replace("chatcmpl-9", stream.id),
            }
        }

    if where == "live":
        assert cause(stream) is None
    if where == "gone":
        with pytest.raises(Expired):
            harness.registry.find(stream.id, a_caller("ann"))
    harness.registry.end_all()


@in_virtual_time
async def test_a_status_names_the_state_of_a_request() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=10)

    assert harness.registry.status(stream.id, a_caller()) == Status(stream.id, "queued", True, 0, 0, 0)

    await settle()
    harness.engine.runs[0].put_text("a", 2)
    stream.writer.flush()

    assert harness.registry.status(stream.id, a_caller()) == Status(stream.id, "running", True, 2, 7, 2)

    harness.engine.runs[0].end("b")

    assert harness.registry.status(stream.id, a_caller()) == Status(stream.id, "completed", True, 4, 7, 3)


@in_virtual_time
async def test_cancelling_by_id_returns_the_final_count_and_frees_everything_at_once() -> None:
    harness = StreamHarness()
    stream = harness.open(owner="ann")
    following = start_reading(stream)
    await settle()
    harness.engine.runs[0].put_text("Hi", 3)
    status = harness.registry.cancel(stream.id, a_caller("ann"))

    assert status == Status(stream.id, "cancelled", False, 4, 7, 3)
    assert harness.at_rest
    assert harness.engine.runs[0].aborts == 1

    _, ended = await following

    assert ended.cause is Cause.CANCELLED
    assert harness.engine.runs[0].aborts == 1


@in_virtual_time
async def test_cancelling_a_finished_stream_that_is_kept_only_returns_its_status() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].end("x")

    assert harness.registry.cancel(stream.id, a_caller()).status == "completed"
    assert harness.engine.runs[0].aborts == 0
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@in_virtual_time
async def test_cancelling_a_stream_that_is_kept_no_longer_is_expired() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].end("x")
    await asyncio.sleep(51)
    with pytest.raises(Expired):
        harness.registry.cancel(stream.id, a_caller())


@in_virtual_time
async def test_a_request_of_the_engines_app_can_be_cancelled_by_its_id() -> None:
    harness = StreamHarness()
    stats = some_stats()
    stats.prompt_tokens, stats.completion_tokens = 5, 3
    harness.engine.mounted["resp-1", "ann"] = stats

    assert harness.registry.cancel("resp-1", a_caller("ann")) == Status("resp-1", "cancelled", False, 0, 5, 3)
    with pytest.raises(NotFound):
        harness.registry.cancel("resp-1", a_caller("bob"))


@in_virtual_time
async def test_the_ending_of_a_resumable_stream_is_reported_when_it_comes_and_once() -> None:
    harness = StreamHarness()
    for act in ("end", "cancel", "abandon"):
        stream = harness.open(grace_s=10)
        with stream.read():
            await settle()
            harness.run_of(stream).put_text("a", 2)
        if act == "end":
            harness.run_of(stream).end("b")
        elif act == "cancel":
            harness.registry.cancel(stream.id, a_caller())
        await asyncio.sleep(11)
        harness.registry.cancel(stream.id, a_caller())

    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0), (Cause.CANCELLED, 2), (Cause.CANCELLED, 2)]
    assert harness.at_rest


@in_virtual_time
async def test_the_ending_of_a_plain_request_is_reported_by_its_exchange() -> None:
    harness = StreamHarness()
    for stream in (True, False):
        harness.registry.cancel(harness.open(stream=stream).id, a_caller())

    assert harness.instrumentation.endings == []


@in_virtual_time
async def test_requests_in_flight_are_counted_by_api_key() -> None:
    harness = with_engine_app(max_concurrent=1)
    for owner in ("anna", "anna", "bert", None):
        harness.open(owner=owner)
    task = start_embedding(harness, some_stats(harness.instrumentation, "anna"))
    await settle()

    assert harness.registry.owners() == {"anna": 3, "bert": 1}

    harness.registry.end_all()
    await asyncio.gather(task, return_exceptions=True)
    await settle()

    assert harness.registry.owners() == {}


@in_virtual_time
async def test_an_idle_server_drains_at_once_and_admits_nothing_new() -> None:
    harness = with_engine_app()
    began = clock().now()
    await harness.registry.drain(30)

    assert clock().now() == began
    with pytest.raises(Draining) as caught:
        harness.open()
    assert caught.value.retry_after_s == 1
    with pytest.raises(Draining):
        async with admit(harness, "GET", "/v1/models", some_stats(), RequestOptions()):
            raise AssertionError
    assert harness.at_rest


@in_virtual_time
async def test_a_drain_waits_for_running_and_queued_requests_and_ends_with_the_last() -> None:
    harness = with_engine_app(max_concurrent=1)
    following = [start_reading(harness.open()) for _ in range(2)]
    task = asyncio.get_running_loop().create_task(harness.registry.drain(30))
    for _ in range(2):
        await asyncio.sleep(2)

        assert not task.done()

        harness.engine.runs[-1].end("x")
    await task

    assert clock().now() == pytest.approx(1004, abs=1e-3)
    assert [(await one)[1].cause for one in following] == [Cause.COMPLETED] * 2


@in_virtual_time
async def test_a_drain_waits_for_requests_of_the_app() -> None:
    harness = with_engine_app()
    async with admit(harness, "POST", "/v1/embeddings", some_stats(), RequestOptions()):
        task = asyncio.get_running_loop().create_task(harness.registry.drain(30))
        await asyncio.sleep(5)

        assert not task.done()
    await task

    assert clock().now() == pytest.approx(1005, abs=1e-3)


@in_virtual_time
async def test_at_its_deadline_a_drain_ends_the_rest() -> None:
    harness = with_engine_app(max_concurrent=3)
    plain, kept, answer = (
        harness.open(),
        harness.open(grace_s=60),
        start_embedding(harness, some_stats(harness.instrumentation)),
    )
    following = start_reading(plain)
    await settle()
    queued = harness.open()
    await harness.registry.drain(30)
    await settle()

    assert clock().now() == pytest.approx(1030, abs=1e-3)
    assert [cause(stream) for stream in (plain, kept)] == [Cause.SERVER_DRAINING] * 2
    assert cause(queued) is Cause.REFUSED_DRAINING, "there was nothing to cut"
    assert (await following)[1].cause is Cause.SERVER_DRAINING
    with pytest.raises(Draining):
        await answer
    assert harness.at_rest
    assert not any(run.live for run in harness.engine.runs)
    assert harness.instrumentation.endings == [(Cause.SERVER_DRAINING, 0)]


@in_virtual_time
async def test_ending_all_does_not_wait_and_ends_a_drain() -> None:
    harness = with_engine_app()
    stream = harness.open()
    await settle()
    drain = asyncio.get_running_loop().create_task(harness.registry.drain(30))
    await asyncio.sleep(1)
    harness.registry.end_all()

    assert cause(stream) is Cause.SERVER_DRAINING

    await drain

    assert clock().now() == pytest.approx(1001, abs=1e-3)
    assert harness.registry.is_draining


@in_virtual_time
async def test_during_a_drain_a_stream_can_still_be_resumed() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=60)
    await settle()
    drain = asyncio.get_running_loop().create_task(harness.registry.drain(30))
    await settle()
    following = start_reading(harness.registry.find(stream.id, a_caller()))
    await settle()
    harness.engine.runs[0].end("x")

    assert (await following)[1].cause is Cause.COMPLETED

    await drain


def test_the_errors_of_an_end_have_their_causes() -> None:
    """What a stream is counted as follows from its error."""
    errors: list[SluiceError] = [Cancelled("."), Draining("."), DeadlineExceeded("."), EngineFailed(".")]

    assert [error.cause.value for error in errors] == [error.code for error in errors]
