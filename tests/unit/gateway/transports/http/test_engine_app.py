"""vLLM's own app behind admission."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from gateway.domain import Cause
from gateway.engine.base import Route
from tests.support.harness import HttpHarness
from tests.support.mounted_app import with_mounted
from tests.support.time import in_virtual_time, settle


@in_virtual_time
async def test_vllms_own_paths_pass_the_same_admission() -> None:
    harness = with_mounted(HttpHarness())
    headers = {"Content-Type": "application/json"}
    works = await harness.request("POST", "/v1/embeddings", headers=headers, body=b'{"input": "x"}').finish()
    light = await harness.request("GET", "/v1/models").finish()

    assert works.json() == {"slots": 1, "input": "x"}
    assert light.json() == {"slots": 0}
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)], "only what used the engine counts as a generation"
    assert harness.at_rest


@pytest.mark.parametrize("unfinished", [False, True])
@in_virtual_time
async def test_a_client_that_leaves_while_it_waits_for_vllms_own_path_leaves_the_queue(unfinished: bool) -> None:
    harness = with_mounted(HttpHarness(max_concurrent=1))
    held = await harness.gate.enter()
    client = harness.request("POST", "/v1/embeddings", body=[b'{"input"', b': "x"}'], unfinished=unfinished)
    await settle()

    assert harness.gate.queued == int(not unfinished), "a request joins the queue only when it is complete"

    client.leave()
    await client.finish()

    assert (harness.gate.queued, client.started) == (0, False)
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]

    held.release()

    assert harness.at_rest


@in_virtual_time
async def test_a_body_that_arrived_in_the_queue_reaches_vllms_app() -> None:
    harness = with_mounted(HttpHarness(max_concurrent=1, max_body_bytes=100))
    held = await harness.gate.enter()
    headers = {"Content-Type": "application/json"}
    waits = harness.request("POST", "/v1/embeddings", headers=headers, body=[b'{"input"', b': "x"}'])
    too_large = await harness.request("POST", "/v1/embeddings", headers=headers, body=[b"x" * 60, b"x" * 60]).finish()

    assert too_large.status == 413

    held.release()
    await waits.finish()

    assert waits.json() == {"slots": 1, "input": "x"}
    assert harness.at_rest


@in_virtual_time
async def test_a_client_that_leaves_a_stream_of_vllms_app_frees_its_slot_at_any_token_rate() -> None:
    """A task group's cancellation passes over every task that is about to run. Where the next token is there as soon as
    the last one has been formatted, that is each stream at each try."""
    harness = HttpHarness()
    loop = asyncio.get_running_loop()
    tokens: set[asyncio.Future[None]] = set()
    turns = 0

    def engine_step() -> None:
        nonlocal turns
        turns += 1
        for token in tokens:
            token.set_result(None)
        tokens.clear()
        if turns < 1000:
            loop.call_soon(engine_step)

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            token = loop.create_future()
            tokens.add(token)
            await token
            yield b"data: {}\n\n"

    app = FastAPI()
    app.add_api_route("/v1/messages", lambda: StreamingResponse(chunks()), methods=["POST"])
    harness.engine.http = app
    harness.engine.routes = {("POST", "/v1/messages"): Route.USES_ENGINE}
    client = harness.request("POST", "/v1/messages", body=b"{}")
    await settle()
    loop.call_soon(engine_step)
    while not client.body:
        await asyncio.sleep(0)
    client.leave()
    left = turns
    await client.finish()

    assert turns - left < 20
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]
    assert harness.at_rest
