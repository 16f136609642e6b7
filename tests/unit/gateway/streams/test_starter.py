from __future__ import annotations

import asyncio
import re
import threading

import orjson
import pytest

from gateway.domain import Cause, Endpoint, RequestOptions
from gateway.errors import Cancelled, ClientError, DeadlineExceeded, Draining, EngineFailed, NotReady
from gateway.protocols.chat import CHAT
from gateway.protocols.completions import COMPLETIONS
from tests.support.harness import STREAM_LIMITS, StreamHarness, cause, read_all, start_reading
from tests.support.instrumentation import a_caller, some_stats
from tests.support.time import clock, in_virtual_time, settle

LONG_BODY = orjson.dumps({"stream": True, "prompt": "x" * 2**17})


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
    opening = asyncio.ensure_future(
        harness.starter.start(CHAT, LONG_BODY, some_stats(harness.instrumentation), RequestOptions())
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
    with pytest.raises(DeadlineExceeded):
        await harness.starter.start(CHAT, LONG_BODY, stats, RequestOptions(timeout_s=5))

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
    with pytest.raises(DeadlineExceeded, match="prepare_timeout_s"):
        await harness.starter.start(CHAT, LONG_BODY, some_stats(harness.instrumentation), RequestOptions())
    harness.engine.parse = parse  # type: ignore[method-assign]
    stream = await harness.starter.start(CHAT, LONG_BODY, some_stats(harness.instrumentation), RequestOptions())
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
async def test_a_request_for_n_choices_takes_n_slots() -> None:
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
async def test_a_request_whose_engine_restarts_while_it_waits_uses_the_next_one() -> None:
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
async def test_a_request_whose_engine_does_not_come_back_fails_with_that_error() -> None:
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


@pytest.mark.parametrize(("asked_s", "grace_s"), [(7.0, 7.0), (1e9, 100.0), (0.0, 0.0)])
@in_virtual_time
async def test_grace_is_capped(asked_s: float, grace_s: float) -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=asked_s)

    assert (stream.grace_s, stream.is_resumable, stream.writer.log.is_retaining) == (grace_s, True, True)

    harness.registry.end_all()


@in_virtual_time
async def test_a_whole_answer_is_not_resumable() -> None:
    harness = StreamHarness()
    stream = harness.open(grace_s=7, stream=False)

    assert (stream.is_resumable, stream.writer.log.is_retaining, stream.writer.stats.is_resumable) == (
        False,
        False,
        False,
    )

    harness.registry.end_all()
