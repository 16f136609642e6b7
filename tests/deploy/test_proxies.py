"""What a client gets through the proxies whose files are shipped is what it gets without: live, whole, and cancelled
when it leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from statistics import median

import pytest

from tests.deploy.callers import ask, connect
from tests.deploy.conftest import KEEPALIVE_S, PLACES, SLOTS, STEP_MS
from tests.deploy.proxies import PROXIES
from tests.support.server import Server, poll
from tests.support.stream_client import Answer, Connection, completion

# The first test may have to fetch a Debian package, and starts the servers.
pytestmark = pytest.mark.timeout(600)

TOKENS = 60
LASTS_S = TOKENS * STEP_MS / 1000


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest, pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a proxy before both servers."""
    with PROXIES[request.param](tmp_path_factory.mktemp(request.param), pair) as port:
        yield port


def _live(answer: Answer) -> bool:
    """Whether tokens came as they were made: spread over the time that the engine takes, and most by themselves."""
    spread_s = answer.arrivals_s[-1] - answer.arrivals_s[0]
    return len(answer.arrivals_s) >= TOKENS // 2 and spread_s >= LASTS_S / 2


def _summary(name: str, answer: Answer) -> str:
    first_ms = 1000 * (answer.arrivals_s[0] - answer.sent_s)
    gaps_ms = [1000 * (b - a) for a, b in zip(answer.arrivals_s, answer.arrivals_s[1:], strict=False)] or [0.0]
    spread_s = answer.arrivals_s[-1] - answer.arrivals_s[0]
    return (
        f"{name}: {len(answer.arrivals_s)} reads over {spread_s:.2f} s, first after {first_ms:.0f} ms, "
        f"gap p50 {median(gaps_ms):.1f} ms, max {max(gaps_ms):.0f} ms"
    )


def test_tokens_come_live(proxy: int, pair: tuple[Server, Server], request: pytest.FixtureRequest) -> None:
    direct = asyncio.run(ask(pair[0].port, completion(1, TOKENS)))
    through = asyncio.run(ask(proxy, completion(1, TOKENS)))
    print(_summary("direct", direct), "|", _summary(request.node.name, through))

    assert direct.exact(1, TOKENS)
    assert through.exact(1, TOKENS)
    assert _live(direct)
    assert _live(through)


def test_tokens_come_live_after_a_large_body(proxy: int) -> None:
    """Larger than any buffer of a proxy; the server takes up to 16 MiB."""
    answer = asyncio.run(ask(proxy, completion(2, TOKENS, user="x" * 4_000_000)))

    assert answer.exact(2, TOKENS)
    assert _live(answer)


def test_comments_come_live(proxy: int, pair: tuple[Server, Server]) -> None:
    """While a request waits for a slot, its client gets keep-alives."""

    async def wait_in_the_queue() -> tuple[list[float], Connection]:
        sitting = [await connect(one.port, completion(n, 5000)) for one in pair for n in range(SLOTS)]
        for connection in sitting:
            await connection.head()
            await connection.chunk()
        waiting = await connect(proxy, completion(99, 5))
        await waiting.head()
        comments_s: list[float] = []
        while len(comments_s) < 5:
            assert await waiting.chunk() == b": keep-alive\n"
            comments_s.append(time.monotonic())
        for connection in sitting:
            connection.writer.close()
        await waiting.rest()
        return comments_s, waiting

    comments_s, waiting = asyncio.run(wait_in_the_queue())

    assert comments_s[-1] - comments_s[0] == pytest.approx(4 * KEEPALIVE_S, abs=2 * KEEPALIVE_S)
    assert waiting.answer.finish == ["length"]
    for server in pair:
        server.wait_idle()


def test_a_client_that_leaves_cancels(proxy: int, pair: tuple[Server, Server]) -> None:
    before = sum(server.ended("disconnected") for server in pair)

    async def leave() -> None:
        connection = await connect(proxy, completion(3, 5000))
        await connection.head()
        await connection.chunk()
        connection.writer.close()

    asyncio.run(leave())

    poll("the request was cancelled", lambda: sum(one.ended("disconnected") for one in pair) == before + 1, 10)
    for server in pair:
        server.wait_idle()


async def _fill(*servers: Server) -> list[Connection]:
    """Every slot taken, and as many waiting as may wait; their heads come with their first comment."""
    taken = []
    for server in servers:
        sitting = [await connect(server.port, completion(n, 5000)) for n in range(SLOTS)]
        for connection in sitting:
            await connection.head()
            await connection.chunk()
        waiting = [await connect(server.port, completion(n, 5)) for n in range(PLACES)]
        for connection in waiting:
            await connection.head()
        taken += sitting + waiting
    return taken


async def _while_full(proxy: int, servers: Sequence[Server], requests: int) -> list[Answer]:
    taken = await _fill(*servers)
    for server in servers:
        found = await asyncio.to_thread(server.samples)
        # What endpoint pickers and autoscalers look at.
        assert (found["sluice_requests_waiting"], found["vllm:num_requests_waiting"]) == (PLACES, PLACES)
    answers = [await ask(proxy, completion(n, 5)) for n in range(requests)]
    for connection in taken:
        connection.writer.close()
    return answers


def test_a_full_server_is_passed_over(proxy: int, pair: tuple[Server, Server]) -> None:
    answers = asyncio.run(_while_full(proxy, pair[:1], 6))

    assert [answer.status for answer in answers] == [200] * 6
    assert all(answer.exact(n, 5) for n, answer in enumerate(answers))
    for server in pair:
        server.wait_idle()


def test_the_refusal_of_a_full_server_reaches_the_client_unchanged(proxy: int, pair: tuple[Server, Server]) -> None:
    """However often: a proxy that takes refusals for failures would have no server in the end, and answer 502."""
    answers = asyncio.run(_while_full(proxy, pair, 12))

    assert [answer.status for answer in answers] == [503] * 12
    assert all("retry-after" in answer.headers and b'"overloaded"' in answer.body for answer in answers)
    for server in pair:
        server.wait_idle()


@pytest.mark.parametrize("path", ["/metrics", "/livez"])
def test_paths_for_the_cluster_are_not_public(proxy: int, path: str) -> None:
    assert asyncio.run(ask(proxy, {}, method="GET", path=path)).status == 404


def test_the_test_would_notice(pair: tuple[Server, Server]) -> None:
    """What passes a proxy that gathers the answer first is not live."""

    async def gather(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", pair[0].port)
        to_server.write(await reader.read(2**20))
        writer.write(await from_server.read(-1))
        await writer.drain()
        writer.close()
        to_server.close()

    async def through() -> Answer:
        async with await asyncio.start_server(gather, "127.0.0.1", 0) as server:
            return await ask(server.sockets[0].getsockname()[1], completion(1, TOKENS))

    answer = asyncio.run(through())

    assert answer.exact(1, TOKENS)
    assert not _live(answer)


def test_the_proxies_own_checks_pass_on_the_files(
    pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Such as that a key is deprecated."""
    for name, start in PROXIES.items():
        folder = tmp_path_factory.mktemp(f"{name}-start")
        with start(folder, pair):
            pass
        lines = (folder / "output.log").read_text(encoding="utf-8").splitlines()
        # Envoy warns of the signal that ends it.
        logged = "\n".join(line for line in lines if "ENVOY_SIGTERM" not in line)
        assert "deprecated" not in logged.lower()
        assert "[warn" not in logged
