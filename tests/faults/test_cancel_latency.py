"""A client that leaves frees the engine at once: in every phase, for every kind of request and way of leaving, while
many other streams run undisturbed.

Measured is the time from just before the client's `close` (or `shutdown`, or `DELETE`) to the moment when the
scheduler in the engine process has dropped the request and freed its blocks, noted there by a plugin with the clock
that all processes share (`tests.support.engine_probe`). Nothing polls the server meanwhile. The engine looks at aborts
between two steps, so up to one whole step of that is the engine's own. At the gate, and while the engine is silent,
there is no such moment; there the gateway's end is the time of the request's log line.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.faults.conftest import SYNTHETIC, Shared, Wanted
from tests.faults.leaving_clients import (
    GOAL_MS,
    LIVE_TOKENS,
    NUMBERS,
    SIZES,
    WAYS,
    Crowd,
    Leaver,
    Setup,
    engine_latencies,
    in_engine,
    leave,
    leavers,
    log_latencies,
    p99,
    report,
    request,
    spread,
    wait_dropped,
)
from tests.support.engine_probe import Note
from tests.support.server import Raw, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, completion

pytestmark = pytest.mark.timeout(600)


def env(full: bool) -> dict[str, str]:
    size = SIZES[full]
    return {
        **SYNTHETIC,
        "SLUICE_SYNTHETIC__STEP_MS": str(size.step_ms),
        # Prompts come in small pieces that take their time, so that there is a prefill to leave in.
        "SLUICE_SYNTHETIC__PREFILL_US": "20",
        "SLUICE_ENGINE__MAX_NUM_BATCHED_TOKENS": str(size.batch),
        "SLUICE_LOG__JSON": "true",
    }


SERVERS = {"cancel": Wanted(env, probe=True)}


@pytest.fixture(scope="module")
def setup(fleet: dict[str, Shared], full: bool) -> Iterator[Setup]:
    """One server for all tests here, with its crowd."""
    server, probe, size = fleet["cancel"].server, fleet["cancel"].probe, SIZES[full]
    assert probe is not None
    crowd = Crowd(server.port, size.live)
    try:
        poll("all live streams have begun", crowd.have_begun, 60)
        yield Setup(server, probe, crowd, size)
    finally:
        crowd.stop()
        for one in crowd.streams:
            one.close()


def test_leaving_in_decode(setup: Setup, figure: Any) -> None:
    with leavers(setup) as who:
        for one in who:
            one.wait_begun()
        leave(setup, who)
        dropped = wait_dropped(setup, who)

    early = [one for one in who if any(note.output_tokens == 0 for note in dropped[one.number])]
    assert len(early) <= len(who) // 20, "they were to have tokens"
    report(figure, setup, "decode", engine_latencies(who, dropped), setup.size.step_ms)
    assert setup.crowd.ended == []


def test_leaving_in_prefill(setup: Setup, figure: Any) -> None:
    """Prompts of thousands of tokens each, of which a step takes some hundred."""
    with leavers(setup, words=3000) as who:
        poll("the engine has all", lambda: in_engine(setup, who), 60, 0.05)
        leave(setup, who)
        dropped = wait_dropped(setup, who)

    silent = [one for one in who if all(note.output_tokens == 0 for note in dropped[one.number])]
    assert len(silent) >= len(who) // 2, "too many were through their prefill already"
    # A step that is full of prompt tokens takes longer by that much.
    step_ms = setup.size.step_ms + setup.size.batch * 0.02
    report(figure, setup, "prefill", engine_latencies(silent, dropped), step_ms)
    assert setup.crowd.ended == []


def test_leaving_at_the_gate(setup: Setup, figure: Any) -> None:
    """Behind a request for every slot, while others run: no request overtakes it, so all later ones wait."""
    body = {**completion(0, 100, temperature=1), "n": int(SYNTHETIC["SLUICE_ADMISSION__MAX_CONCURRENT"])}
    with ExitStack() as stack:
        blocker = Raw(setup.server.port, request_bytes(body, COMPLETIONS))
        stack.callback(blocker.close)
        poll("one waits", lambda: setup.server.sample("sluice_requests_waiting") == 1, 10, 0.1)
        who = stack.enter_context(leavers(setup))
        poll("all wait", lambda: setup.server.sample("sluice_requests_waiting") == len(who) + 1, 10, 0.1)
        leave(setup, who)
        found = log_latencies(setup, who)
    poll("the queue is empty", lambda: setup.server.sample("sluice_requests_waiting") == 0, 5, 0.1)

    report(figure, setup, "the queue (to the log line)", found, None)
    assert not setup.probe.of("add").keys() & {one.number for one in who}, "the engine never gets them"
    assert setup.server.sample("sluice_streams_active") == setup.size.live


def test_leaving_while_the_engine_is_silent(setup: Setup, figure: Any) -> None:
    """The engine process is stopped, so no token comes and no write fails: only the connection shows the end."""
    engine = setup.server.engine_pid()
    with leavers(setup) as who:
        for one in who:
            one.wait_begun()
        os.kill(engine, signal.SIGSTOP)
        try:
            leave(setup, who)
            found = log_latencies(setup, who)
        finally:
            goes_on_s = time.monotonic()
            os.kill(engine, signal.SIGCONT)
        dropped = wait_dropped(setup, who)

    report(figure, setup, "silence (to the log line)", found, None)
    after = [1000 * (note.at_s - goes_on_s) for one in who for note in dropped[one.number]]
    figure(
        "cancellation", "the engine drops them after it goes on", spread(after), f"a step of {setup.size.step_ms} ms"
    )
    assert setup.crowd.ended == []


@pytest.mark.parametrize("kind", ["chat", "completion", "formatted", "responses"])
def test_cancelling_by_id(setup: Setup, figure: Any, kind: str) -> None:
    """From sending `DELETE` to the engine's drop; who waits for a whole answer has not seen its id."""
    who: list[Leaver] = []
    answered_ms: list[float] = []
    with ExitStack() as stack:
        for _ in range(3 * setup.size.each):
            number = next(NUMBERS)
            path, body = request(kind, number, 3)
            connection = Raw(setup.server.port, request_bytes(body, path, {"Connection": "close"}))
            stack.callback(connection.close)
            who.append(Leaver(number, kind, "delete", connection))
        for one in who:
            one.wait_begun()
        ids = [_id(one.connection.seen, kind) for one in who]
        for one, stream_id in zip(who, ids, strict=True):
            one.left_s = time.monotonic()
            answer = setup.server.http.delete(f"/v1/streams/{stream_id}")
            answered_ms.append(1000 * (time.monotonic() - one.left_s))
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        dropped = wait_dropped(setup, who)
        for one in who:
            end = one.connection.read_all()
            assert b'"code":"cancelled"' in end or kind == "responses"
            assert b"response.completed" not in end

    values = engine_latencies(who, dropped)[kind]
    bound = f"p99 {GOAL_MS:.0f} ms + a step of {setup.size.step_ms}"
    figure("cancellation", f"DELETE to the engine's drop, {kind}", spread(values), bound)
    figure("cancellation", f"DELETE to its answer, {kind}", spread(answered_ms), "none")
    assert p99(values) <= GOAL_MS + setup.size.step_ms
    assert setup.crowd.ended == []


def _id(seen: bytes, kind: str) -> str:
    """As its client sees it: in the header, or, for a stream of vLLM's own, in the first event."""
    head, _, body = seen.partition(b"\r\n\r\n")
    if kind == "responses":
        line = next(line for line in body.split(b"\n") if line.startswith(b"data: {"))
        found: str = json.loads(line[6:])["response"]["id"]
        return found
    lines = head.decode().lower().split("\r\n")
    return next(line.split(": ", 1)[1] for line in lines if line.startswith("x-stream-id: "))


@pytest.fixture
def extras() -> Iterator[ExitStack]:
    """Connections that end with the test."""
    with ExitStack() as stack:
        yield stack


def test_a_storm_leaves_nothing_behind(setup: Setup, extras: ExitStack, figure: Any) -> None:
    """All at once, the crowd too; afterwards the engine itself has no request and has all its blocks."""
    server, probe, size = setup.server, setup.probe, setup.size
    assert setup.crowd.ended == []
    left = server.ended("disconnected")
    number = next(NUMBERS)
    extra: list[Raw] = []
    for i in range(size.live, size.storm):
        extra.append(Raw(server.port, request_bytes(completion(i, number), COMPLETIONS)))
        extras.callback(extra[-1].close)
    for one in extra:
        one.read_until(b"data: {")
    setup.crowd.stop()
    assert setup.crowd.ended == []
    figure("cancellation", f"of {size.live} streams that stayed, inexact", str(len(setup.crowd.inexact())), "0")
    assert setup.crowd.inexact() == []

    ways = list(WAYS.values())
    before = len(probe.of("drop").get(LIVE_TOKENS, []))
    began_s = time.monotonic()
    for i, one in enumerate([*extra, *setup.crowd.streams]):
        ways[i % 3](one)

    def notes() -> list[Note] | None:
        dropped = probe.of("drop")
        found = [*dropped.get(LIVE_TOKENS, [])[before:], *dropped.get(number, [])]
        return found if len(found) == size.storm else None

    found = poll("the engine has dropped all", notes, 60, 0.05)
    seconds = max(note.at_s for note in found) - began_s
    # 8,000 within 3 s, and the engine's step, which does not shrink with their number.
    scaled_s = 3 * size.storm / 8000 + size.step_ms / 1000
    figure(
        "cancellation",
        f"{size.storm} leave at once: all dropped",
        f"{seconds:.2f} s",
        f"{scaled_s:.2f} s (3 s for 8,000)",
    )
    poll("no slot is taken", lambda: server.sample("sluice_streams_active") == 0, 5, 0.1)
    poll("all are counted", lambda: server.ended("disconnected") == left + size.storm, 5, 0.1)
    poll("the gauges agree", lambda: server.sample("vllm:num_requests_running") == 0, 5, 0.1)
    now = server.samples()
    assert (now["sluice_requests_waiting"], now["vllm:num_requests_waiting"], now["vllm:kv_cache_usage_perc"]) == (
        0,
        0,
        0,
    )
    # The gauges are set to zero when the gateway has no request; the engine's own count is proof.
    last = next(NUMBERS)
    assert server.post(COMPLETIONS, **{**completion(1, last), "max_tokens": 7, "stream": False}).status_code == 200
    (note,) = probe.of("add")[7]
    assert (note.known, note.kv_usage) == (0, 0)
    assert seconds <= 3
    assert "Traceback" not in server.stderr()
