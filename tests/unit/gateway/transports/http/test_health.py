from __future__ import annotations

import asyncio

import pytest

from gateway.engine.supervisor import Phase
from tests.support.harness import HttpHarness
from tests.support.time import in_virtual_time


@pytest.mark.parametrize("path", ["/readyz", "/health"])
@in_virtual_time
async def test_ready_is_200_only_when_a_request_sent_now_would_be_served(path: str) -> None:
    harness = HttpHarness(ready=False)
    starting = await harness.request("GET", path).finish()

    assert (starting.status, starting.json()["status"]) == (503, "server_starting")
    assert starting.headers["retry-after"] == "30"
    assert starting.error()["retryable"] is True

    harness.supervisor.phase, harness.supervisor._engine = Phase.UP, harness.engine
    up = await harness.request("GET", path).finish()

    assert (up.status, up.json()) == (200, {"status": "ready"})

    harness.supervisor.phase = Phase.RESTARTING
    restarting = await harness.request("GET", path).finish()

    assert (restarting.status, restarting.json()["status"]) == (503, "engine_failed")
    assert restarting.error()["retryable"] is True

    harness.supervisor.phase = Phase.FAILED
    failed = await harness.request("GET", path).finish()

    assert (failed.status, failed.json()["status"]) == (503, "engine_failed")


@pytest.mark.parametrize(
    ("phase", "status", "word"),
    [
        (Phase.STARTING, 200, "alive"),
        (Phase.UP, 200, "alive"),
        (Phase.RESTARTING, 200, "alive"),
        (Phase.FAILED, 503, "failed"),
    ],
)
@in_virtual_time
async def test_live_is_200_while_the_process_need_not_be_restarted(phase: Phase, status: int, word: str) -> None:
    """A start takes minutes; killing the process for it would start it over."""
    harness = HttpHarness()
    harness.supervisor.phase = phase
    client = await harness.request("GET", "/livez").finish()

    assert (client.status, client.json()) == (status, {"status": word})


@in_virtual_time
async def test_health_is_answered_while_the_queue_is_full() -> None:
    harness = HttpHarness(max_concurrent=1, max_waiting=0)
    held = await harness.gate.enter()
    answers = [await harness.request("GET", path).finish() for path in ("/livez", "/readyz", "/health", "/metrics")]

    assert [answer.status for answer in answers] == [200] * 4

    held.release()


@in_virtual_time
async def test_metrics_have_prometheus_content_type() -> None:
    client = await HttpHarness().request("GET", "/metrics").finish()

    assert client.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert client.body == b"sluice_numbers 1\n"


@in_virtual_time
async def test_the_version_names_us_and_the_engine() -> None:
    assert (await HttpHarness().request("GET", "/version").finish()).json() == {
        "sluice": "0.1.0",
        "vllm": "scripted",
        "version": "scripted",
    }


@in_virtual_time
async def test_probes_count_as_requests_without_generation() -> None:
    harness = HttpHarness()
    await asyncio.gather(*(harness.request("GET", path).finish() for path in ("/livez", "/readyz")))

    assert harness.instrumentation.endings == []
    assert harness.instrumentation.labels == [("/livez", "ok"), ("/readyz", "ok")]
