from __future__ import annotations

import asyncio

from gateway.domain import Cause
from gateway.engine.base import Route
from gateway.engine.supervisor import Phase
from tests.support.harness import HttpHarness
from tests.support.time import in_virtual_time, settle


@in_virtual_time
async def test_a_drain_refuses_new_requests_and_lets_running_ones_finish() -> None:
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
async def test_a_drain_reports_its_refusals_on_vllms_own_endpoints() -> None:
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
