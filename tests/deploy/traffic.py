"""Everything that a server counts, made to happen: whole answers, resumed, slow and broken off ones, too many at once,
and the death of an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.deploy.conftest import PLACES, SEATS
from tests.faults.reader import COMPLETIONS, Connection, ask, completion
from tests.support.server import Server, poll

FOREVER = 5000


async def _leave(port: int) -> None:
    connection = await Connection.open(port, completion(3, FOREVER))
    await connection.head()
    for _ in range(5):
        await connection.chunk()
    connection.writer.close()


async def _cancel(port: int) -> None:
    connection = await Connection.open(port, completion(4, FOREVER))
    answer = await connection.head()
    await connection.chunk()
    await ask(port, {}, method="DELETE", path=f"/v1/streams/{answer.headers['x-stream-id']}")
    await connection.rest()


async def _come_back(port: int) -> None:
    connection = await Connection.open(port, completion(5, 60), headers={"X-Stream-Resumable": "20"})
    answer = await connection.head()
    while len(answer.ids) < 5:
        await connection.chunk()
    connection.writer.close()
    path = f"/v1/streams/{answer.headers['x-stream-id']}"
    await ask(port, {}, method="GET", path=path, headers={"Last-Event-ID": str(answer.ids[-1])})


async def _be_late(port: int) -> None:
    await ask(port, completion(6, FOREVER), headers={"X-Request-Timeout": "0.5"})


async def _round(port: int) -> None:
    """Most of a server's seats, for a second or two."""
    whole = {**completion(7, 40), "stream": False}
    await asyncio.gather(
        ask(port, completion(1, 60)),
        ask(port, completion(2, 60)),
        ask(port, whole),
        ask(port, {}, method="GET", path="/v1/models"),
        _leave(port),
        _cancel(port),
        _come_back(port),
        _be_late(port),
    )


async def _too_many(port: int) -> None:
    answers = [ask(port, completion(n, 60)) for n in range(SEATS + PLACES + 10)]
    refused = [answer.status for answer in await asyncio.gather(*answers)].count(503)
    assert refused > 0


async def _rounds(ports: list[int], seconds: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        await asyncio.gather(*map(_round, ports))


def drive(servers: tuple[Server, Server]) -> None:
    """Half a minute of it; the second server's engine dies on the way, and its streams go on."""
    first, second = servers
    ports = [server.port for server in servers]
    asyncio.run(_rounds(ports, 8))

    async def die() -> None:
        streams = [
            await Connection.open(second.port, completion(n, 100), path=COMPLETIONS, headers={"X-Request-Id": f"s{n}"})
            for n in range(4)
        ]
        for stream in streams:
            await stream.head()
            await stream.chunk()
        os.kill(second.engine_pid(), signal.SIGKILL)
        for number, stream in enumerate(streams):
            assert (await stream.rest()).exact(number, 100)

    asyncio.run(die())
    poll("the second server is ready again", lambda: second.http.get("/readyz").status_code == 200, 60, 0.25)
    asyncio.run(_too_many(first.port))
    asyncio.run(_rounds(ports, 6))
