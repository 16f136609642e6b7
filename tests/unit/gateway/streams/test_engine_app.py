from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gateway.domain import RequestOptions
from gateway.engine.base import CURRENT_STATS
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
)
from tests.support.harness import StreamHarness, admit, start_embedding, with_engine_app
from tests.support.instrumentation import a_caller, some_stats
from tests.support.time import clock, in_virtual_time, settle


@in_virtual_time
async def test_a_path_that_uses_the_engine_holds_a_slot_and_a_light_one_does_not() -> None:
    harness = with_engine_app()
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
async def test_a_mounted_path_that_fails_frees_its_slot() -> None:
    harness = with_engine_app()
    with pytest.raises(RuntimeError):
        async with admit(harness, "POST", "/v1/embeddings", some_stats(), RequestOptions()):
            raise RuntimeError("a defect")

    assert harness.at_rest
    assert CURRENT_STATS.get() is None


@in_virtual_time
async def test_a_request_of_the_app_that_is_cancelled_by_its_id_ends_without_a_reader() -> None:
    harness = with_engine_app()
    stats = some_stats(harness.instrumentation)
    harness.engine.mounted["resp-1", None] = stats
    task = start_embedding(harness, stats)
    await settle()
    harness.registry.cancel("resp-1", a_caller())
    await asyncio.sleep(0.9)

    assert not task.done(), "it may end by itself, in its protocol's way"

    await asyncio.sleep(0.2)
    with pytest.raises(Cancelled):
        await task
    assert harness.at_rest


@in_virtual_time
async def test_a_request_of_the_app_waits_at_the_gate_and_through_a_restart() -> None:
    harness = with_engine_app(max_concurrent=1)
    held = await harness.gate.enter()
    stats = some_stats(harness.instrumentation)
    task = start_embedding(harness, stats)
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
async def test_a_request_of_the_app_has_the_same_deadline(queued: bool, words: str) -> None:
    harness = with_engine_app(max_concurrent=1)
    held = await harness.gate.enter()
    stats = some_stats(harness.instrumentation)
    task = start_embedding(harness, stats, 5)
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
async def test_an_app_that_answers_its_deadline_itself_still_fails_with_it() -> None:
    """vLLM's handlers take the cancellation for a client that left, and answer."""
    harness = with_engine_app()

    async def answer() -> None:
        async with admit(
            harness, "POST", "/v1/embeddings", some_stats(harness.instrumentation), RequestOptions(timeout_s=5)
        ):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        await answer()

    assert harness.at_rest


@in_virtual_time
async def test_a_request_of_the_app_is_found_by_its_id_for_any_owner() -> None:
    """Several workers ask each other; only the one that has it checks the owner."""
    harness = StreamHarness()
    harness.engine.mounted["resp-1", "ann"] = some_stats()

    assert harness.engine_app.has_request("resp-1")
    assert not harness.engine_app.has_request("resp-2")

    harness.switch.lose()

    assert not harness.engine_app.has_request("resp-1")
