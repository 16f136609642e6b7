"""SIGTERM and SIGINT to one process, with requests in every phase. Streams that can finish do, no answer looks complete
that is not, and the process ends by itself with exit code 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.faults import test_cancel_latency
from tests.faults.conftest import SYNTHETIC, Serve, Shared, Wanted
from tests.support.server import ASK, CHAT, MODEL, Raw, Server, descendants, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, Answer, Connection, ask, completion

pytestmark = pytest.mark.timeout(900)

STREAMS = 200
STEP_MS = 50
TOKENS = 60
DRAIN_S = 7.0
SHORT_DRAIN_S = 3.0
# From the deadline, or a second signal, to the process's end: connections get 2 s to take what is left, and the engine
# process takes one or two to stop. The limits leave time for a machine with other things to do.
GOAL_S = 3.0
ENDS_WITHIN_S = 6.0
FOREVER = 20_000
# Reads nothing and gets kilobytes a token, so that its socket is full long before the deadline.
STALLED = {**completion(0, FOREVER), "logprobs": 20, "temperature": 1}


def env(drain_s: float, **more: str) -> dict[str, str]:
    return {
        **SYNTHETIC,
        "SLUICE_SYNTHETIC__STEP_MS": str(STEP_MS),
        "SLUICE_SERVER__DRAIN_TIMEOUT_S": str(drain_s),
        **more,
    }


# Just enough slots for the first requests: later ones wait until the first have finished.
ROLLOUT = env(DRAIN_S, SLUICE_ADMISSION__MAX_CONCURRENT=str(STREAMS + 6))


SERVERS = {
    "rollout": Wanted(lambda _: ROLLOUT),
    # Its own tests, in the file before, are done with it; a start of another would take as long as all tests here.
    **test_cancel_latency.SERVERS,
    "restarting": Wanted(lambda _: env(SHORT_DRAIN_S), full=True),
}


async def get(server: Server, path: str, **headers: str) -> Answer:
    return await ask(server.port, None, method="GET", path=path, headers=headers)


async def until(what: str, check: Callable[[], Awaitable[Any]], within_s: float = 10.0) -> Any:
    deadline_s = time.monotonic() + within_s
    while not (found := await check()):
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.01)
    return found


async def gauge(server: Server, name: str, least: float) -> bool:
    text = (await get(server, "/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines) >= least


async def all_run(server: Server, requests: int) -> None:
    await until("all run", lambda: gauge(server, "vllm:num_requests_running", requests), 30)


def ended_by_drain(answer: Answer) -> bool:
    """The in-band error, then `[DONE]`, and the body's proper end."""
    return (
        answer.whole
        and answer.done
        and answer.finish == []
        and answer.error is not None
        and (answer.error["code"], answer.error["retryable"]) == ("server_draining", True)
    )


def refused(answer: Answer) -> bool:
    """A 503 with the cause, Retry-After and Connection: close."""
    return (
        answer.status == 503
        and json.loads(answer.body)["error"]["code"] == "server_draining"
        and int(answer.headers["retry-after"]) >= 1
        and answer.headers["connection"] == "close"
    )


def not_faked(answer: Answer) -> bool:
    """A whole or mounted request that did not make it: a 500, so that no proxy sends it again by itself, or a
    connection without an end; never a success."""
    if answer.status == 500:
        return json.loads(answer.body)["error"]["code"] == "server_draining"
    return not answer.whole and b"response.completed" not in answer.body and b"[DONE]" not in answer.body


async def broken_off(port: int, body: dict[str, Any], path: str) -> Answer:
    """As `ask`; a connection that breaks before its first byte is an empty answer."""
    connection = await Connection.open(port, body, path=path)
    try:
        return await connection.rest()
    except (asyncio.IncompleteReadError, ConnectionError):
        return connection.answer


def exit_code(server: Server, within_s: float) -> int:
    return server.process.wait(within_s)


def assert_clean(server: Server) -> None:
    server.assert_no_orphan()
    assert "Traceback" not in server.stderr()


def test_a_rollout_under_live_streams(fleet: dict[str, Shared], serve: Serve, full: bool, figure: Any) -> None:
    """The whole process group is signalled, as terminals and some supervisors do; the engine must not take that for
    itself. Everything that can be on its way at that moment is."""
    rounds = [roll_out(fleet["rollout"].server, signal.SIGTERM)]
    for number in range(9 if full else 0):
        rounds.append(roll_out(serve(env=ROLLOUT), signal.SIGTERM if number % 2 else signal.SIGINT))
    what = f"{len(rounds)} x signal under {STREAMS} streams that can finish: broken, inexact"
    figure("drain", what, "0, 0", "0, 0")
    figure("drain", "signal to /readyz 503", f"{1000 * max(found['unready_s'] for found in rounds):.0f} ms", "at once")
    late_s = max(found["ended_s"] for found in rounds) - DRAIN_S
    figure("drain", "end after the drain's deadline, with a stalled reader", f"{late_s:.1f} s", f"{GOAL_S:g} s")


def roll_out(server: Server, number: signal.Signals) -> dict[str, Any]:
    """One round, with everything that is promised."""
    usual = {"model": MODEL, "ignore_eos": True}
    long_kinds: dict[str, tuple[dict[str, Any], str]] = {
        "stream": (completion(900, FOREVER), COMPLETIONS),
        "chat": ({**usual, "messages": ASK, "stream": True, "max_tokens": FOREVER}, CHAT),
        "whole": (completion(901, FOREVER, stream=False), COMPLETIONS),
        "mounted": ({**usual, "input": "Hello", "max_output_tokens": FOREVER}, "/v1/responses"),
        "mounted stream": (
            {**usual, "input": "Hello", "stream": True, "max_output_tokens": FOREVER},
            "/v1/responses",
        ),
    }
    found: dict[str, Any] = {}

    async def run() -> None:
        stalled = Raw(server.port, request_bytes(STALLED, COMPLETIONS))
        task = asyncio.create_task
        long_ones = {name: task(broken_off(server.port, body, path)) for name, (body, path) in long_kinds.items()}
        first = await Connection.open(server.port, completion(0, TOKENS))
        finishing = [task(ask(server.port, completion(i, TOKENS))) for i in range(1, STREAMS)]
        await all_run(server, STREAMS + len(long_ones) + 1)
        # At the gate: two that fit into what is left once the slots are free, one that does not.
        waiting = [task(ask(server.port, completion(i, TOKENS // 3))) for i in (500, 501)]
        too_long = task(ask(server.port, completion(502, FOREVER)))
        await until("three wait", lambda: gauge(server, "sluice_requests_waiting", 3))
        stream_id = (await first.head()).headers["x-stream-id"]

        os.killpg(server.pid, number)
        began_s = found["began_s"] = time.monotonic()

        await until("the server is not ready", lambda: unready(server), 2)
        found["unready_s"] = time.monotonic() - began_s
        found["refused"] = [
            await get(server, "/readyz"),
            await ask(server.port, completion(1, 5)),
            await ask(server.port, completion(1, 5, stream=False)),
            await broken_off(server.port, *long_kinds["mounted"]),
        ]
        found["live"] = await get(server, "/livez")
        found["status"] = await get(server, f"/v1/streams/{stream_id}", Accept="application/json")
        found["finished"] = [await first.rest(), *await asyncio.gather(*finishing)]
        found["finished_s"] = time.monotonic() - began_s
        found["waited"] = await asyncio.gather(*waiting)
        assert (await get(server, "/livez")).status == 200, "the listener stays open to the end"
        found["long"] = {name: await one for name, one in long_ones.items()}
        found["too_long"] = await too_long
        found["deadline_s"] = time.monotonic() - began_s
        found["code"] = await asyncio.to_thread(exit_code, server, 20)
        found["ended_s"] = time.monotonic() - began_s
        stalled.close()

    asyncio.run(run())
    inexact = [i for i, answer in enumerate(found["finished"]) if not answer.exact(i, TOKENS)]
    broken = [i for i, answer in enumerate(found["finished"]) if not answer.whole]
    assert (broken, inexact) == ([], [])
    assert found["finished_s"] < DRAIN_S, "they were to finish within the drain: the machine is too slow"
    assert found["unready_s"] < 0.5
    assert all(refused(answer) for answer in found["refused"])
    assert found["live"].status == 200
    status = json.loads(found["status"].body)
    assert (found["status"].status, status["status"]) == (200, "running")
    assert all(answer.exact(i, TOKENS // 3) for i, answer in zip((500, 501), found["waited"], strict=True))
    assert ended_by_drain(found["long"]["stream"])
    assert ended_by_drain(found["long"]["chat"])
    assert all(not_faked(found["long"][name]) for name in ("whole", "mounted", "mounted stream"))
    assert ended_by_drain(found["too_long"])
    # One clock, from the signal.
    assert DRAIN_S - 0.1 <= found["deadline_s"] < DRAIN_S + 1
    assert DRAIN_S <= found["ended_s"] < DRAIN_S + ENDS_WITHIN_S
    assert found["code"] == 0
    assert_clean(server)
    return found


def test_a_second_signal_ends_now(fleet: dict[str, Shared], figure: Any) -> None:
    """Streams end with the cause at once."""
    server = fleet["cancel"].server
    found: dict[str, Any] = {}

    async def run() -> None:
        streams = [asyncio.create_task(ask(server.port, completion(i, FOREVER))) for i in range(50)]
        mounted = asyncio.create_task(
            broken_off(server.port, {"model": MODEL, "input": "Hi", "ignore_eos": True}, "/v1/responses")
        )
        await all_run(server, 51)
        os.kill(server.pid, signal.SIGINT)
        await until("it drains", lambda: refuses(server))
        assert not any(one.done() for one in (*streams, mounted))
        os.kill(server.pid, signal.SIGTERM)
        began_s = time.monotonic()
        found["streams"] = await asyncio.gather(*streams)
        found["told_s"] = time.monotonic() - began_s
        found["mounted"] = await mounted
        found["code"] = await asyncio.to_thread(exit_code, server, 20)
        found["ended_s"] = time.monotonic() - began_s

    asyncio.run(run())
    figure(
        "drain",
        "second signal: errors on 50 streams, process ended",
        f"{found['told_s']:.2f}, {found['ended_s']:.1f} s",
        "3 s",
    )
    assert all(ended_by_drain(answer) for answer in found["streams"])
    assert not_faked(found["mounted"])
    assert found["code"] == 0
    assert found["ended_s"] < ENDS_WITHIN_S
    assert_clean(server)


async def refuses(server: Server) -> bool:
    """Whether the server refuses new requests because it drains. A request sent right behind the signal may be read
    before it."""
    return refused(await ask(server.port, completion(1, 1, stream=False)))


async def unready(server: Server) -> bool:
    return (await get(server, "/readyz")).status == 503


async def signalled_in_a_restart(server: Server, tokens: int) -> dict[str, Any]:
    streams = [asyncio.create_task(ask(server.port, completion(i, tokens))) for i in range(20)]
    await all_run(server, len(streams))
    os.kill(server.engine_pid(), signal.SIGKILL)
    await until("the engine is being restarted", lambda: unready(server))
    os.kill(server.pid, signal.SIGTERM)
    began_s = time.monotonic()
    await until("it drains", lambda: refuses(server))
    found: dict[str, Any] = {"streams": await asyncio.gather(*streams), "told_s": time.monotonic() - began_s}
    server.family = descendants(server.pid)
    found["code"] = await asyncio.to_thread(exit_code, server, 20)
    found["ended_s"] = time.monotonic() - began_s
    return found


@pytest.mark.full
def test_a_signal_in_a_restart_that_takes_too_long(fleet: dict[str, Shared], figure: Any) -> None:
    """Streams end with an error at the drain's deadline, and the half-started engine does not outlive the process."""
    server = fleet["restarting"].server
    found = asyncio.run(signalled_in_a_restart(server, FOREVER))
    late_s = f"{found['ended_s'] - SHORT_DRAIN_S:.1f} s"
    figure("drain", "SIGTERM in a restart longer than the drain: end after the deadline", late_s, f"{GOAL_S:g} s")
    assert all(ended_by_drain(answer) for answer in found["streams"])
    assert SHORT_DRAIN_S - 0.1 <= found["told_s"] < SHORT_DRAIN_S + 1
    assert found["ended_s"] < SHORT_DRAIN_S + ENDS_WITHIN_S
    assert found["code"] == 0
    assert_clean(server)


@pytest.mark.full
def test_a_signal_in_a_restart_within_the_drain(serve: Serve, figure: Any) -> None:
    """A drain is no reason to give up: streams go on with the next engine and finish."""
    server = serve(env=env(90))
    found = asyncio.run(signalled_in_a_restart(server, 200))
    inexact = [i for i, answer in enumerate(found["streams"]) if not answer.exact(i, 200)]
    figure("drain", "SIGTERM in a restart, 20 streams that can finish: inexact", str(len(inexact)), "0")
    assert inexact == []
    assert found["code"] == 0
    assert found["ended_s"] < found["told_s"] + ENDS_WITHIN_S
    assert_clean(server)


@pytest.mark.parametrize("stage", ["importing", "starting the engine process"])
def test_a_signal_during_the_start(tmp_path_factory: pytest.TempPathFactory, stage: str, figure: Any) -> None:
    """The drain does not wait for an engine that will serve no request, and the engine does not outlive the gateway."""
    server = Server(tmp_path_factory.mktemp("start"), env=env(30))
    try:
        server.wait_open()
        if stage != "importing":
            # The first child is multiprocessing's resource tracker.
            poll("the engine process is there", lambda: len(descendants(server.pid)) > 1, 60)
            time.sleep(2)
        assert server.http.get("/livez").status_code == 200
        server.family = descendants(server.pid)
        began_s = time.monotonic()
        assert server.end(signal.SIGTERM, 10) == 0
        took = f"{time.monotonic() - began_s:.1f} s"
        figure("drain", f"SIGTERM during the start ({stage}): process ended", took, f"{GOAL_S:g} s")
        assert "Traceback" not in server.stderr()
        if server.family:
            server.assert_no_orphan()
    finally:
        server.close()
