"""Everything that a server counts, made to happen: whole answers, resumed, slow and broken off ones, readers who stop,
too many requests at once, more tokens than the KV cache holds, and the death of an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.deploy.callers import ANNA, BERT, ask, connect
from tests.deploy.conftest import BLOCK, CONTEXT, PLACES, SLOTS, STALL_TIMEOUT_S
from tests.support.deterministic_text import expected_text
from tests.support.server import Server, poll
from tests.support.stream_client import COMPLETIONS, completion
from tests.support.stuck_client import WORDY, StuckClient

FOREVER = 5000


async def _leave(port: int) -> None:
    connection = await connect(port, completion(3, FOREVER))
    await connection.head()
    for _ in range(5):
        await connection.chunk()
    connection.writer.close()


async def _cancel(port: int) -> None:
    connection = await connect(port, completion(4, FOREVER))
    answer = await connection.head()
    await connection.chunk()
    await ask(port, {}, method="DELETE", path=f"/v1/streams/{answer.headers['x-stream-id']}")
    await connection.rest()


async def _come_back(port: int) -> None:
    connection = await connect(port, completion(5, 60), headers={"X-Stream-Resumable": "20"})
    answer = await connection.head()
    while len(answer.ids) < 5:
        await connection.chunk()
    connection.writer.close()
    path = f"/v1/streams/{answer.headers['x-stream-id']}"
    await ask(port, {}, method="GET", path=path, headers={"Last-Event-ID": str(answer.ids[-1])})


async def _be_late(port: int) -> None:
    await ask(port, completion(6, FOREVER), headers={"X-Request-Timeout": "0.5"})


async def _round(port: int) -> None:
    """Most of a server's slots, for a second or two."""
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


async def _rounds(ports: list[int], seconds: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        await asyncio.gather(*map(_round, ports))


def _be_slow(server: Server) -> None:
    """Stop for a while, less than the server waits, then read on: what was missed comes whole, in fewer events."""
    reader = StuckClient(server, completion(8, 400, **WORDY), ANNA)
    poll("something cannot be sent", lambda: server.samples()["sluice_unsent_bytes"] > 0, 20, 0.1)
    time.sleep(STALL_TIMEOUT_S * 0.8)
    answer = reader.read()
    reader.close()
    assert answer.exact(8, 400)
    assert len(answer.documents) < 390, "nothing was merged"


def _stop_reading(server: Server) -> None:
    """Stop until the server has had enough."""
    reader = StuckClient(server, completion(9, FOREVER, **WORDY), ANNA)
    poll("the reader was let go", reader.dropped, 30, 0.1)
    reader.close()


async def _readers(first: Server, second: Server, seconds: float) -> None:
    """Rounds, and a slow reader at one server and one who stopped at the other."""
    await asyncio.gather(
        _rounds([first.port, second.port], seconds),
        asyncio.to_thread(_be_slow, first),
        asyncio.to_thread(_stop_reading, second),
    )


async def _too_many(port: int) -> None:
    answers = [ask(port, completion(n, 60)) for n in range(SLOTS + PLACES + 10)]
    refused = [answer.status for answer in await asyncio.gather(*answers)].count(503)
    assert refused > 0


async def _too_long(port: int) -> None:
    """One request a slot; the prompts together just fit into the KV cache, with their answers they do not."""
    prompts = [[400 + number, *[301] * (CONTEXT // SLOTS - BLOCK - 1)] for number in range(SLOTS)]
    bodies = [{**completion(0, 100), "prompt": prompt} for prompt in prompts]
    answers = await asyncio.gather(*[ask(port, body, caller=BERT) for body in bodies])
    assert [answer.text for answer in answers] == [expected_text(prompt, 100) for prompt in prompts]
    # The last has its place in the cache still.
    await ask(port, {**completion(0, 5), "prompt": prompts[0]})


async def _through_a_death(server: Server) -> None:
    """The engine dies, and its streams go on."""
    streams = [
        await connect(server.port, completion(n, 100), path=COMPLETIONS, headers={"X-Request-Id": f"s{n}"})
        for n in range(4)
    ]
    for stream in streams:
        await stream.head()
        await stream.chunk()
    os.kill(server.engine_pid(), signal.SIGKILL)
    while (await ask(server.port, {}, method="GET", path="/readyz")).status != 503:
        await asyncio.sleep(0.02)
    assert (await ask(server.port, completion(9, 1))).status == 503, "what comes now is refused"
    for number, stream in enumerate(streams):
        assert (await stream.rest()).exact(number, 100)


def drive(servers: tuple[Server, Server]) -> None:
    """Three quarters of a minute of it; the second server's engine dies on the way."""
    first, second = servers
    asyncio.run(_readers(first, second, 8))
    asyncio.run(_through_a_death(second))
    poll("the second server is ready again", lambda: second.http.get("/readyz").status_code == 200, 60, 0.25)
    asyncio.run(_too_many(first.port))
    asyncio.run(_too_long(first.port))
    asyncio.run(_rounds([first.port, second.port], 6))
