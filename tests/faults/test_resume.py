"""A stream that is cut and resumed has the same bytes as one that was not, wherever it is cut, live or finished; the
events kept for it stay within their limits and are readable by their owner only.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import struct
import time
from contextlib import suppress
from typing import Any

import httpx

from loadtest.bench.client import quantile
from tests.faults.conftest import RETENTION_S, STREAM_BYTES, TOTAL_BYTES, Shared
from tests.support.deterministic_text import expected_text
from tests.support.server import ASK, CHAT, MODEL, Server, poll
from tests.support.stream_client import COMPLETIONS, Answer, Connection, ask, completion, prompt

SEED = 11
FIRST_BYTE_WITHIN_S = 0.05
GRACE = {"X-Stream-Resumable": "60"}

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"word": {"type": "string", "maxLength": 10}, "sure": {"type": "boolean"}},
            "required": ["word", "sure"],
            "additionalProperties": False,
        },
    },
}
# name -> (path, what is asked)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": ASK}),
    "completion": (COMPLETIONS, {"prompt": "Sluice is", "max_tokens": 24}),
    "tools": (CHAT, {"messages": WEATHER, "tools": [TOOL]}),
    "reasoning": (CHAT, {"messages": ASK, "chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 60}),
    "structured output": (CHAT, {"messages": ASK, "response_format": SCHEMA, "max_tokens": 80}),
    "n = 2": (CHAT, {"messages": ASK, "n": 2, "temperature": 1, "seed": 3, "max_tokens": 24}),
    "logprobs": (CHAT, {"messages": ASK, "logprobs": True, "top_logprobs": 2, "max_tokens": 16}),
}


def seen(body: bytes) -> tuple[bytes, int]:
    """What a reader keeps of a cut body: complete events without comments, and the number of the last one."""
    complete = body[: body.rfind(b"\n\n") + 2] if b"\n\n" in body else b""
    lines = [line for line in complete.split(b"\n") if not line.startswith(b":")]
    ids = [line for line in lines if line.startswith(b"id: ")]
    return b"\n".join(lines), int(ids[-1][4:]) if ids else 0


class Line:
    """A connection that is used again and again to fetch rests of streams."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.first_byte_s: list[float] = []

    def rest(self, stream_id: str, cursor: int, *, by_query: bool = False) -> tuple[int, bytes]:
        """Status and body of what comes after event number `cursor`."""
        path = f"/v1/streams/{stream_id}" + (f"?starting_after={cursor}" if by_query else "")
        asked_s = time.perf_counter()
        self._http.request("GET", path, headers={} if by_query else {"Last-Event-ID": str(cursor)})
        response = self._http.getresponse()
        first = response.read(1)
        self.first_byte_s.append(time.perf_counter() - asked_s)
        return response.status, first + response.read()

    def close(self) -> None:
        self._http.close()


def finished(server: Server, kind: str, **more: Any) -> tuple[str, bytes]:
    """A finished stream's id and its events."""
    path, body = KINDS[kind]
    body = {"model": MODEL, "temperature": 0, "stream": True, **body, **more}
    answer = server.http.post(path, json=body, headers=GRACE)
    assert answer.status_code == 200, answer.text
    events, _ = seen(answer.content)
    assert events.endswith(b"data: [DONE]\n\n"), events[-300:]
    assert b'"error"' not in events
    return answer.headers["x-stream-id"], events


def test_joined_bytes_equal_uncut_ones_at_every_position(demo: Server, full: bool, figure: Any) -> None:
    """One stream at every byte; streams of all kinds at random ones, each rest cut once more."""
    line = Line(demo.port)
    stream_id, uncut = finished(demo, "chat", max_tokens=8)
    differences = 0
    for cut in range(len(uncut) + 1):
        kept, cursor = seen(uncut[:cut])
        status, rest = line.rest(stream_id, cursor)
        differences += kept + rest != uncut or status != (204 if kept == uncut else 200)
    figure("resume", f"a stream cut at each of its {len(uncut)} bytes: differences", str(differences), "0")

    cuts = 10_000 if full else 1_000
    chance = random.Random(SEED)
    streams = [finished(demo, kind) for kind in KINDS]
    wrong = 0
    for number in range(cuts):
        stream_id, uncut = streams[number % len(streams)]
        kept, cursor = seen(uncut[: chance.randrange(len(uncut))])
        _, rest = line.rest(stream_id, cursor, by_query=number % 3 == 0)
        again, later = seen(rest[: chance.randrange(len(rest))])
        _, last = line.rest(stream_id, max(cursor, later))
        wrong += kept + rest != uncut or kept + again + last != uncut
    line.close()
    first_byte_s = line.first_byte_s
    figure("resume", f"{cuts} random cuts of {', '.join(KINDS)}: differences", str(wrong), "0")
    figure(
        "resume",
        f"first byte of {len(first_byte_s)} resumes p50, p99",
        f"{quantile(first_byte_s, 0.5) * 1e3:.1f} ms, {quantile(first_byte_s, 0.99) * 1e3:.1f} ms",
        "50 ms",
    )

    assert (differences, wrong) == (0, 0)
    assert quantile(first_byte_s, 0.5) <= FIRST_BYTE_WITHIN_S
    # Ten times the goal: a stall of a shared machine is not the server's.
    assert quantile(first_byte_s, 0.99) <= 10 * FIRST_BYTE_WITHIN_S
    assert demo.sample('sluice_stream_resumes_total{result="ok"}') >= cuts


async def drop(connection: Connection, *, by_rst: bool) -> None:
    """Leave in the middle."""
    if by_rst:
        linger = struct.pack("ii", 1, 0)
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.writer.transport.abort()
    connection.writer.close()
    with suppress(OSError):
        await connection.writer.wait_closed()


async def resume(shared: Shared, stream_id: str, cursor: int, owner: str = "anna") -> Connection:
    """Come back after event number `cursor`."""
    headers = {**shared.keys[owner], "Last-Event-ID": str(cursor)}
    return await Connection.open(
        shared.server.port, None, method="GET", path=f"/v1/streams/{stream_id}", headers=headers
    )


async def begin(shared: Shared, body: dict[str, Any], grace_s: float = 60, path: str = COMPLETIONS) -> Connection:
    """A resumable stream, with its head read."""
    headers = {**shared.me, "X-Stream-Resumable": str(grace_s)}
    connection = await Connection.open(shared.server.port, body, path=path, headers=headers)
    answer = await connection.head()
    assert answer.status == 200
    return connection


async def torn(shared: Shared, connection: Connection, chance: random.Random, first_byte_s: list[float]) -> bytes:
    """Read a stream over many connections, each of which is cut somewhere; the events, joined."""
    stream_id = connection.answer.headers["x-stream-id"]
    joined, cursor = b"", 0
    while True:
        enough = chance.randrange(1, 2000)
        while len(connection.answer.body) < enough and await connection.chunk():
            pass
        answer = connection.answer
        if answer.whole:
            connection.writer.close()
            return joined + seen(answer.body)[0]
        assert answer.status == 200
        # What was on its way when the connection broke never arrives.
        kept, last = seen(answer.body[: chance.randrange(len(answer.body) + 1)])
        joined, cursor = joined + kept, max(cursor, last)
        await drop(connection, by_rst=chance.random() < 0.5)
        asked_s = time.perf_counter()
        connection = await resume(shared, stream_id, cursor)
        await connection.head()
        await connection.chunk()
        if connection.answer.status == 204:
            connection.writer.close()
            return joined
        first_byte_s.append(time.perf_counter() - asked_s)


def test_live_streams_are_cut_many_times_and_their_engine_killed(synthetic: Shared, full: bool, figure: Any) -> None:
    """By FIN and RST, anywhere; three others read each stream undisturbed, and all get the same bytes."""
    server = synthetic.server
    # Short enough for all of their events to be kept.
    streams, tokens = 8, 60
    rounds = 5 if full else 1
    chance = random.Random(SEED)
    first_byte_s: list[float] = []
    restarts = server.sample("sluice_engine_restarts_total")

    async def one(number: int) -> tuple[bytes, set[bytes]]:
        more: dict[str, Any] = {}
        if number % 4 == 2:
            more = {"logprobs": 1, "max_tokens": 30}
        if number % 4 == 3:
            more = {"n": 2, "temperature": 1, "max_tokens": 30}
        connection = await begin(synthetic, completion(number, tokens, **more))
        stream_id = connection.answer.headers["x-stream-id"]
        others = [asyncio.create_task((await resume(synthetic, stream_id, 0)).rest()) for _ in range(3)]
        joined = await torn(synthetic, connection, chance, first_byte_s)
        return joined, {seen((await other).body)[0] for other in others}

    async def run() -> list[tuple[bytes, set[bytes]]]:
        tasks = [asyncio.create_task(one(number)) for number in range(streams)]
        while server.sample("vllm:num_requests_running") < streams:
            await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        os.kill(server.engine_pid(), signal.SIGKILL)
        return await asyncio.gather(*tasks)

    found = []
    for _ in range(rounds):
        found += asyncio.run(run())
        server.wait_idle()
    different = sum({joined} != whole for joined, whole in found)
    figure(
        "resume",
        f"{rounds} x {streams} live streams, cut {len(first_byte_s)} times, engine killed: different",
        str(different),
        "0",
    )
    figure(
        "resume",
        "first byte of a live resume p50",
        f"{quantile(first_byte_s, 0.5) * 1e3:.1f} ms, a wait for the next token included",
        "50 ms",
    )

    assert different == 0
    assert len(first_byte_s) > streams
    for index, (joined, _) in enumerate(found):
        number = index % streams
        answer = Answer(body=joined, whole=True)
        assert answer.ids == list(range(1, len(answer.ids) + 1))
        assert answer.done
        if number % 4 < 2:
            assert answer.text == expected_text(prompt(number), tokens)
    assert server.sample("sluice_engine_restarts_total") == restarts + rounds


def status_of(shared: Shared, stream_id: str, owner: str = "anna") -> httpx.Response:
    headers = {**shared.keys[owner], "Accept": "application/json"}
    return shared.server.http.get(f"/v1/streams/{stream_id}", headers=headers)


def test_a_client_that_does_not_resume_in_time_finds_its_stream_cancelled(synthetic: Shared) -> None:
    """The stream ends as cancelled, its sequence leaves the engine, and a later request for it is answered so."""
    server = synthetic.server
    before = server.ended("cancelled")

    async def run() -> tuple[str, Answer]:
        connection = await begin(synthetic, completion(1, 9000), grace_s=0.5)
        await connection.chunk()
        stream_id = connection.answer.headers["x-stream-id"]
        await drop(connection, by_rst=False)
        while status_of(synthetic, stream_id).json()["status"] == "running":
            await asyncio.sleep(0.05)
        return stream_id, await (await resume(synthetic, stream_id, 0)).rest()

    stream_id, answer = asyncio.run(run())

    assert status_of(synthetic, stream_id).json()["status"] == "cancelled"
    assert answer.error is not None
    assert answer.error["code"] == "cancelled"
    assert answer.done
    assert server.ended("cancelled") == before + 1
    server.wait_idle()


def test_a_finished_stream_is_kept_for_its_time(synthetic: Shared) -> None:
    """Then it is gone, not unknown; read to its end it has no more events."""

    async def run() -> tuple[str, int]:
        answer = await (await begin(synthetic, completion(1, 3))).rest()
        assert answer.exact(1, 3)
        return answer.headers["x-stream-id"], answer.ids[-1]

    stream_id, last = asyncio.run(run())
    ended_s = time.monotonic()

    def again(cursor: Any) -> int:
        headers = {**synthetic.me, "Last-Event-ID": str(cursor)}
        return synthetic.server.http.get(f"/v1/streams/{stream_id}", headers=headers).status_code

    assert (again(0), again(last), again(last + 1), again("x")) == (200, 204, 400, 400)

    gone = poll("it is gone", lambda: again(0) != 200 and again(0), RETENTION_S + 5)

    assert gone == 410
    assert time.monotonic() - ended_s >= RETENTION_S - 0.5
    assert again(last) == 410


def test_streams_keep_what_their_limits_allow(synthetic: Shared, figure: Any) -> None:
    """A stream forgets its oldest events; many share what there is, too many are refused; cancelled ones give way."""
    server = synthetic.server
    big = {"logprobs": 5, "max_tokens": 9000}

    async def run() -> tuple[list[str], Answer, float]:
        ids: list[str] = []
        for number in range(4 * TOTAL_BYTES // STREAM_BYTES + 1):
            headers = {**synthetic.me, **GRACE}
            connection = await Connection.open(server.port, completion(number, 1, **big), headers=headers)
            if (await connection.head()).status != 200:
                await connection.rest()
                break
            ids.append(connection.answer.headers["x-stream-id"])
            await drop(connection, by_rst=False)
        while status_of(synthetic, ids[-1]).json()["events"] < 80:
            assert server.sample("sluice_kept_bytes") <= TOTAL_BYTES
            await asyncio.sleep(0.1)
        kept = server.sample("sluice_kept_bytes")
        old = await (await resume(synthetic, ids[0], 0)).rest()
        assert old.status == 410
        return ids, connection.answer, kept

    ids, refused, kept = asyncio.run(run())
    figure(
        "resume", f"events kept by {len(ids)} endless streams", f"{kept / 2**10:.0f} KiB", f"{TOTAL_BYTES >> 10} KiB"
    )

    assert refused.status == 503
    error = json.loads(refused.body)["error"]
    assert (error["code"], error["retryable"]) == ("overloaded", True)
    assert int(refused.headers["retry-after"]) >= 1
    assert kept <= TOTAL_BYTES
    events = status_of(synthetic, ids[0]).json()["events"]
    newest = server.http.delete(f"/v1/streams/{ids[0]}", headers=synthetic.me)
    assert newest.json()["status"] == "cancelled"
    tail = server.http.get(f"/v1/streams/{ids[0]}?starting_after={events}", headers=synthetic.me)
    assert tail.text.endswith("data: [DONE]\n\n"), "its newest events are there"
    for stream_id in ids[1:]:
        assert server.http.delete(f"/v1/streams/{stream_id}", headers=synthetic.me).status_code == 200
    server.wait_idle()
    again = asyncio.run(ask(server.port, completion(1, 5), headers={**synthetic.me, **GRACE}))
    assert again.exact(1, 5), "the finished ones give way"


def test_a_stream_is_its_owners_to_read_and_to_cancel(synthetic: Shared) -> None:
    """For another key it does not exist; its own gets the cancellation in the stream."""
    server = synthetic.server

    async def run() -> Answer:
        connection = await begin(synthetic, completion(1, 9000))
        await connection.chunk()
        path = f"/v1/streams/{connection.answer.headers['x-stream-id']}"
        bert, anna = synthetic.keys["bert"], synthetic.keys["anna"]
        for answer in (
            server.http.get(path, headers=bert),
            server.http.get(path, headers={**bert, "Accept": "application/json"}),
            server.http.delete(path, headers=bert),
            server.http.post(f"{path}/cancel", headers=bert),
        ):
            assert answer.status_code == 404
        assert server.http.get(path).status_code == 401
        assert server.http.get(path, headers={**anna, "Accept": "application/json"}).json()["status"] == "running"
        assert server.http.delete(path, headers=anna).json()["status"] == "cancelled"
        return await connection.rest()

    answer = asyncio.run(run())

    assert answer.error is not None
    assert answer.error["code"] == "cancelled"
    assert (answer.whole, answer.done) == (True, True)
    server.wait_idle()
