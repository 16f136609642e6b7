"""The engine process is killed under live streams repeatedly. No stream loses, repeats or contradicts a token, and
the pause is the time of the restart.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from typing import Any

import pytest

from loadtest.bench.client import quantile
from tests.faults.conftest import SYNTHETIC, Serve, Shared
from tests.support.deterministic_text import expected_text
from tests.support.server import CHAT, MODEL, Server, poll
from tests.support.stream_client import Answer, ask, completion

SEED = 7


async def until_all_have_tokens(tasks: list[asyncio.Task[Answer]], server: Server, streams: int) -> None:
    while server.sample("vllm:num_requests_running") < streams:
        assert not any(task.done() for task in tasks)
        await asyncio.sleep(0.1)


@pytest.mark.timeout(900)
def test_the_engine_is_killed_under_live_streams(synthetic: Shared, full: bool, figure: Any) -> None:
    """Kills come at random times while all streams run; every stream crosses all of them."""
    streams, kills = (200, 20) if full else (200, 2)
    # More than are generated until the last death, which may fall between any two tokens, and inside a character.
    tokens = 400 + 80 * kills
    server, me = synthetic.server, synthetic.me
    restarts = server.sample("sluice_engine_restarts_total")
    continued = server.sample('sluice_streams_recovered_total{result="continued"}')
    queued_s = server.sample("vllm:request_queue_time_seconds_sum")
    chance = random.Random(SEED)
    pauses: list[float] = []

    async def kill_and_wait() -> None:
        pid = server.engine_pid()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while server.http.get("/readyz").status_code == 200:
            await asyncio.sleep(0.01)
        while server.http.get("/readyz").status_code != 200:
            assert server.http.get("/livez").status_code == 200
            await asyncio.sleep(0.1)
        pauses.append(time.monotonic() - began)
        # Two deaths without a token between them would be one pause to a client.
        before = server.sample("vllm:generation_tokens_total")
        while server.sample("vllm:generation_tokens_total") < before + 2 * streams:
            await asyncio.sleep(0.05)

    # vLLM's own endpoints on the same engine, whole and streamed.
    question = [{"role": "user", "content": "Hello"}]
    theirs = [
        ("/v1/responses", {"input": "Hello", "max_output_tokens": tokens}),
        ("/v1/messages", {"messages": question, "max_tokens": tokens, "stream": True}),
    ]

    async def run() -> list[Answer]:
        tasks = [
            asyncio.create_task(ask(server.port, completion(first, tokens), headers=me)) for first in range(streams)
        ]
        tasks += [
            asyncio.create_task(ask(server.port, {"model": MODEL, "temperature": 0, **body}, path=path, headers=me))
            for path, body in theirs
        ]
        await until_all_have_tokens(tasks, server, len(tasks))
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.2, 1.2))
            assert not any(task.done() for task in tasks), "a stream ended before the last kill: make them longer"
            await kill_and_wait()
        return await asyncio.gather(*tasks)

    *answers, responded, messaged = asyncio.run(run())
    inexact = [first for first, answer in enumerate(answers) if not answer.exact(first, tokens)]
    longest = [answer.longest_gap_s for answer in answers]
    figure("engine death", f"{streams} streams x {kills} engine kills: inexact", str(len(inexact)), "0")
    figure(
        "engine death",
        "longest pause of a stream p99, against the slowest restart",
        f"{quantile(longest, 0.99):.1f} s, {max(pauses):.1f} s",
        "restart + 1 s",
    )

    assert inexact == []
    assert quantile(longest, 0.99) <= max(pauses) + 1
    assert all(b": keep-alive" in answer.body for answer in answers), "the pause is bridged"
    assert server.sample("sluice_engine_restarts_total") == restarts + kills
    continued = server.sample('sluice_streams_recovered_total{result="continued"}') - continued
    assert continued == (streams + len(theirs)) * kills
    assert server.sample("vllm:request_queue_time_seconds_sum") >= queued_s, "no wait is negative"
    # Every chat's prompt begins with the same token, and the deterministic text depends only on that and the length.
    first = server.post("/tokenize", headers=me, model=MODEL, messages=question).json()["tokens"][0]
    whole = json.loads(responded.body)
    wanted = expected_text([first] * whole["usage"]["input_tokens"], tokens)
    assert whole["output"][0]["content"][0]["text"] == wanted
    lines = [json.loads(line[6:]) for line in messaged.body.split(b"\n") if line.startswith(b"data: {")]
    wanted = expected_text([first] * lines[0]["message"]["usage"]["input_tokens"], tokens)
    assert "".join(line.get("delta", {}).get("text", "") for line in lines) == wanted
    server.wait_idle()


def test_the_real_engine_dies_and_texts_equal_an_undisturbed_runs(demo: Server, full: bool) -> None:
    """Standing still, and in the full size killed, too: greedy streams of every kind that can go on do; the others end
    with an error, and the queue just waits."""
    server = demo
    restarts = server.sample("sluice_engine_restarts_total")
    known = {result: recovered(server, result) for result in ("continued", "failed")}
    usual: dict[str, Any] = {
        "model": MODEL,
        "stream": True,
        "temperature": 0,
        "max_tokens": 900,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Say hello in Greek."}],
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    kinds: list[dict[str, Any]] = [
        {},
        {"messages": [{"role": "user", "content": "Tell me a story about a river."}]},
        {"stop": ["no such words"]},
        {"logprobs": True, "top_logprobs": 2},
        {"tools": [tool]},
        {"stream": False},
        {"stream": False, "logprobs": True},
    ]
    hopeless = {"presence_penalty": 0.5}
    queued = {"max_tokens": 5}

    async def all_of(bodies: list[dict[str, Any]]) -> list[Answer]:
        return await asyncio.gather(*[ask(server.port, {**usual, **body}, path=CHAT) for body in bodies])

    async def disturbed(way: signal.Signals) -> list[Answer]:
        before = server.sample("vllm:generation_tokens_total")
        task = asyncio.create_task(all_of([*kinds, hopeless, queued]))
        while server.sample("vllm:generation_tokens_total") < before + 900:
            assert not task.done()
            await asyncio.sleep(0.02)
        os.kill(server.engine_pid(), way)
        return await task

    undisturbed = asyncio.run(all_of(kinds))
    ways = (signal.SIGSTOP, signal.SIGKILL) if full else (signal.SIGSTOP,)
    for deaths, way in enumerate(ways, start=1):
        server.wait_idle()
        *answers, failed, waited = asyncio.run(disturbed(way))

        for kind, whole, answer in zip(kinds, undisturbed, answers, strict=True):
            assert answer.status == 200
            assert content(answer) == content(whole), (way, kind)
        assert failed.error is not None
        assert (failed.error["code"], failed.error["retryable"], failed.done) == ("engine_failed", True, True)
        assert (waited.status, waited.finish) == (200, ["length"])
        assert server.sample("sluice_engine_restarts_total") == restarts + deaths
        assert recovered(server, "failed") == known["failed"] + deaths
        # The one in the queue may start with the slot of the one that failed; the next engine then gets it, too.
        continued = recovered(server, "continued") - known["continued"]
        assert deaths * len(kinds) <= continued <= deaths * (len(kinds) + 1)
    server.wait_idle()


def recovered(server: Server, result: str) -> float:
    return server.sample(f'sluice_streams_recovered_total{{result="{result}"}}')


def content(answer: Answer) -> Any:
    """The text of a chat, streamed or whole, with its log probabilities."""
    if answer.headers["content-type"].startswith("application/json"):
        return json.loads(answer.body)["choices"]
    choices = [choice for document in answer.documents for choice in document["choices"]]
    logprobs = [entry for choice in choices for entry in (choice.get("logprobs") or {}).get("content") or []]
    return answer.text, answer.finish, logprobs, answer.done


@pytest.mark.full
def test_an_engine_that_dies_too_often_ends_the_server(serve: Serve) -> None:
    """Restart policies look at the exit code; streams get the reason before. (The end-to-end tests have it without a
    restart.)"""
    env = {
        **SYNTHETIC,
        "SLUICE_SYNTHETIC__STEP_MS": "20",
        "SLUICE_SYNTHETIC__DIE_AT_STEP": "20",
        "SLUICE_SUPERVISOR__MAX_RESTARTS": "1",
    }
    server = serve(env=env)
    answer = asyncio.run(ask(server.port, completion(1, 200)))

    assert answer.done
    assert answer.error is not None
    assert (answer.error["code"], answer.error["retryable"]) == ("engine_failed", True)
    poll("the server has ended", lambda: not server.running(), 20)
    assert server.process.returncode == 1
    assert "max_restarts" in server.stderr()
    server.assert_no_orphan()
