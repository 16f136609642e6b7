"""Caddy with the file that is shipped: events come one by one, leaving is noticed, nothing is sent twice. What it does
not do, and the other two do: give a request that was refused with 503 to another replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.deploy.proxies import caddy
from tests.deploy.replicas import EVENTS, EVERY_S, Kind, Replica
from tests.support.stream_client import Connection, ask

# It may have to be fetched first.
pytestmark = pytest.mark.timeout(600)

COMPRESSED = {"Accept-Encoding": "gzip, zstd"}


@asynccontextmanager
async def _behind(folder: Path, *kinds: Kind) -> AsyncIterator[tuple[int, list[Replica]]]:
    replicas = [Replica(kind) for kind in kinds]
    for replica in replicas:
        await replica.open()
    proxy = caddy(folder, replicas)
    port = await asyncio.to_thread(proxy.__enter__)
    try:
        yield port, replicas
    finally:
        for replica in replicas:
            replica.close()
        await asyncio.to_thread(proxy.__exit__, None, None, None)


def test_events_come_one_by_one_and_leaving_is_noticed(tmp_path: Path) -> None:
    async def read_and_leave() -> None:
        async with _behind(tmp_path, Kind.STREAMS) as (port, (replica,)):
            connection = await Connection.open(port, {}, headers=COMPRESSED)
            head = await connection.head()
            began_s, reads = time.monotonic(), 0
            while await connection.chunk():
                reads += 1
            assert (head.status, head.headers.get("content-encoding")) == (200, None)
            assert reads >= EVENTS / 2
            assert time.monotonic() - began_s > EVENTS * EVERY_S / 2
            await connection.rest()

            leaving = await Connection.open(port, {}, headers=COMPRESSED)
            await leaving.head()
            await leaving.chunk()
            leaving.writer.close()
            await leaving.writer.wait_closed()
            await asyncio.sleep(0.5)
            assert replica.left == 1

    asyncio.run(read_and_leave())


def test_nothing_is_sent_twice_and_a_server_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    async def break_and_die() -> None:
        async with _behind(tmp_path, Kind.BREAKS, Kind.SERVES) as (port, (broken, serving)):
            statuses = [(await ask(port, {})).status for _ in range(12)]
            assert statuses.count(502) == broken.begun == 1
            assert statuses.count(200) == serving.begun == 11

    asyncio.run(break_and_die())


def test_paths_for_the_cluster_are_not_public(tmp_path: Path) -> None:
    paths = ["/metrics", "/metrics%0a", "//metrics", "/%6detrics", "/metrics/", "/metrics;a", "/livez", "/livez%20"]

    async def try_all() -> None:
        async with _behind(tmp_path, Kind.SERVES) as (port, (replica,)):
            assert {(await ask(port, None, method="GET", path=path)).status for path in paths} == {404}
            assert (await ask(port, None, method="GET", path="/v1/models")).status == 200
            assert replica.asked == 1

    asyncio.run(try_all())
