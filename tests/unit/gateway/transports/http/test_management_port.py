from __future__ import annotations

import pytest

from tests.support.asgi import Client
from tests.support.engine import ScriptedEngine
from tests.support.time import in_virtual_time
from tests.unit.gateway.test_app import Process


async def started(**server: object) -> Process:
    async def launch() -> ScriptedEngine:
        return ScriptedEngine()

    process = Process(launch, **server)
    await process.start()
    return process


APART = ["/metrics", "/docs", "/openapi.json"]


@pytest.mark.parametrize(
    "path", [*APART, "/metrics/", "/metrics\n", "/docs/", "//metrics", "/docs/oauth2-redirect", "/redoc"]
)
@in_virtual_time
async def test_with_a_management_port_the_other_has_neither_metrics_nor_documents(path: str) -> None:
    process = await started(management_port=0)
    answer = await process.client("GET", path).finish()

    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")

    await process.stop()


@pytest.mark.parametrize("path", [*APART, "/livez", "/readyz", "/health", "/version"])
@in_virtual_time
async def test_the_management_port_has_them_and_health(path: str) -> None:
    process = await started(management_port=0)

    assert (await Client(process.sluice.management, "GET", path).finish()).status == 200

    await process.stop()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/streams/x", "/v1/models", "/", "/metricsx"])
@in_virtual_time
async def test_the_management_port_has_nothing_else(path: str) -> None:
    process = await started(management_port=0)
    for method in ("GET", "POST"):
        assert (await Client(process.sluice.management, method, path, body=b"{}").finish()).status == 404

    await process.stop()


@in_virtual_time
async def test_health_is_on_both() -> None:
    process = await started(management_port=0)
    for path in ("/livez", "/readyz", "/health"):
        assert (await process.client("GET", path).finish()).status == 200

    await process.stop()


@in_virtual_time
async def test_without_a_management_port_everything_is_on_one() -> None:
    process = await started()

    assert process.sluice.management is None
    for path in APART:
        assert (await process.client("GET", path).finish()).status == 200

    await process.stop()
