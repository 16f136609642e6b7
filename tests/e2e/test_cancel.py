"""Who leaves, frees the engine: however and whenever; and who stays, notices nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.support.server import (
    ASK,
    CHAT,
    MODEL,
    Json,
    Raw,
    Server,
    check_error,
    content,
    events,
    long_chat,
    poll,
    request_bytes,
)

LIVE = 50
TOKEN = b'"content":"S'
WAYS: dict[str, Callable[[Raw], None]] = {"fin": Raw.fin, "rst": Raw.rst, "half-close": Raw.half_close}


@contextmanager
def clients(server: Server, bodies: list[Json], path: str = CHAT) -> Iterator[list[Raw]]:
    made: list[Raw] = []
    try:
        made.extend(Raw(server.port, request_bytes(body, path)) for body in bodies)
        yield made
    finally:
        for one in made:
            one.close()


def active(server: Server) -> float:
    return server.sample("sluice_streams_active")


def assert_freed(server: Server, left: int, before: float, stay: int = 0) -> None:
    """The gate is free within 1 s, the engine within 2 s, and each of those who left is counted once as that."""
    began = time.monotonic()
    poll("the slots are free", lambda: active(server) == stay, 1)
    poll("they are counted", lambda: server.ended("disconnected") >= before + left, 1)
    poll("the engine is idle", lambda: server.sample("vllm:num_requests_running") == stay, 2 - time.monotonic() + began)
    assert server.ended("disconnected") == before + left


@pytest.mark.parametrize("way", WAYS)
def test_fifty_leave_in_decode(server: Server, way: str) -> None:
    server.wait_idle()
    before, wasted = server.ended("disconnected"), server.sample('sluice_wasted_tokens_total{cause="disconnected"}')
    # One client stays; its question differs, so that no other text can pass for its own.
    story = [{"role": "user", "content": "Who are you?"}]
    alone = server.ask(messages=story)["choices"][0]["message"]["content"]
    stays = long_chat(messages=story, max_tokens=1200, stream_options={"include_usage": True})
    with clients(server, [stays, *[long_chat()] * LIVE]) as (staying, *leaving):
        for one in leaving:
            one.read_until(TOKEN)
        assert active(server) == LIVE + 1
        for one in leaving:
            WAYS[way](one)
        assert_freed(server, LIVE, before, stay=1)

        documents = events(_body(staying.read_until(b"[DONE]\n\n\r\n0\r\n\r\n")))
        assert documents[-1]["usage"]["completion_tokens"] == 1200
        assert documents[-2]["choices"][0]["finish_reason"] == "length"
        assert content(documents).startswith(alone)
    server.wait_idle()
    assert server.ended("disconnected") == before + LIVE
    # Each had at least one token that no client will read, and none was generated to its end.
    now = server.sample('sluice_wasted_tokens_total{cause="disconnected"}')
    assert LIVE <= now - wasted < LIVE * 1900


def _body(raw: bytes) -> str:
    """The body of a chunked response on a raw socket."""
    _, _, rest = raw.partition(b"\r\n\r\n")
    body = b""
    while rest and not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body.decode()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("path", "more"),
    [
        pytest.param(CHAT, {"stream": False}, id="whole"),
        pytest.param(CHAT, {"stream": True, "logprobs": True}, id="parsed"),
        pytest.param(CHAT, {"stream": True, "n": 3, "temperature": 1.0}, id="n"),
        pytest.param("/v1/responses", {"input": "Hello", "max_output_tokens": 2000}, id="responses"),
        pytest.param(
            "/v1/responses", {"input": "Hello", "max_output_tokens": 2000, "stream": True}, id="responses-stream"
        ),
    ],
)
def test_leaving_requests_off_the_fast_path(server: Server, path: str, more: Json, way: str) -> None:
    server.wait_idle()
    before = server.ended("disconnected")
    body = {**long_chat(), **more}
    if path == "/v1/responses":
        body = {"model": MODEL, "temperature": 0, "ignore_eos": True, **more}
    slots = body.get("n", 1) * 3
    with clients(server, [body] * 3, path) as leaving:
        poll("they run", lambda: server.sample("vllm:num_requests_running") == slots, 5)
        if more.get("stream"):
            for one in leaving:
                one.read_until(b"data: ")
        for one in leaving:
            WAYS[way](one)
        assert_freed(server, 3, before)


def test_leaving_in_prefill(server: Server) -> None:
    """Prompts so long that they queue up in the engine: no client has a token when all leave."""
    server.wait_idle()
    before = server.ended("disconnected")
    count = 40
    bodies = [long_chat(messages=[{"role": "user", "content": f"{i} " + "word " * 1200}]) for i in range(count)]
    for body in bodies:
        body["max_tokens"] = 100
    with clients(server, bodies) as leaving:
        # Prepared and handed over, and so many that most still wait for their first step.
        poll("they are in", lambda: active(server) == count, 5, 0.001)
        for one in leaving:
            one.sock.setblocking(False)
        silent = sum(1 for one in leaving if not _has_answer(one))
        for one in leaving:
            one.rst()
        assert silent > 0, "all had their first token already; the prompts are too short"
        assert_freed(server, count, before)


def _has_answer(one: Raw) -> bool:
    try:
        return bool(one.sock.recv(1))
    except BlockingIOError:
        return False


def test_leaving_before_the_answer_begins(server: Server) -> None:
    """Sent and gone in the same moment; the request may not even have been read."""
    server.wait_idle()
    before = server.ended("disconnected")
    with clients(server, [long_chat()] * 20) as leaving:
        for one in leaving:
            one.rst()
        poll("all are counted", lambda: server.ended("disconnected") == before + 20, 3)
    server.wait_idle()
    server.ask()


def test_leaving_after_done_is_a_good_end(server: Server) -> None:
    server.wait_idle()
    left, done = server.ended("disconnected"), server.ended("completed")
    with clients(server, [long_chat(max_tokens=5)] * 20) as leaving:
        for one in leaving:
            one.read_until(b"[DONE]\n\n")
            one.rst()
        poll("all are counted", lambda: server.ended("completed") >= done + 20, 3)
    server.wait_idle()
    assert server.ended("completed") == done + 20
    assert server.ended("disconnected") == left


@pytest.mark.parametrize("variant", ["plain", "parsed", "text"])
@pytest.mark.parametrize("way", ["delete", "post"])
def test_cancel_by_id(server: Server, way: str, variant: str) -> None:
    server.wait_idle()
    cancelled, left = server.ended("cancelled"), server.ended("disconnected")
    body = long_chat(**({"logprobs": True} if variant == "parsed" else {}))
    if variant == "text":
        body["prompt"] = "Hello"
        del body["messages"]
    with server.http.stream("POST", "/v1/completions" if variant == "text" else CHAT, json=body) as response:
        text = response.iter_text()
        seen = next(text)
        stream_id = response.headers["x-stream-id"]
        answer = _cancel(server, way, stream_id)
        seen += "".join(text)

    assert answer.status_code == 200
    status = answer.json()
    assert status["id"] == stream_id
    assert status["status"] == "cancelled"
    assert status["prompt_tokens"] > 0
    assert 0 < status["completion_tokens"] < 2000
    *chunks, last = events(seen)
    assert all("choices" in chunk for chunk in chunks)
    assert not any(choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"])
    error = last["error"]
    assert error["code"] == "cancelled"
    assert error["retryable"] is False
    assert error["resumable"] is False
    assert error["message"]
    assert {"type", "param"} <= error.keys()
    server.wait_idle()
    assert server.ended("cancelled") == cancelled + 1
    assert server.ended("disconnected") == left
    check_error(_cancel(server, way, stream_id), 404, param="id", code="not_found")


def _cancel(server: Server, way: str, stream_id: str) -> Any:
    if way == "delete":
        return server.http.delete(f"/v1/streams/{stream_id}")
    return server.http.post(f"/v1/streams/{stream_id}/cancel")


def test_cancel_a_stream_of_vllms_own(server: Server) -> None:
    """A responses stream carries its id in its first event; it ends with a failure and never as if it were complete."""
    server.wait_idle()
    cancelled = server.ended("cancelled")
    body = {"model": MODEL, "input": "Hello", "stream": True, "max_output_tokens": 2000, "ignore_eos": True}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        lines = response.iter_lines()
        first = next(json.loads(line[6:]) for line in lines if line.startswith("data: "))
        next(line for line in lines if "output_text.delta" in line)
        answer = server.http.delete(f"/v1/streams/{first['response']['id']}")
        rest: list[Json] = []
        # vLLM's generator has no event for this; then the connection is broken off, so that the client notices.
        with suppress(httpx.RemoteProtocolError):
            rest.extend(json.loads(line[6:]) for line in lines if line.startswith("data: {"))
            assert "cancelled" in json.dumps(rest[-1])

    assert answer.status_code == 200
    assert answer.json()["status"] == "cancelled"
    assert "response.completed" not in {one.get("type") for one in rest}
    assert "failed with an unexpected error" not in server.stderr()
    server.wait_idle()
    assert server.ended("cancelled") == cancelled + 1


def test_cancel_what_is_not_there(server: Server) -> None:
    for stream_id in ("chatcmpl-nope", "x" * 300, "%2e%2e", "a b"):
        # A path that is no plain path reaches no route.
        param = None if stream_id == "%2e%2e" else "id"
        error = check_error(server.http.delete(f"/v1/streams/{stream_id}"), 404, param=param, code="not_found")
        assert error["retryable"] is False
    # One that ended well is not there any more, either.
    done = server.post(model=MODEL, messages=ASK, stream=True)
    check_error(server.http.delete(f"/v1/streams/{done.headers['x-stream-id']}"), 404, code="not_found")
