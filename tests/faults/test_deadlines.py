"""Wrong request options and cursors, deadlines in the queue and in the engine, and jumps of the wall clock."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from tests.faults import limited_server
from tests.faults.conftest import Shared
from tests.faults.limited_server import EVERYONE, FOREVER, KEEPALIVE_S, RESPONSES, STEP_MS, Target, limited
from tests.support.server import ASK, CHAT, MODEL, Json, Raw, check_error, check_error_body, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, Answer, Connection, ask, completion

pytestmark = pytest.mark.timeout(600)
SERVERS = limited_server.SERVERS


@pytest.fixture(scope="module")
def target(fleet: dict[str, Shared]) -> Iterator[Target]:
    yield from limited(fleet)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_an_option_that_is_not_a_number_is_a_400_that_names_its_header(target: Target, path: str) -> None:
    body = {"model": MODEL, "messages": ASK, "prompt": "x", "input": "x", "max_tokens": 2}
    garbage = ("abc", "-1", "nan", "inf", "1e999", "", "1 s", "0x10", "1,5")
    for header, values in {"X-Request-Timeout": (*garbage, "0"), "X-Stream-Resumable": garbage}.items():
        for value in values:
            response = target.server.post(path, headers={header: value}, **body)
            assert header in check_error(response, 400, param=header, code="invalid_request")["message"], value


def test_a_wrong_cursor_is_a_400_and_a_guessed_id_a_404(target: Target) -> None:
    server = target.server
    body = completion(3, 5)
    made = server.post(COMPLETIONS, headers={"X-Stream-Resumable": "30"}, **body)
    assert made.status_code == 200
    path = f"/v1/streams/{made.headers['x-stream-id']}"
    last = made.text.count("\nid: ") + 1
    for cursor in ("abc", "-1", "1.5", "9" * 30, str(last + 1), "\u0661"):
        for where in ("header", "query"):
            given: Json = {"headers": {"Last-Event-ID": cursor.encode()}} if where == "header" else {}
            response = server.http.get(path, params={"starting_after": cursor} if where == "query" else None, **given)
            assert response.status_code == 400, (cursor, where, response.text)
            assert response.json()["error"]["param"] in ("Last-Event-ID", "starting_after")
    assert server.http.get(path, headers={"Last-Event-ID": str(last)}).status_code == 204

    # Every neighbour of an id that exists, and as many that might.
    exists = made.headers["x-stream-id"]
    prefix, secret = exists.split("-")
    assert len(secret) * 4 >= 96
    guesses = [f"{prefix}-{secret[:i]}{int(secret[i], 16) ^ 1:x}{secret[i + 1 :]}" for i in range(len(secret))]
    guesses += [f"{prefix}-{secrets.token_hex(16)}" for _ in range(100)]
    guesses += [exists.upper(), exists[:-1], exists + "0", f"chatcmpl-{secret}", prefix, f"{prefix}-"]
    for guess in guesses:
        assert server.http.get(f"/v1/streams/{guess}").status_code == 404, guess
        assert server.http.delete(f"/v1/streams/{guess}").status_code == 404, guess


def kinds(tokens: int) -> dict[str, tuple[str, Json]]:
    """Path and body of a request of every kind that generates until its deadline."""
    usual = {"model": MODEL, "ignore_eos": True}
    chat = {**usual, "messages": ASK, "max_tokens": tokens}
    mounted = {**usual, "input": "Hello", "max_output_tokens": tokens}
    return {
        "stream": (CHAT, {**chat, "stream": True}),
        "formatted": (CHAT, {**chat, "stream": True, "logprobs": True}),
        "whole": (CHAT, chat),
        "mounted": (RESPONSES, mounted),
        "mounted stream": (RESPONSES, {**mounted, "stream": True}),
    }


KINDS = tuple(kinds(1))


TOKENS = iter(range(5_000, FOREVER))


TIMEOUT_S = 0.6


LATE_S = 0.5


def with_deadline(target: Target, kind: str, tokens: int) -> Answer:
    path, body = kinds(tokens)[kind]
    return asyncio.run(ask(target.server.port, body, path=path, headers={"X-Request-Timeout": str(TIMEOUT_S)}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_in_the_queue_is_a_408_and_the_engine_never_gets_the_request(target: Target, kind: str) -> None:
    server, number = target.server, next(TOKENS)
    with ExitStack() as stack:
        for body in (completion(0, FOREVER), EVERYONE):
            client = Raw(server.port, request_bytes(body, COMPLETIONS))
            stack.callback(client.close)
        poll("one waits", lambda: server.sample("sluice_requests_waiting") == 1, 10, 0.05)
        poll("one runs", lambda: server.sample("vllm:num_requests_running") == 1, 10, 0.05)
        prompts = server.sample("vllm:prompt_tokens_total")
        answer = with_deadline(target, kind, number)
        took_s = time.monotonic() - answer.sent_s
        assert server.sample("vllm:prompt_tokens_total") == prompts
        assert server.sample("sluice_requests_waiting") == 1

    assert answer.status == 408
    error = check_error_body(json.loads(answer.body), code="deadline_exceeded")
    assert "nothing was generated" in error["message"]
    assert error["retryable"] is False
    assert answer.headers["x-should-retry"] == "false"
    assert TIMEOUT_S - 0.05 < took_s < TIMEOUT_S + LATE_S
    assert number not in target.probe.of("add")
    server.wait_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_in_the_engine_frees_it_and_reports_the_tokens_spent(target: Target, kind: str, figure: Any) -> None:
    server, number = target.server, next(TOKENS)
    ended = server.ended("deadline_exceeded")
    answer = with_deadline(target, kind, number)
    took_s = time.monotonic() - answer.sent_s
    dropped = poll("the engine has dropped it", lambda: target.probe.of("drop").get(number), 5)
    (note,) = dropped
    figure(
        "cancellation",
        f"deadline to the engine's drop, {kind}",
        f"{1000 * (note.at_s - answer.sent_s - TIMEOUT_S):.0f} ms",
        "100 ms",
    )

    if kind in ("stream", "formatted"):
        assert (answer.status, answer.whole, answer.done, answer.finish) == (200, True, True, [])
        assert answer.text, "there was output before"
        assert answer.error is not None
        assert (answer.error["code"], answer.error["retryable"]) == ("deadline_exceeded", False)
        assert "completion tokens" in answer.error["message"]
    elif kind == "mounted stream":
        # vLLM's stream has begun and has no event for this: the connection is broken off.
        assert answer.status == 200
        assert b"output_text.delta" in answer.body
        assert b"response.completed" not in answer.body
        assert not answer.whole or b"deadline" in answer.body
    else:
        assert answer.status == 408
        error = check_error_body(json.loads(answer.body), code="deadline_exceeded")
        assert "completion tokens" in error["message"]
        assert (error["retryable"], answer.headers["x-should-retry"]) == (False, "false")
    assert TIMEOUT_S - 0.05 < took_s < TIMEOUT_S + LATE_S
    assert note.output_tokens > 0
    assert note.at_s - answer.sent_s - TIMEOUT_S < LATE_S
    poll("it is counted", lambda: server.ended("deadline_exceeded") == ended + 1, 2, 0.05)
    server.wait_idle()


def test_a_jump_of_the_wall_clock_changes_nothing(target: Target, figure: Any) -> None:
    """An hour forward, two back, under streams with a deadline and one in the queue. It is Python's wall clock that
    jumps, in the gateway and in the engine; timers of native code are the kernel's monotonic ones."""
    server, tokens = target.server, 3000 // STEP_MS
    server.wait_idle()
    bent: list[int] = []

    async def shown_s() -> float:
        answer = await ask(server.port, None, method="GET", path="/livez")
        return parsedate_to_datetime(answer.headers["date"]).timestamp()

    async def jump(hours: int) -> None:
        target.probe.set_clock(3600 * hours)
        while abs(await shown_s() - time.time() - 3600 * hours) > 5:
            await asyncio.sleep(0.05)
        bent.append(hours)

    async def comments(connection: Connection) -> None:
        await connection.head()
        while b": keep-alive" in await connection.chunk():
            connection.answer.arrivals_s.append(time.monotonic())

    async def run() -> tuple[list[Answer], Answer]:
        limits = {"X-Request-Timeout": "30", "X-Stream-Resumable": "30"}
        streams = [asyncio.create_task(ask(server.port, completion(i, tokens), headers=limits)) for i in range(20)]
        while server.sample("vllm:num_requests_running") < len(streams):
            await asyncio.sleep(0.02)
        waiting = await Connection.open(server.port, EVERYONE)
        reading = asyncio.create_task(comments(waiting))
        for hours in (1, -1):
            await jump(hours)
        assert not any(one.done() for one in streams), "they were to run through both jumps"
        answers = await asyncio.gather(*streams)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        waiting.writer.close()
        await jump(0)
        return answers, waiting.answer

    answers, waited = asyncio.run(run())
    inexact = [i for i, answer in enumerate(answers) if not answer.exact(i, tokens)]
    gaps = [b - a for a, b in zip(waited.arrivals_s, waited.arrivals_s[1:], strict=False)]
    figure("wall clock", "wall clock +1 h, -2 h under 20 streams: inexact or ended early", str(len(inexact)), "0")
    figure("wall clock", "longest time between keep-alives", f"{max(gaps):.2f} s", f"{KEEPALIVE_S:g} s")
    assert bent == [1, -1, 0]
    assert inexact == []
    assert max(gaps) < 2 * KEEPALIVE_S
    server.wait_idle()
