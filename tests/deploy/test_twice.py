"""No answer is generated twice: what two replicas behind the proxies have made is what the clients have got, when an
engine dies, a drain is over or a gateway is killed under a whole answer; and what was refused is served elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.deploy.callers import ask
from tests.deploy.conftest import STEP_MS, environment
from tests.deploy.proxies import PROXIES
from tests.support.server import Server, poll
from tests.support.stream_client import Answer, completion

# The first test may have to fetch a Debian package, and starts the servers.
pytestmark = pytest.mark.timeout(600)

TOKENS = 200
LASTS_S = TOKENS * STEP_MS / 1000
EACH = 4
"""Requests through each proxy: some come to either replica."""

Fleet = dict[str, Server]


@pytest.fixture(scope="module")
def fleet(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One replica that stays, one to be killed, and one to be drained, which first loses an engine."""
    env = environment(tmp_path_factory.mktemp("keys")) | {"SLUICE_SERVER__DRAIN_TIMEOUT_S": "2"}
    doomed = {name: Server(tmp_path_factory.mktemp(name), env=env) for name in ("killed", "drained")}
    try:
        yield {"stays": pair[0], **doomed}
    finally:
        for server in doomed.values():
            server.close()


@pytest.fixture
def proxies(
    fleet: Fleet, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[int]]:
    """The ports of both proxies, each before the replica that stays and the other one of this test."""
    name, healthy = request.param
    servers = [fleet["stays"], fleet[name]]
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in PROXIES]
        yield [
            stack.enter_context(start(folder, servers, healthy))
            for folder, start in zip(folders, PROXIES.values(), strict=True)
        ]


def _before(other: str, healthy: int = 2) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("proxies", [(other, healthy)], ids=[""], indirect=True)


def _made(server: Server) -> float:
    return server.sample("vllm:generation_tokens_total")


async def _whole(port: int, first: int, tokens: int = TOKENS, **more: object) -> Answer:
    return await ask(port, {**completion(first, tokens, **more), "stream": False})


async def _under(
    proxies: list[int], servers: list[Server], fault: Callable[[], Awaitable[None]], **more: object
) -> list[Answer]:
    """Whole answers through both proxies, with both replicas at work on some of them when the fault comes."""
    asked = [asyncio.create_task(_whole(port, n, **more)) for port in proxies for n in range(EACH)]

    def busy() -> bool:
        running = [server.sample("vllm:num_requests_running") for server in servers]
        return all(running) and sum(running) == len(asked)

    await asyncio.to_thread(poll, "both replicas work", busy, LASTS_S / 2, 0.05)
    await fault()
    return await asyncio.gather(*asked)


def _delivered(answers: list[Answer]) -> int:
    return sum(json.loads(one.body)["usage"]["completion_tokens"] for one in answers if one.status == 200)


def _codes(answers: list[Answer]) -> set[tuple[int, str, bool]]:
    errors = [(one.status, json.loads(one.body)["error"]) for one in answers if one.status != 200]
    return {(status, error["code"], error["retryable"]) for status, error in errors}


@_before("drained", healthy=1)
def test_a_replica_that_starts_costs_nothing(proxies: list[int], fleet: Fleet) -> None:
    before = _made(fleet["stays"])
    fleet["drained"].wait_open()
    refused = fleet["drained"].http.get("/readyz").status_code

    async def some() -> list[Answer]:
        return [await _whole(port, n, 5) for port in proxies for n in range(EACH)]

    answers = asyncio.run(some())

    assert refused == 503, "it was ready before anything was tried"
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert _made(fleet["stays"]) - before == _delivered(answers)
    for server in fleet.values():
        server.wait_ready()


@_before("killed")
def test_a_gateway_is_killed(proxies: list[int], fleet: Fleet) -> None:
    stays, killed = fleet["stays"], fleet["killed"]
    before = _made(stays)

    async def kill() -> None:
        os.kill(killed.pid, signal.SIGKILL)

    answers = asyncio.run(_under(proxies, [stays, killed], kill))
    stays.wait_idle()

    assert _codes(answers) == {(502, "bad_gateway", True)}
    assert _made(stays) - before == _delivered(answers), "what was lost was not made again"


@_before("drained")
def test_an_engine_dies_under_answers_that_cannot_go_on(proxies: list[int], fleet: Fleet) -> None:
    """Those fail at once; while the next engine starts, what comes is served by the other replica."""
    stays, other = fleet["stays"], fleet["drained"]
    before = _made(stays)
    later: list[Answer] = []

    async def kill() -> None:
        os.kill(other.engine_pid(), signal.SIGKILL)
        await asyncio.to_thread(
            poll, "the engine is down", lambda: other.http.get("/readyz").status_code == 503, 5, 0.02
        )
        later.extend([await _whole(port, 50 + n, 5) for port in proxies for n in range(2)])

    answers = asyncio.run(_under(proxies, [stays, other], kill, presence_penalty=1.5))
    stays.wait_idle()

    assert _codes(answers) == {(500, "engine_failed", True)}
    assert [answer.status for answer in later] == [200] * len(later)
    assert _made(stays) - before == _delivered(answers) + _delivered(later)
    other.wait_ready()


@_before("drained")
def test_a_drain_is_over_before_its_answers_are(proxies: list[int], fleet: Fleet) -> None:
    """Until then, what comes is served by the other replica."""
    stays, drained = fleet["stays"], fleet["drained"]
    before = _made(stays)
    later: list[Answer] = []

    async def drain() -> None:
        os.kill(drained.pid, signal.SIGTERM)
        await asyncio.to_thread(poll, "it drains", lambda: drained.http.get("/readyz").status_code == 503, 5, 0.02)
        later.extend([await _whole(port, 60 + n, 5) for port in proxies for n in range(2)])

    answers = asyncio.run(_under(proxies, [stays, drained], drain))
    stays.wait_idle()

    assert _codes(answers) == {(500, "server_draining", True)}
    assert [answer.status for answer in later] == [200] * len(later)
    assert _made(stays) - before == _delivered(answers) + _delivered(later)
    assert drained.process.wait(20) == 0
