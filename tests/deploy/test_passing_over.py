"""Which requests the proxies give to a second replica: those for which the first has done nothing, and no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.deploy.proxies import PROXIES
from tests.deploy.replicas import Kind, Replica
from tests.support.stream_client import Answer, ask

# The first test may have to fetch a Debian package.
pytestmark = pytest.mark.timeout(600)

REQUESTS = 6
SERVES, REFUSES, FAILS, BREAKS, DEAD = Kind.SERVES, Kind.REFUSES, Kind.FAILS, Kind.BREAKS, Kind.DEAD


@asynccontextmanager
async def _behind(name: str, folder: Path, kinds: Sequence[Kind]) -> AsyncIterator[tuple[int, list[Replica]]]:
    """A proxy's port, and the replicas behind it; the dead ones die when it has seen them alive."""
    replicas = [Replica(kind) for kind in kinds]
    for replica in replicas:
        await replica.open()
    proxy = PROXIES[name](folder, replicas)
    port = await asyncio.to_thread(proxy.__enter__)
    try:
        for replica in replicas:
            if replica.kind is DEAD:
                replica.close()
        yield port, replicas
    finally:
        await asyncio.to_thread(proxy.__exit__, None, None, None)
        for replica in replicas:
            replica.close()


def _through(
    name: str, folder: Path, kinds: Sequence[Kind], client: Callable[[int, list[Replica]], Awaitable[list[Answer]]]
) -> tuple[list[Answer], list[Replica]]:
    async def run() -> tuple[list[Answer], list[Replica]]:
        async with _behind(name, folder, kinds) as (port, replicas):
            return await client(port, replicas), replicas

    return asyncio.run(run())


# How clients ask Envoy to try again.
_AGAIN = {"x-envoy-retry-on": "5xx,reset", "x-envoy-max-retries": "3"}


async def _one_by_one(port: int, _: list[Replica]) -> list[Answer]:
    return [await ask(port, {"stream": False}, headers=_AGAIN) for _ in range(REQUESTS)]


@pytest.mark.parametrize(
    "kinds", [(REFUSES, SERVES), (DEAD, SERVES), (REFUSES, DEAD, SERVES), (REFUSES, REFUSES, SERVES)]
)
@pytest.mark.parametrize("name", PROXIES)
def test_a_replica_that_has_done_nothing_costs_the_client_nothing(
    name: str, kinds: Sequence[Kind], tmp_path: Path
) -> None:
    answers, replicas = _through(name, tmp_path, kinds, _one_by_one)

    assert [answer.status for answer in answers] == [200] * REQUESTS
    assert replicas[-1].begun == REQUESTS


@pytest.mark.parametrize("kinds", [(FAILS, SERVES), (BREAKS, SERVES), (BREAKS, BREAKS)])
@pytest.mark.parametrize("name", PROXIES)
def test_a_request_that_has_begun_is_not_begun_elsewhere(name: str, kinds: Sequence[Kind], tmp_path: Path) -> None:
    answers, replicas = _through(name, tmp_path, kinds, _one_by_one)
    broken = [answer for answer in answers if answer.status == 502]

    assert sum(replica.begun for replica in replicas) == REQUESTS
    assert sum(answer.status == 200 for answer in answers) == sum(one.begun for one in replicas if one.kind is SERVES)
    assert sum(answer.status == 500 for answer in answers) == sum(one.begun for one in replicas if one.kind is FAILS)
    assert len(broken) == sum(one.begun for one in replicas if one.kind is BREAKS)
    # Official clients send these again, if they like; that is their decision.
    assert all(json.loads(answer.body)["error"]["retryable"] for answer in broken)


@pytest.mark.parametrize("name", PROXIES)
def test_a_refusal_by_all_servers_reaches_the_client_unchanged(name: str, tmp_path: Path) -> None:
    answers, replicas = _through(name, tmp_path, (REFUSES, REFUSES), _one_by_one)

    assert [(answer.status, answer.headers["retry-after"], answer.body) for answer in answers] == [
        (503, "7", b"overloaded")
    ] * REQUESTS
    assert all(replica.asked for replica in replicas)


@pytest.mark.parametrize("name", PROXIES)
def test_without_a_server_the_client_gets_an_error(name: str, tmp_path: Path) -> None:
    """503, since nothing has been done."""
    answers, _ = _through(name, tmp_path, (DEAD, DEAD), _one_by_one)

    for answer in answers:
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert json.loads(answer.body)["error"]["code"] == "unreachable"


INSIDE = [
    "/metrics", "/metrics%0a", "/metrics%0A", "/metrics%0d%0a", "/metrics%20", "/metrics%00", "/metrics/", "/metrics;a",
    "/metrics?x=1", "//metrics", "/./metrics", "/v1/../metrics", "/%6detrics", "/%6Detrics%0a", "/livez", "/livez%0a",
    "//livez", "/v1/models%0a", "/v1/%7fmodels",
]  # fmt: skip


@pytest.mark.parametrize("name", PROXIES)
def test_no_spelling_of_what_is_for_the_cluster_gets_through(name: str, tmp_path: Path) -> None:
    async def try_all(port: int, _: list[Replica]) -> list[Answer]:
        passing = [await ask(port, None, method="GET", path=path) for path in ("/v1/models/a%2Fb", "/metric")]
        assert [answer.status for answer in passing] == [200, 200]
        # At once: Envoy takes a second to close the connection of an answer of its own.
        return await asyncio.gather(*(ask(port, None, method="GET", path=path) for path in INSIDE))

    answers, replicas = _through(name, tmp_path, (SERVES,), try_all)

    assert {path: answer.status for path, answer in zip(INSIDE, answers, strict=True)} == {
        path: answer.status if answer.status in (400, 404) else 404
        for path, answer in zip(INSIDE, answers, strict=True)
    }
    assert sum(replica.asked for replica in replicas) == 2
