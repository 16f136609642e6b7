"""The cost of readers that stop reading and of readers with nothing to read, and how their streams end."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench.client import quantile
from tests.faults.conftest import KEEPALIVE_S, STALL_TIMEOUT_S, SYNTHETIC, Serve, Shared
from tests.support.server import Server, poll
from tests.support.stream_client import Answer, Connection, ask, completion
from tests.support.stuck_client import WORDY, StuckClient

STALLED_COST = 128 * 2**10
IDLE_COST = 32 * 2**10
# As wordy, in vLLM's own words.
FORMATTED: dict[str, Any] = {**WORDY, "return_token_ids": True}
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def cpu_s(pid: int) -> float:
    """User and system time that the process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def send_queues(port: int) -> dict[int, int]:
    """Bytes that this port's connections have not got rid of, by the client's port."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if int(local.rpartition(":")[2], 16) == port:
            found[int(remote.rpartition(":")[2], 16)] = int(queues.partition(":")[0], 16)
    return found


def kernel_bytes(port: int, clients: set[int]) -> int:
    """What these clients' connections cost the server's kernel: memory where `ss` has it, else bytes queued."""
    if shutil.which("ss") is None:
        return sum(size for client, size in send_queues(port).items() if client in clients)
    shown = subprocess.run(
        ["ss", "-tmnH", "sport", "=", f":{port}"], check=True, capture_output=True, text=True, timeout=20
    ).stdout
    pairs = re.findall(r":(\d+)\s*\n?\s*skmem:\(r\d+,rb\d+,t\d+,tb\d+,f\d+,w(\d+)", shown)
    return sum(int(size) for client, size in pairs if int(client) in clients)


def all_shut(server: Server, readers: list[StuckClient]) -> bool:
    """Whether the kernel holds something back for each of them."""
    queues = send_queues(server.port)
    return all(queues.get(reader.port, 0) > 0 for reader in readers)


class Healthy:
    """Readers who read, and how regularly they get something."""

    def __init__(self, server: Server, headers: dict[str, str], bodies: list[dict[str, Any]]) -> None:
        self._server = server
        self._headers = headers
        self._bodies = bodies
        self._connections: list[Connection] = []
        self._tasks: list[asyncio.Task[Answer]] = []

    async def start(self) -> None:
        for body in self._bodies:
            connection = await Connection.open(self._server.port, body, headers=self._headers)
            self._connections.append(connection)
            self._tasks.append(asyncio.create_task(connection.rest()))
        started = lambda: all(len(connection.answer.arrivals_s) > 3 for connection in self._connections)  # noqa: E731
        await until(started, 60, "all have tokens")

    def gaps(self, since_s: float) -> list[float]:
        """Between two reads since then, of all."""
        found: list[float] = []
        for connection in self._connections:
            times = [at_s for at_s in connection.answer.arrivals_s if at_s >= since_s]
            found += [b - a for a, b in pairwise(times)]
        return found

    async def stop(self) -> None:
        for connection in self._connections:
            connection.writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def until(check: Callable[[], Any], within_s: float, what: str) -> None:
    deadline_s = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
def test_idle_streams_cost_little_and_get_their_keepalives_in_time(synthetic: Shared, full: bool, figure: Any) -> None:
    """All of them run while the engine is stopped, so none has anything to read but keep-alives. The first test of the
    file, because memory that others have given back would be used again."""
    server, me = synthetic.server, synthetic.me
    streams, beats, tokens = (2000, 4, 3) if full else (300, 2, 3)
    asyncio.run(ask(server.port, completion(1, 5), headers=me))
    engine = server.engine_pid()
    before = rss(server.pid)

    async def follow(connection: Connection, beat_s: list[float]) -> Answer:
        await connection.head()
        while data := await connection.chunk():
            if data.startswith(b":"):
                beat_s.append(time.monotonic())
        connection.writer.close()
        return connection.answer

    async def run() -> tuple[list[Answer], list[list[float]], float, float]:
        connections = [
            await Connection.open(server.port, completion(number, tokens), headers=me) for number in range(streams)
        ]
        received: list[list[float]] = [[] for _ in connections]
        tasks = [
            asyncio.create_task(follow(connection, beat_s))
            for connection, beat_s in zip(connections, received, strict=True)
        ]
        await until(lambda: all(received), KEEPALIVE_S + 30, "each has received a keep-alive")
        grown, began_s, used_s = rss(server.pid) - before, time.monotonic(), cpu_s(server.pid)
        await until(lambda: all(len(beat_s) > beats for beat_s in received), KEEPALIVE_S * beats + 30, "and again")
        share = (cpu_s(server.pid) - used_s) / (time.monotonic() - began_s)
        os.kill(engine, signal.SIGCONT)
        return await asyncio.gather(*tasks), received, grown / streams, share

    os.kill(engine, signal.SIGSTOP)
    try:
        answers, received, each, share = asyncio.run(run())
    finally:
        os.kill(engine, signal.SIGCONT)
    late = [abs(after_s - before_s - KEEPALIVE_S) for beat_s in received for before_s, after_s in pairwise(beat_s)]
    rate = streams / KEEPALIVE_S
    figure("idle stream", f"{streams} idle streams: gateway memory each", f"{each / 1024:.1f} KiB", "32 KiB")
    figure(
        "idle stream", f"keep-alives off their {KEEPALIVE_S:g} s, p99", f"{quantile(late, 0.99) * 1e3:.0f} ms", "1 s"
    )
    figure("idle stream", f"share of a core at {rate:.0f} keep-alives a second", f"{share:.1%}", "25 %")

    assert all(answer.exact(number, tokens) for number, answer in enumerate(answers))
    assert quantile(late, 0.99) <= 1.0
    assert share <= 0.5
    assert each <= 2 * IDLE_COST
    server.wait_idle()


@pytest.mark.timeout(600)
def test_readers_that_stop_cost_little_slow_no_other_reader_and_are_dropped(
    synthetic: Shared, serve: Serve, full: bool, figure: Any
) -> None:
    """Half of them get our own chunks, half vLLM's. The healthy ones' gaps are compared with what they were when those
    others read, too: the engine's work for them is the same."""
    if full:
        # 2.5 tokens a second and stream: a thousand streams are what two cores carry.
        stalled, healthy, window_s, stall_timeout_s, me = 1000, 50, 20.0, 120.0, {}
        env = {
            **SYNTHETIC,
            "SLUICE_SYNTHETIC__STEP_MS": "400",
            "SLUICE_STREAMS__STALL_TIMEOUT_S": f"{stall_timeout_s:g}",
        }
        server = serve(env=env)
    else:
        stalled, healthy, window_s, stall_timeout_s = 50, 10, 2.5, STALL_TIMEOUT_S
        server, me = synthetic.server, synthetic.me
    before = server.ended("client_stalled")

    async def run() -> None:
        # What is imported and allocated once is not a cost of these readers.
        await asyncio.gather(
            *[ask(server.port, completion(n, 20, **(WORDY, FORMATTED)[n % 2]), headers=me) for n in range(20)]
        )
        # Ours are filled later, so they come first.
        bodies = [completion(n, 30_000, **(WORDY if n < stalled // 2 else FORMATTED)) for n in range(stalled)]
        others = Healthy(server, me, [completion(4000 + n, 30_000) for n in range(healthy)])
        await others.start()
        rss_before = rss(server.pid)
        reading = Healthy(server, me, bodies)
        await reading.start()
        read_s = time.monotonic()
        await asyncio.sleep(window_s)
        alone = others.gaps(read_s)
        usual = (rss(server.pid) - rss_before) / stalled
        await reading.stop()
        await until(lambda: server.sample("vllm:num_requests_running") == healthy, 20, "the others have left")
        readers: list[StuckClient] = []
        for number, body in enumerate(bodies):
            readers.append(StuckClient(server, body, me))
            if number == stalled // 2 - 1:
                await until(lambda: all_shut(server, readers), 120, "our own chunks fill the windows")
        await until(lambda: all_shut(server, readers), 60, "all windows are shut")
        ports = {reader.port for reader in readers}
        crowded_s, ours, kernels = time.monotonic(), 0, 0
        while time.monotonic() < crowded_s + window_s:
            await asyncio.sleep(window_s / 10)
            ours = max(ours, rss(server.pid) - rss_before)
            kernels = max(kernels, kernel_bytes(server.port, ports))
        crowded = others.gaps(crowded_s)
        if not full:
            assert server.ended("client_stalled") == before, "none has been dropped so far"
        await until(
            lambda: server.ended("client_stalled") == before + stalled, 2 * stall_timeout_s + 60, "all are dropped"
        )
        dropped_s = time.monotonic() - crowded_s
        assert all(reader.dropped() for reader in readers)
        await until(lambda: server.sample("vllm:num_requests_running") == healthy, 10, "the engine is rid of them")
        for reader in readers:
            reader.close()
        await others.stop()

        each = (ours + kernels) / stalled
        ratio = quantile(crowded, 0.99) / quantile(alone, 0.99) - 1
        figure(
            "slow reader",
            f"{stalled} stalled readers, {window_s:g} s after the last window was shut: each",
            f"{each / 1024:.0f} KiB ({usual / 1024:.0f} if it read; kernel's {kernels / stalled / 1024:.0f})",
            "128 KiB",
        )
        figure(
            "slow reader",
            f"p99 gap of {healthy} healthy streams, when those read and when they stall",
            f"{quantile(alone, 0.99) * 1e3:.1f} ms, {quantile(crowded, 0.99) * 1e3:.1f} ms ({ratio:+.0%})",
            "+5 %",
        )
        figure(
            "slow reader",
            "the last of them is dropped after all windows were shut",
            f"{dropped_s:.1f} s",
            f"{stall_timeout_s:g} s + time to fill",
        )

        # Every stream's own state and history of tokens is not the stall's cost.
        assert each - usual <= STALLED_COST
        # Loosely: the rest is the machine's own unrest.
        assert quantile(crowded, 0.99) <= 2 * quantile(alone, 0.99) + 0.05

    asyncio.run(run())
    server.wait_idle()


@pytest.mark.full
@pytest.mark.timeout(300)
def test_log_probabilities_for_a_reader_that_stops_are_bounded(serve: Serve, figure: Any) -> None:
    """They cannot be merged, so what waits for such a reader is bounded in bytes, and he may be dropped before
    streams.stall_timeout_s. What vLLM spends to format such a stream is not the stall's cost: the same streams are
    read first."""
    server = serve(env={**SYNTHETIC, "SLUICE_SYNTHETIC__STEP_MS": "20"})
    stalled = 50
    bodies = [completion(number, 30_000, logprobs=5) for number in range(stalled)]
    asyncio.run(ask(server.port, {**bodies[0], "max_tokens": 20}))
    before = rss(server.pid)

    async def read() -> int:
        tasks = [asyncio.create_task(ask(server.port, {**one, "max_tokens": 1400})) for one in bodies]
        highest = 0
        while not all(task.done() for task in tasks):
            highest = max(highest, rss(server.pid) - before)
            await asyncio.sleep(0.2)
        return highest

    usual = asyncio.run(read())
    read_tokens = server.sample("vllm:generation_tokens_total")
    readers = [StuckClient(server, one, {}) for one in bodies]
    ports = {one.port for one in readers}
    poll("all run", lambda: server.sample("sluice_streams_active") == stalled, 20)
    began_s, highest = time.monotonic(), 0
    while server.sample("sluice_streams_active"):
        assert time.monotonic() - began_s < 60
        highest = max(highest, rss(server.pid) - before + kernel_bytes(server.port, ports))
        time.sleep(0.2)
    held_s = time.monotonic() - began_s
    tokens = (server.sample("vllm:generation_tokens_total") - read_tokens) / stalled
    poll("all are dropped", lambda: server.ended("client_stalled") == stalled, 60)
    highest = max(highest, rss(server.pid) - before + kernel_bytes(server.port, ports))
    for reader in readers:
        reader.close()
    figure(
        "slow reader",
        f"{stalled} stalled readers of 5 log probabilities, dropped after {held_s:.0f} s, {tokens:.0f} tokens: each",
        f"{highest / stalled / 1024:.0f} KiB ({usual / stalled / 1024:.0f} if it read)",
        "128 KiB more",
    )

    assert (highest - usual) / stalled <= STALLED_COST
    server.wait_idle()


def test_a_reader_that_goes_on_gets_all_tokens_in_fewer_events(synthetic: Shared, figure: Any) -> None:
    """What piled up leaves merged; the text is exact. A resumable stream goes on without its reader when that one is
    dropped, and can be resumed where it stood."""
    server, me = synthetic.server, synthetic.me
    tokens, stalls = 600, server.ended("client_stalled")
    merged = server.sample("sluice_merged_deltas_total")
    sleeper = StuckClient(server, completion(1, tokens, **WORDY), me)
    lost = StuckClient(server, completion(2, tokens, **WORDY), {**me, "X-Stream-Resumable": "60"})
    poll("both are late", lambda: server.sample("sluice_merged_deltas_total") > merged + 80, 30)

    answer = sleeper.read()
    events = sum(bool(document["choices"]) for document in answer.documents)
    figure(
        "slow reader", f"events with text that a reader who slept got of {tokens} tokens, exact", str(events), "fewer"
    )

    assert answer.exact(1, tokens)
    assert events < tokens - 20

    poll("the resumable one's reader is dropped", lost.dropped, 30)
    first = lost.read()
    stream_id = first.headers["x-stream-id"]
    assert not first.whole
    assert server.ended("client_stalled") == stalls, "the stream itself goes on"

    async def rest() -> Answer:
        headers = {**me, "Last-Event-ID": str(first.ids[-1])}
        path = f"/v1/streams/{stream_id}"
        return await (await Connection.open(server.port, None, method="GET", path=path, headers=headers)).rest()

    second = asyncio.run(rest())
    kept = first.body[: first.body.rfind(b"\n\n") + 2]
    joined = Answer(body=kept + second.body, whole=second.whole)

    assert joined.ids == list(range(1, len(joined.ids) + 1))
    assert joined.exact(2, tokens)

    sleeper.close()
    lost.close()
    server.wait_idle()
