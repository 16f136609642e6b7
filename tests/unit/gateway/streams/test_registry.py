from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import orjson
import pytest

from gateway.domain import Cause, Endpoint, RequestOptions, RequestStats
from gateway.engine.base import CURRENT_STATS, Engine, Route
from gateway.errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Expired,
    NotFound,
    NotReady,
    Overloaded,
    SluiceError,
)
from gateway.protocols.chat import CHAT
from gateway.protocols.completions import COMPLETIONS
from gateway.streams.status import Status
from gateway.streams.stream import Stream
from tests.support.harness import STREAM_LIMITS, StreamHarness, read_all, start_reading
from tests.support.instrumentation import a_caller, some_stats
from tests.support.time import clock, in_virtual_time, settle


def cause(stream: Stream) -> Cause | None:
    return None if stream.writer.ended is None else stream.writer.ended.cause


# From the body to the engine.


@in_virtual_time
async def test_a_stream_that_ends_leaves_nothing_behind() -> None:
    harness = StreamHarness()
    stream = harness.open()
    following = start_reading(stream)
    await settle()

    assert (harness.registry.active, harness.gate.slots_taken, stream.status) == (1, 1, "running")

    harness.engine.runs[0].end("all")
    documents, ended = await following

    assert (len(documents), ended.cause) == (3, Cause.COMPLETED)
    assert harness.at_rest
    assert harness.engine.runs[0].aborts == 0


@pytest.mark.parametrize(("endpoint", "prefix"), [(Endpoint.CHAT, "chatcmpl-"), (Endpoint.COMPLETION, "cmpl-")])
@in_virtual_time
async def test_every_stream_gets_an_id_of_its_own_that_cannot_be_guessed(endpoint: Endpoint, prefix: str) -> None:
    harness = StreamHarness()
    streams = [harness.open(endpoint=endpoint) for _ in range(3)]

    assert len({stream.id for stream in streams}) == 3
    assert all(re.fullmatch(prefix + "[0-9a-f]{32}", stream.id) for stream in streams)
    assert streams[0].writer.stats.id == streams[0].id

    harness.registry.end_all()


@in_virtual_time
async def test_leaving_before_the_end_is_a_disconnect_and_aborts() -> None:
    harness = StreamHarness()
    stream = harness.open()
    with stream.read():
        await settle()

    assert cause(stream) is Cause.DISCONNECTED
    assert harness.engine.runs[0].aborts == 1
    assert harness.at_rest


@in_virtual_time
async def test_a_bad_body_never_reaches_the_gate() -> None:
    harness = StreamHarness()
    with pytest.raises(ClientError):
        harness.starter.begin(CHAT, b"{", some_stats(harness.instrumentation), RequestOptions())
    await settle()

    assert harness.instrumentation.waits == []
    assert harness.at_rest


@in_virtual_time
async def test_a_long_body_is_parsed_beside_the_event_loop() -> None:
    """What it takes in Python and in one call of a library, the other streams would wait for."""
    harness = StreamHarness()
    threads: list[int] = []
    parse = harness.engine.parse

    def parse_somewhere(endpoint: Endpoint, body: bytes) -> object:
        threads.append(threading.get_ident())
        return parse(endpoint, body)

    harness.engine.parse = parse_somewhere  # type: ignore[method-assign, assignment]
    for size in (10, 2**17):
        body = orjson.dumps({"stream": True, "prompt": "x" * size})
        stream = await harness.starter.start(COMPLETIONS, body, some_stats(harness.instrumentation), RequestOptions())
        stream.writer.cancel(Cancelled("Enough."))
    await settle()

    assert [thread == threading.get_ident() for thread in threads] == [True, False]
    assert harness.at_rest


@in_virtual_time
async def test_a_long_body_that_is_wrong_is_the_clients_error() -> None:
    harness = StreamHarness()
    with pytest.raises(ClientError):
        await harness.starter.start(CHAT, b"{" * 2**17, some_stats(harness.instrumentation), RequestOptions())

    assert harness.at_rest


@in_virtual_time
async def test_a_drain_that_begins_while_a_long_body_is_parsed_refuses_it() -> None:
    """The drain has counted what was there; a request that came later would be cut off without a word."""
    harness = StreamHarness()
    body = orjson.dumps({"stream": True, "prompt": "x" * 2**17})
    opening = asyncio.ensure_future(
        harness.starter.start(CHAT, body, some_stats(harness.instrumentation), RequestOptions())
    )
    await asyncio.sleep(0)
    await harness.registry.drain(1)
    with pytest.raises(Draining):
        await opening

    assert harness.at_rest


@in_virtual_time
async def test_the_deadline_counts_while_a_long_body_is_parsed() -> None:
    harness = StreamHarness()
    stats = some_stats(harness.instrumentation, arrival_s=clock().now())
    parse = harness.engine.parse

    def parse_slowly(endpoint: Endpoint, body: bytes) -> object:
        loop_clock.advance(7)
        return parse(endpoint, body)

    loop_clock = clock()
    harness.engine.parse = parse_slowly  # type: ignore[method-assign, assignment]
    body = orjson.dumps({"stream": True, "prompt": "x" * 2**17})
    with pytest.raises(DeadlineExceeded):
        await harness.starter.start(CHAT, body, stats, RequestOptions(timeout_s=5))

    assert harness.at_rest


@in_virtual_time
async def test_parsing_a_body_has_a_limit_of_its_own_and_does_not_hold_up_others() -> None:
    harness = StreamHarness()
    parse, go_on = harness.engine.parse, threading.Event()
    loop_clock = clock()

    def parse_for_ever(endpoint: Endpoint, body: bytes) -> object:
        loop_clock.advance(STREAM_LIMITS.prepare_timeout_s + 1)
        go_on.wait(5)
        return parse(endpoint, body)

    harness.engine.parse = parse_for_ever  # type: ignore[method-assign, assignment]
    body = orjson.dumps({"stream": True, "prompt": "x" * 2**17})
    with pytest.raises(DeadlineExceeded, match="prepare_timeout_s"):
        await harness.starter.start(CHAT, body, some_stats(harness.instrumentation), RequestOptions())
    harness.engine.parse = parse  # type: ignore[method-assign]
    stream = await harness.starter.start(CHAT, body, some_stats(harness.instrumentation), RequestOptions())
    stream.writer.cancel(Cancelled("Enough."))
    await settle()

    assert harness.at_rest
    go_on.set()


@pytest.mark.parametrize("stage", ["prepare_error", "submit_error"])
@pytest.mark.parametrize(
    ("error", "code"), [(ClientError("No."), "invalid_request"), (RuntimeError("a defect"), "internal_error")]
)
@in_virtual_time
async def test_a_request_that_fails_before_it_runs_leaves_nothing_behind(
    stage: str, error: Exception, code: str
) -> None:
    harness = StreamHarness()
    setattr(harness.engine, stage, error)
    _, ended = await read_all(harness.open())

    assert ended.error is not None
    assert ended.error.code == code
    assert "a defect" not in str(ended.error)
    assert harness.at_rest


@pytest.mark.parametrize("stage", ["prepare_hold", "submit_hold"])
@in_virtual_time
async def test_a_request_whose_reader_leaves_before_it_runs_leaves_nothing_behind(stage: str) -> None:
    harness = StreamHarness()
    setattr(harness.engine, stage, asyncio.Event())
    stream = harness.open()
    with stream.read():
        await settle()

        assert harness.gate.slots_taken == 1
    assert stream.start_task is not None
    await asyncio.wait((stream.start_task,))

    assert harness.at_rest
    assert stream.start_task.cancelled()
    assert not any(run.live for run in harness.engine.runs)


@pytest.mark.parametrize("stage", ["gate", "restart", "prepare_hold", "submit_hold"])
@in_virtual_time
async def test_a_request_cancelled_in_the_very_turn_in_which_it_gets_on_leaves_nothing_behind(stage: str) -> None:
    """What it waited for has come, but its task has not run yet."""
    harness = StreamHarness(max_concurrent=1)
    held = await harness.gate.enter()
    hold = asyncio.Event()
    if stage.endswith("hold"):
        setattr(harness.engine, stage, hold)
    stream = harness.open()
    if stage == "restart":
        harness.switch.lose()
    if stage != "gate":
        held.release()
    await settle()
    if stage == "gate":
        held.release()
    elif stage == "restart":
        harness.switch.regain()
    else:
        hold.set()
    harness.registry.cancel(stream.id, a_caller())
    assert stream.start_task is not None
    await asyncio.wait((stream.start_task,))

    assert cause(stream) is Cause.CANCELLED
    assert harness.at_rest
    assert not any(run.live for run in harness.engine.runs)


@in_virtual_time
async def test_a_request_for_n_choices_takes_n_seats() -> None:
    harness = StreamHarness(max_concurrent=4)
    following = start_reading(harness.open(n=3))
    await settle()

    assert harness.gate.slots_taken == 3

    harness.engine.runs[0].fail(EngineFailed("Down."))
    await following

    assert harness.at_rest


@in_virtual_time
async def test_without_an_engine_nothing_is_opened() -> None:
    harness = StreamHarness()
    harness.switch.error = NotReady("Starting.")
    with pytest.raises(NotReady):
        harness.open()

    assert harness.at_rest


@in_virtual_time
async def test_a_request_whose_engine_is_restarted_while_it_waits_meets_the_next_one() -> None:
    harness = StreamHarness(max_concurrent=1)
    held = await harness.gate.enter()
    stream = harness.open()
    following = start_reading(stream)
    await settle()
    harness.switch.lose()
    held.release()
    await asyncio.sleep(20)

    assert (stream.status, harness.engine.runs) == ("queued", [])

    harness.switch.regain()
    await settle()
    harness.engine.runs[0].end("late")
    _, ended = await following

    assert ended.cause is Cause.COMPLETED
    assert stream.writer.stats.queued_s == pytest.approx(20, abs=1e-3), "that is waiting, too"
    assert harness.at_rest


@in_virtual_time
async def test_a_request_whose_engine_does_not_come_back_hears_so() -> None:
    harness = StreamHarness(max_concurrent=1)
    held = await harness.gate.enter()
    following = start_reading(harness.open())
    await settle()
    harness.switch.lose()
    held.release()
    await settle()
    harness.switch.regain(EngineFailed("The engine is down."))
    _, ended = await following

    assert ended.cause is Cause.REFUSED_UNREADY, "no engine had been given it"
    assert harness.at_rest


@in_virtual_time
async def test_time_in_the_queue_is_not_the_gateways_overhead() -> None:
    harness = StreamHarness(max_concurrent=1)
    held = await harness.gate.enter()
    stream = harness.open()
    await asyncio.sleep(9)
    held.release()
    await settle()

    assert stream.writer.stats.queued_s == pytest.approx(9)
    assert harness.instrumentation.overheads == [pytest.approx(0, abs=1e-3)]

    harness.registry.end_all()


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


# Deadlines.


@pytest.mark.parametrize(
    ("asked_s", "after_s", "shown"), [(5.0, 5.0, "5 s"), (None, 1000.0, "1000 s"), (5000.0, 1000.0, "1000 s")]
)
@in_virtual_time
async def test_a_deadline_counts_over_everything_and_is_capped(
    asked_s: float | None, after_s: float, shown: str
) -> None:
    harness = StreamHarness()
    stream = harness.open(timeout_s=asked_s)
    await settle()
    harness.engine.runs[0].put_text("a", 3)
    await asyncio.sleep(after_s - 0.1)

    assert cause(stream) is None

    await asyncio.sleep(0.2)

    assert stream.writer.ended is not None
    assert str(stream.writer.ended.error) == f"The request passed its deadline of {shown} after 3 completion tokens."
    assert harness.engine.runs[0].aborts == 1
    assert harness.at_rest


@in_virtual_time
async def test_a_deadline_counts_from_the_first_byte_of_the_request() -> None:
    harness = StreamHarness()
    stats = some_stats(harness.instrumentation, arrival_s=clock().now() - 4)
    stream = harness.starter.begin(CHAT, b'{"stream":true}', stats, RequestOptions(timeout_s=5))
    late = harness.starter.begin(
        CHAT,
        b'{"stream":true}',
        some_stats(harness.instrumentation, arrival_s=clock().now() - 9),
        RequestOptions(timeout_s=5),
    )
    await asyncio.sleep(0.9)

    assert (cause(stream), cause(late)) == (None, Cause.DEADLINE_EXCEEDED)

    await asyncio.sleep(0.2)

    assert cause(stream) is Cause.DEADLINE_EXCEEDED


@in_virtual_time
async def test_work_that_expires_in_the_queue_is_never_started() -> None:
    harness = StreamHarness(max_concurrent=1)
    held = await harness.gate.enter()
    stream = harness.open(timeout_s=5)
    await asyncio.sleep(6)
    held.release()
    await settle()

    assert stream.writer.ended is not None
    assert "while it waited; nothing was generated" in str(stream.writer.ended.error)
    assert harness.engine.runs == []
    assert harness.at_rest


@in_virtual_time
async def test_a_finished_stream_has_no_deadline() -> None:
    harness = StreamHarness()
    stream = harness.open(timeout_s=5, grace_s=1)
    await settle()
    harness.engine.runs[0].end("x")
    await asyncio.sleep(10)

    assert cause(stream) is Cause.COMPLETED


# Those who come back, ask, or cancel.


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
async def test_nobody_reads_or_cancels_anothers_stream_or_learns_that_it_exists(owner: str | None, where: str) -> None:
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
async def test_a_status_tells_where_a_request_is() -> None:
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
async def test_cancelling_by_id_tells_the_final_count_and_frees_everything_at_once() -> None:
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
async def test_cancelling_a_finished_stream_that_is_kept_only_tells_its_status() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].end("x")

    assert harness.registry.cancel(stream.id, a_caller()).status == "completed"
    assert harness.engine.runs[0].aborts == 0
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@in_virtual_time
async def test_cancelling_a_stream_that_is_kept_no_longer_says_so() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].end("x")
    await asyncio.sleep(51)
    with pytest.raises(Expired):
        harness.registry.cancel(stream.id, a_caller())


@in_virtual_time
async def test_what_vllms_app_runs_can_be_cancelled_by_its_id_too() -> None:
    harness = StreamHarness()
    stats = some_stats()
    stats.prompt_tokens, stats.completion_tokens = 5, 3
    harness.engine.mounted["resp-1", "ann"] = stats

    assert harness.registry.cancel("resp-1", a_caller("ann")) == Status("resp-1", "cancelled", False, 0, 5, 3)
    with pytest.raises(NotFound):
        harness.registry.cancel("resp-1", a_caller("bob"))


# What resumable streams are counted and bounded by.


@in_virtual_time
async def test_the_ending_of_a_resumable_stream_is_counted_when_it_comes_and_once() -> None:
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
async def test_the_ending_of_a_plain_request_is_its_exchanges_to_count() -> None:
    harness = StreamHarness()
    for stream in (True, False):
        harness.registry.cancel(harness.open(stream=stream).id, a_caller())

    assert harness.instrumentation.endings == []


@pytest.mark.parametrize(("asked_s", "grace_s"), [(7.0, 7.0), (1e9, 100.0), (0.0, 0.0)])
@in_virtual_time
async def test_grace_is_capped(asked_s: float, grace_s: float) -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=asked_s)

    assert (stream.grace_s, stream.is_resumable, stream.writer.log.is_retaining) == (grace_s, True, True)

    harness.registry.end_all()


@in_virtual_time
async def test_a_whole_answer_has_no_events_to_come_back_for() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=7, stream=False)

    assert (stream.is_resumable, stream.writer.log.is_retaining, stream.writer.stats.is_resumable) == (
        False,
        False,
        False,
    )

    harness.registry.end_all()


@in_virtual_time
async def test_another_resumable_stream_is_refused_where_its_events_may_find_no_room() -> None:
    """Plain streams keep nothing, so they are let in all the same."""
    harness = StreamHarness(limits=replace(STREAM_LIMITS, max_bytes=10_000, max_total_bytes=15_000))
    stream = harness.open(grace_s=10)
    await settle()
    harness.engine.runs[0].put_text("x" * 6000)
    stream.writer.flush()
    with pytest.raises(Overloaded, match="no room for another resumable stream") as caught:
        harness.open(grace_s=10)

    assert caught.value.retry_after_s == 5
    assert harness.instrumentation.rejections == ["resumable_full"]
    assert cause(harness.open()) is None

    harness.registry.end_all()


@in_virtual_time
async def test_finished_streams_make_room_for_live_ones_oldest_first() -> None:
    harness = StreamHarness(limits=replace(STREAM_LIMITS, max_bytes=5_000, max_total_bytes=10_000))
    streams = []
    for _ in range(3):
        stream = harness.open(grace_s=10)
        await settle()
        harness.run_of(stream).end("x" * 2000)
        streams.append(stream)

    harness.open(grace_s=10)
    with pytest.raises(Expired):
        harness.registry.find(streams[0].id, a_caller())
    assert harness.registry.find(streams[2].id, a_caller()) is streams[2]
    assert harness.registry.kept_bytes <= 5_000

    harness.registry.end_all()


@in_virtual_time
async def test_one_stream_may_keep_all_there_is() -> None:
    harness = StreamHarness(limits=replace(STREAM_LIMITS, max_bytes=10_000, max_total_bytes=10_000))

    assert harness.open(grace_s=10).is_resumable

    harness.registry.end_all()


@in_virtual_time
async def test_streams_that_grow_after_they_were_let_in_share_what_there_is() -> None:
    harness = StreamHarness(max_concurrent=10, limits=replace(STREAM_LIMITS, max_bytes=10_000, max_total_bytes=20_000))
    streams = [harness.open(grace_s=10) for _ in range(8)]
    with pytest.raises(Overloaded):
        harness.open(grace_s=10)
    await settle()
    for _ in range(20):
        for stream in streams:
            harness.run_of(stream).put_text("x" * 100)
            stream.writer.flush()

            assert harness.registry.kept_bytes <= 20_000

    assert all(stream.writer.log.size_bytes > 1_500 for stream in streams), "an equal share each"

    for stream in streams[1:]:
        stream.writer.cancel(Cancelled("gone"))
    for _ in range(50):
        harness.run_of(streams[0]).put_text("x" * 100)
        streams[0].writer.flush()

    assert streams[0].writer.log.size_bytes > 7_000, "who is left has all that one may have"

    harness.registry.end_all()


# Requests that vLLM's own app answers.


def with_mounted_app(max_concurrent: int = 2) -> StreamHarness:
    harness = StreamHarness(max_concurrent=max_concurrent)
    harness.engine.routes = {("POST", "/v1/embeddings"): Route.USES_ENGINE, ("GET", "/v1/models"): Route.LIGHT}
    return harness


@asynccontextmanager
async def admit(
    harness: StreamHarness, method: str, path: str, stats: RequestStats, options: RequestOptions
) -> AsyncIterator[Engine]:
    """Admission as a transport asks for it."""
    stats.endpoint = path
    stats.uses_engine = harness.engine.route(method, path) is Route.USES_ENGINE
    if method == "GET":
        yield harness.engine_app.admit_light()
        return
    async with harness.engine_app.admit(stats, options) as engine:
        yield engine


async def work(harness: StreamHarness, stats: RequestStats, timeout_s: float | None = None) -> None:
    """An endless embedding."""
    async with admit(harness, "POST", "/v1/embeddings", stats, RequestOptions(timeout_s=timeout_s)):
        await asyncio.Event().wait()


def working(harness: StreamHarness, stats: RequestStats, timeout_s: float | None = None) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work(harness, stats, timeout_s))


@in_virtual_time
async def test_a_mounted_path_that_works_the_engine_holds_a_seat_and_a_light_one_does_not() -> None:
    harness = with_mounted_app()
    stats = some_stats(harness.instrumentation)
    async with admit(harness, "GET", "/v1/models", stats, RequestOptions()) as engine:
        assert (harness.gate.slots_taken, harness.registry.active, engine) == (0, 0, harness.engine)
        assert (stats.uses_engine, stats.endpoint) == (False, "/v1/models")
    async with admit(harness, "POST", "/v1/embeddings", stats, RequestOptions()) as engine:
        assert (harness.gate.slots_taken, harness.registry.active, engine) == (1, 1, harness.engine)
        assert CURRENT_STATS.get() is stats
        assert (stats.uses_engine, stats.queued_s) == (True, 0)
    assert CURRENT_STATS.get() is None
    assert harness.at_rest


@in_virtual_time
async def test_what_each_key_has_in_flight_is_known_wherever_it_runs_or_waits() -> None:
    harness = with_mounted_app(max_concurrent=1)
    for owner in ("anna", "anna", "bert", None):
        harness.open(owner=owner)
    task = working(harness, some_stats(harness.instrumentation, "anna"))
    await settle()

    assert harness.registry.owners() == {"anna": 3, "bert": 1}

    harness.registry.end_all()
    await asyncio.gather(task, return_exceptions=True)
    await settle()

    assert harness.registry.owners() == {}


@in_virtual_time
async def test_a_mounted_path_that_fails_gives_its_seat_back() -> None:
    harness = with_mounted_app()
    with pytest.raises(RuntimeError):
        async with admit(harness, "POST", "/v1/embeddings", some_stats(), RequestOptions()):
            raise RuntimeError("a defect")

    assert harness.at_rest
    assert CURRENT_STATS.get() is None


@in_virtual_time
async def test_a_mounted_path_that_is_cancelled_by_its_id_ends_though_nobody_reads_it() -> None:
    harness = with_mounted_app()
    stats = some_stats(harness.instrumentation)
    harness.engine.mounted["resp-1", None] = stats
    task = working(harness, stats)
    await settle()
    harness.registry.cancel("resp-1", a_caller())
    await asyncio.sleep(0.9)

    assert not task.done(), "it may end by itself, in its protocol's way"

    await asyncio.sleep(0.2)
    with pytest.raises(Cancelled):
        await task
    assert harness.at_rest


@in_virtual_time
async def test_a_mounted_path_waits_at_the_gate_and_through_a_restart() -> None:
    harness = with_mounted_app(max_concurrent=1)
    held = await harness.gate.enter()
    stats = some_stats(harness.instrumentation)
    task = working(harness, stats)
    await asyncio.sleep(3)
    harness.switch.lose()
    held.release()
    await asyncio.sleep(4)

    assert stats.queued_s is None

    harness.switch.regain()
    await settle()

    assert stats.queued_s == pytest.approx(7, abs=1e-3)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert harness.at_rest


@pytest.mark.parametrize(
    ("queued", "words"),
    [(True, "5 s while it waited; nothing was generated"), (False, "5 s after 3 completion tokens")],
)
@in_virtual_time
async def test_a_mounted_path_has_the_same_deadline(queued: bool, words: str) -> None:
    harness = with_mounted_app(max_concurrent=1)
    held = await harness.gate.enter()
    stats = some_stats(harness.instrumentation)
    task = working(harness, stats, 5)
    await asyncio.sleep(1)
    if not queued:
        held.release()
        await settle()
        stats.completion_tokens = 3
    with pytest.raises(DeadlineExceeded, match=words):
        await task

    assert clock().now() == pytest.approx(1005)

    held.release()

    assert harness.at_rest


@in_virtual_time
async def test_a_mounted_path_that_answers_its_deadline_by_itself_is_over_it_all_the_same() -> None:
    """vLLM's handlers take the cancellation for a client that left, and answer."""
    harness = with_mounted_app()

    async def answer() -> None:
        async with admit(
            harness, "POST", "/v1/embeddings", some_stats(harness.instrumentation), RequestOptions(timeout_s=5)
        ):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        await answer()

    assert harness.at_rest


# Drain.


@in_virtual_time
async def test_an_empty_house_drains_at_once_and_takes_nothing_new() -> None:
    harness = with_mounted_app()
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
async def test_a_drain_waits_for_what_runs_and_waits_and_is_over_with_the_last() -> None:
    harness = with_mounted_app(max_concurrent=1)
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
async def test_a_drain_waits_for_mounted_requests_too() -> None:
    harness = with_mounted_app()
    async with admit(harness, "POST", "/v1/embeddings", some_stats(), RequestOptions()):
        task = asyncio.get_running_loop().create_task(harness.registry.drain(30))
        await asyncio.sleep(5)

        assert not task.done()
    await task

    assert clock().now() == pytest.approx(1005, abs=1e-3)


@in_virtual_time
async def test_at_its_deadline_a_drain_ends_the_rest() -> None:
    harness = with_mounted_app(max_concurrent=3)
    plain, kept, answer = (
        harness.open(),
        harness.open(grace_s=60),
        working(harness, some_stats(harness.instrumentation)),
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
    harness = with_mounted_app()
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
async def test_while_it_drains_a_reader_may_still_come_back() -> None:
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


@in_virtual_time
async def test_whoever_asks_can_learn_whether_vllms_app_runs_something_here() -> None:
    """Several workers ask each other; whose it is matters only to the one that has it."""
    harness = StreamHarness()
    harness.engine.mounted["resp-1", "ann"] = some_stats()

    assert harness.engine_app.has_request("resp-1")
    assert not harness.engine_app.has_request("resp-2")

    harness.switch.lose()

    assert not harness.engine_app.has_request("resp-1")
