"""Data-parallel engines, as vLLM starts and balances them: two of them, without a model. One that dies takes the other
along; no stream notices more than a pause."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import SYNTHETIC, Serve
from tests.support.server import Server, alive, descendants, poll
from tests.support.stream_client import Answer, Connection, ask, completion

TWO = {**SYNTHETIC, "SLUICE_ENGINE__DATA_PARALLEL_SIZE": "2", "SLUICE_SYNTHETIC__STEP_MS": "10"}
STREAMS = 40


def processes(server: Server, name: str) -> list[int]:
    """Those of vLLM's processes that are called so."""
    found = []
    for pid, _ in descendants(server.pid):
        with suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                found.append(pid)
    return found


def running(server: Server) -> list[float]:
    """How many sequences each engine runs, by its gauge."""
    samples = server.samples()
    return [samples[f'vllm:num_requests_running{{engine="{engine}"}}'] for engine in (0, 1)]


def all_exact(answers: list[Answer], tokens: int) -> bool:
    return all(answer.exact(first, tokens) for first, answer in enumerate(answers))


async def until(what: str, server: Server, wanted: list[float]) -> None:
    await asyncio.to_thread(poll, what, lambda: running(server) == wanted, 20)


@pytest.mark.timeout(240)
def test_two_engines_share_the_streams_and_drain_together(serve: Serve, figure: Any) -> None:
    """Started, balanced, exact, counted, cancelled, drained, and nothing left."""
    server = serve(env=TWO)
    assert len(processes(server, "EngineCore_DP")) == 2
    half = STREAMS / 2

    async def run() -> None:
        streams = [asyncio.create_task(ask(server.port, completion(first, 300))) for first in range(STREAMS)]
        await until("both engines run half of the streams", server, [half, half])
        assert all_exact(await asyncio.gather(*streams), 300)
        samples = server.samples()
        for engine in (0, 1):
            assert samples[f'vllm:generation_tokens_total{{engine="{engine}"}}'] == half * 300

        # Half of them disconnect, half are cancelled by id; both engines abort them.
        connections = [await Connection.open(server.port, completion(first, 20_000)) for first in range(STREAMS)]
        heads = [await connection.head() for connection in connections]
        await until("both engines run half of the streams again", server, [half, half])
        for connection in connections[::2]:
            connection.writer.close()
        for head in heads[1::2]:
            answer = await ask(server.port, None, method="DELETE", path=f"/v1/streams/{head.headers['x-stream-id']}")
            assert answer.status == 200
        await until("no engine runs anything", server, [0, 0])
        for connection in connections[1::2]:
            assert (await connection.rest()).error["code"] == "cancelled"  # type: ignore[index]

        # The signal goes to the whole process group, as from a terminal; only the gateway acts on it.
        last = [asyncio.create_task(ask(server.port, completion(first, 300))) for first in range(STREAMS)]
        await until("both engines run half of the last streams", server, [half, half])
        os.killpg(server.pid, signal.SIGTERM)
        assert all_exact(await asyncio.gather(*last), 300)

    asyncio.run(run())

    assert server.process.wait(20) == 0, server.stderr()
    server.assert_no_orphan()
    assert "Traceback" not in server.stderr()
    figure("data parallel", f"{STREAMS} streams over 2 engines, then SIGTERM: inexact", "0", "0")


@pytest.mark.full
@pytest.mark.timeout(400)
def test_one_engine_of_two_dies_and_every_stream_goes_on(serve: Serve, figure: Any) -> None:
    server = serve(env=TWO)
    tokens = 1500

    async def run() -> float:
        streams = [asyncio.create_task(ask(server.port, completion(first, tokens))) for first in range(STREAMS)]
        await until("both engines run half of the streams", server, [STREAMS / 2, STREAMS / 2])
        began_s = time.monotonic()
        os.kill(processes(server, "EngineCore_DP1")[0], signal.SIGKILL)
        await asyncio.to_thread(poll, "the death is noticed", lambda: server.http.get("/readyz").status_code == 503, 5)
        noticed_s = time.monotonic() - began_s
        assert all_exact(await asyncio.gather(*streams), tokens)
        return noticed_s

    noticed_s = asyncio.run(run())
    figure("data parallel", "one of 2 engines killed: noticed after", f"{noticed_s:.1f} s", "5 s")

    assert server.sample('sluice_streams_recovered_total{result="continued"}') == STREAMS
    assert server.sample("sluice_engine_restarts_total") == 1
    server.wait_idle()

    # Without the process that balances them they go on, and are balanced by what the gateway has sent them.
    os.kill(processes(server, "DPCoordinator")[0], signal.SIGKILL)

    async def again() -> list[Answer]:
        streams = [asyncio.create_task(ask(server.port, completion(first, 300))) for first in range(STREAMS)]
        await until("both engines run half of the streams", server, [STREAMS / 2, STREAMS / 2])
        return await asyncio.gather(*streams)

    assert all_exact(asyncio.run(again()), 300)


@pytest.mark.full
@pytest.mark.timeout(240)
def test_nothing_outlives_a_killed_gateway(serve: Serve) -> None:
    server = serve(env=TWO)
    family = [one for one in server.family if one[0] in processes(server, "VLLM")]
    assert len(family) == 3, "two engines and their coordinator"
    server.process.kill()

    poll("all of vLLM's processes have gone", lambda: not alive(family), 10)
