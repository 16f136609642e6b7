"""A small, guarded server: two slots, a queue of two, two API keys, a second for headers, JSON logs.

The last test kills its engine, which is the end of the server, too.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.e2e.conftest import Keyed, new_key
from tests.support.server import (
    ASK,
    CHAT,
    MODEL,
    Json,
    Raw,
    check_error,
    check_error_body,
    long_chat,
    poll,
    request_bytes,
)

SECRET = "Xyzzy-plugh"
WAYS: dict[str, Callable[[Raw], None]] = {"fin": Raw.fin, "rst": Raw.rst, "half-close": Raw.half_close}


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Connections that end with the test."""
    with ExitStack() as stack:
        yield stack


def start(keyed: Keyed, held: ExitStack, body: Json | None = None, key: str = "anna") -> Raw:
    one = Raw(keyed.server.port, request_bytes(body or long_chat(), headers=keyed.headers(key)))
    held.callback(one.close)
    return one


def fill(keyed: Keyed, held: ExitStack) -> list[Raw]:
    """Take both slots with streams that run for seconds."""
    keyed.server.wait_idle()
    both = [start(keyed, held) for _ in range(2)]
    for one in both:
        one.read_until(b'"content":"S')
    return both


def waiting(keyed: Keyed) -> float:
    return keyed.server.sample("sluice_requests_waiting")


def stream_id(one: Raw) -> str:
    head = one.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")[0].decode().lower()
    return next(line.split(": ", 1)[1] for line in head.split("\r\n") if line.startswith("x-stream-id"))


def cancel(keyed: Keyed, one: Raw, key: str = "anna") -> httpx.Response:
    return keyed.server.http.delete(f"/v1/streams/{stream_id(one)}", headers=keyed.headers(key))


def test_queued_requests_are_served_in_order(keyed: Keyed, held: ExitStack) -> None:
    both = fill(keyed, held)
    first = start(keyed, held, long_chat(max_tokens=900))
    poll("one waits", lambda: waiting(keyed) == 1, 2)
    second = start(keyed, held, long_chat(max_tokens=900))
    poll("two wait", lambda: waiting(keyed) == 2, 2)
    assert keyed.server.sample("sluice_streams_active") == 2

    assert cancel(keyed, both[0]).status_code == 200
    first.read_until(b'"content":"S')
    assert waiting(keyed) == 1
    second.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.sock.recv(1)
    second.sock.setblocking(True)
    assert cancel(keyed, both[1]).status_code == 200
    second.read_until(b"[DONE]")
    first.read_until(b"[DONE]")


def test_requests_beyond_the_queue_are_refused(keyed: Keyed, held: ExitStack) -> None:
    """The fifth is refused at once, with Retry-After; the four are not disturbed."""
    rejected = keyed.server.sample("sluice_rejections_total")
    both = fill(keyed, held)
    queued = [start(keyed, held, long_chat(max_tokens=5)) for _ in range(2)]
    poll("two wait", lambda: waiting(keyed) == 2, 2)

    for path, body in (
        (CHAT, long_chat()),
        (CHAT, long_chat(stream=False)),
        ("/v1/responses", {"model": MODEL, "input": "Hello"}),
    ):
        began = time.monotonic()
        refused = keyed.server.post(path, headers=keyed.headers(), **body)
        assert time.monotonic() - began < 1
        error = check_error(refused, 503, code="overloaded")
        assert error["type"] == "overloaded_error"
        assert error["retryable"] is True
        assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert keyed.server.sample("sluice_rejections_total") == rejected + 3
    # What makes the engine do nothing needs no slot.
    assert keyed.server.http.get("/v1/models", headers=keyed.headers()).status_code == 200
    assert keyed.server.post("/tokenize", headers=keyed.headers(), model=MODEL, prompt="x").status_code == 200
    for one in both:
        assert cancel(keyed, one).status_code == 200
    for one in queued:
        one.read_until(b"[DONE]")


@pytest.mark.parametrize("way", WAYS)
def test_leaving_the_queue(keyed: Keyed, held: ExitStack, way: str) -> None:
    """The place is free for the next within a second, and nothing of it ever reaches the engine."""
    server = keyed.server
    both = fill(keyed, held)
    before = server.ended("disconnected")
    prompts = server.sample("vllm:prompt_tokens_total")
    leaving = [start(keyed, held), start(keyed, held, long_chat(stream=False))]
    poll("two wait", lambda: waiting(keyed) == 2, 2)
    for one in leaving:
        WAYS[way](one)
    poll("the queue is empty", lambda: waiting(keyed) == 0, 1)
    poll("they are counted", lambda: server.ended("disconnected") == before + 2, 1)

    for one in both:
        assert cancel(keyed, one).status_code == 200
    server.wait_idle()
    assert server.sample("vllm:prompt_tokens_total") == prompts
    assert server.ended("disconnected") == before + 2


def test_a_request_that_waits_too_long_in_the_queue_is_refused(keyed: Keyed, held: ExitStack) -> None:
    """admission.queue_timeout_s is 3 here; the two requests with the slots generate for longer."""
    both = fill(keyed, held)
    late = start(keyed, held)
    head, _, body = late.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 "), "the two were done before the queue timeout" if b" 200 " in head else head
    assert b"retry-after: " in head.lower()
    body = late.read_until(b"}}").partition(b"\r\n\r\n")[2]
    error = check_error_body(json.loads(body), code="overloaded")
    assert "3 s" in error["message"]
    assert waiting(keyed) == 0
    for one in both:
        cancel(keyed, one)


def test_more_choices_than_slots(keyed: Keyed) -> None:
    response = keyed.server.post(headers=keyed.headers(), **long_chat(n=3))
    check_error(response, 400, param="n")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/tokenize"),
        ("GET", "/v1/models"),
        ("DELETE", "/v1/streams/chatcmpl-x"),
        ("POST", "/v1/streams/chatcmpl-x/cancel"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/version"),
        ("GET", "/nope"),
        ("GET", "/livez/"),
        ("POST", "//v1/chat/completions"),
    ],
)
def test_no_key_no_answer(keyed: Keyed, method: str, path: str) -> None:
    """The same 401 for ours, for vLLM's, and for what does not exist."""
    key = keyed.key["anna"]
    for headers in (
        {},
        {"Authorization": "Bearer sk-sluice-wrong"},
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {key}x"},
        {"x-api-key": "sk-wrong"},
    ):
        response = keyed.server.http.request(method, path, headers=headers, json={} if method == "POST" else None)
        assert response.status_code == 401
        # Anthropic's clients have a body of their own.
        error = (
            response.json()["error"] if path == "/v1/messages" else check_error(response, 401, code="invalid_api_key")
        )
        assert error["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
        assert key not in response.text


def test_probes_and_metrics_need_no_key(keyed: Keyed) -> None:
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert keyed.server.http.get(path).status_code == 200


def test_both_ways_to_send_a_key(keyed: Keyed) -> None:
    key = keyed.key["bert"]
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer {key}"}, {"x-api-key": key}):
        assert keyed.server.post(headers=headers, model=MODEL, messages=ASK, max_tokens=2).status_code == 200


def test_another_key_cannot_cancel_and_ones_own_is_charged(keyed: Keyed, held: ExitStack) -> None:
    keyed.server.wait_idle()
    one = start(keyed, held, key="anna")
    one.read_until(b'"content":"S')

    in_flight, ended, tokens = (
        f'sluice_tenant_{name}{{tenant="anna"}}' for name in ("requests_in_flight", "requests_total", "tokens_total")
    )
    before = keyed.server.samples()

    assert before[in_flight] == 1

    check_error(cancel(keyed, one, "bert"), 404, code="not_found")
    assert keyed.server.sample("sluice_streams_active") == 1
    assert cancel(keyed, one, "anna").status_code == 200
    assert b'"code":"cancelled"' in one.read_until(b"[DONE]")

    poll("it is counted", lambda: keyed.server.sample(ended) == before.get(ended, 0) + 1, 2)
    after = keyed.server.samples()

    assert after.get(in_flight, 0) == 0
    assert after[tokens] > before.get(tokens, 0) + 1


def test_the_key_file_is_read_again(keyed: Keyed) -> None:
    key, line = new_key("carl")

    def status() -> int:
        return keyed.server.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    assert status() == 401
    before = keyed.keys_file.read_text()
    keyed.keys_file.write_text(f"{before}{line}\n")
    poll("the new key is known", lambda: status() == 200, 3, 0.1)
    # A broken file keeps the last good keys.
    keyed.keys_file.write_text(f"{before}{line}\nnot a key line\n")
    poll("it is complained about", lambda: status() and "cannot be read" in keyed.server.stderr(), 3, 0.1)
    assert status() == 200
    keyed.keys_file.write_text(before)
    poll("the key is gone", lambda: status() == 401, 3, 0.1)
    assert keyed.server.http.get("/v1/models", headers=keyed.headers()).status_code == 200


def test_a_pipe_in_the_place_of_the_key_file_delays_no_request(keyed: Keyed) -> None:
    text = keyed.keys_file.read_text()
    keyed.keys_file.unlink()
    os.mkfifo(keyed.keys_file)
    try:
        poll("it is complained about", lambda: "is not a regular file" in keyed.server.stderr(), 5, 0.1)
        began = time.monotonic()
        for _ in range(5):
            assert keyed.server.http.get("/v1/models", headers=keyed.headers()).status_code == 200
        assert time.monotonic() - began < 3, "a machine under load takes tenths of a second for each"
    finally:
        keyed.keys_file.unlink()
        keyed.keys_file.write_text(text)
    poll("it is read again", lambda: '"message":"API keys read again: 3"' in keyed.server.stderr(), 5, 0.1)
    assert keyed.server.stderr().count("is not a regular file") == 1


def test_operators_endpoints_take_an_operators_key(keyed: Keyed) -> None:
    for method, path in (("GET", "/kv_event_sources"), ("POST", "/is_scaling_elastic_ep")):
        assert keyed.server.http.request(method, path, headers=keyed.headers("omar")).status_code == 200
        error = check_error(keyed.server.http.request(method, path, headers=keyed.headers()), 403, code="forbidden")
        assert "sluice key new --operator NAME" in error["message"]
    refused = keyed.server.post("/scale_elastic_ep", headers=keyed.headers(), new_data_parallel_size=1)
    check_error(refused, 403, code="forbidden")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_trusted_fields_are_not_the_clients(keyed: Keyed, path: str) -> None:
    """Values of these that vLLM would refuse show whether it sees them."""
    asks: Json = {CHAT: {"messages": ASK}, "/v1/completions": {"prompt": "Hello"}, "/v1/responses": {"input": "Hello"}}[
        path
    ]
    for field, value in (("priority", "high"), ("kv_transfer_params", "x"), ("cache_salt", ""), ("vllm_xargs", 5)):
        response = keyed.server.post(path, headers=keyed.headers(), model=MODEL, **asks, **{field: value})
        assert response.status_code == 200, (field, response.text)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-json", "Application/JSON; charset=utf-8"])
def test_no_content_type_gets_trusted_fields_past(keyed: Keyed, content_type: str | None) -> None:
    """What vLLM's app would read as JSON has been cleaned; everything else it has to refuse for what it is."""
    headers = keyed.headers() | ({} if content_type is None else {"Content-Type": content_type})
    body = {"model": MODEL, "input": "Hello", "max_output_tokens": 4, "priority": "high"}
    response = keyed.server.http.post("/v1/responses", content=json.dumps(body), headers=headers)

    if response.status_code != 200:
        assert 400 <= response.status_code < 500
        assert "priority" not in response.text


def test_the_log(keyed: Keyed) -> None:
    """One JSON line a request, with its numbers; never a text, nor a key."""
    server = keyed.server
    question = [{"role": "user", "content": f"What is {SECRET}?"}]
    ids = {name: f"log-{name}" for name in ("whole", "stream", "wrong", "messages", "refused")}

    def headers(name: str) -> dict[str, str]:
        return {**keyed.headers(), "X-Request-Id": ids[name]}

    server.post(headers=headers("whole"), model=MODEL, messages=question, max_tokens=5)
    streamed = server.post(headers=headers("stream"), **long_chat(messages=question, max_tokens=6))
    server.post(headers=headers("wrong"), model=MODEL, messages=question, temperature=SECRET)
    server.post("/v1/messages", headers=headers("messages"), model=MODEL, messages=question, max_tokens=5)
    server.post(headers={"X-Request-Id": ids["refused"], "Authorization": f"Bearer {SECRET}"}, messages=question)

    def lines() -> dict[str, Json]:
        entries = [json.loads(line) for line in server.stderr().splitlines()]
        assert all({"ts", "level", "message"} <= entry.keys() for entry in entries)
        return {entry["request_id"]: entry for entry in entries if "request_id" in entry}

    found = poll("all are logged", lambda: lines() if set(ids.values()) <= lines().keys() else None, 3)
    whole, stream, wrong, messages, refused = (found[ids[name]] for name in ids)
    for entry, path, tokens in ((whole, CHAT, 5), (stream, CHAT, 6), (messages, "/v1/messages", 5)):
        assert entry["path"] == path
        assert entry["status"] == 200
        assert entry["cause"] == "completed"
        assert entry["completion_tokens"] == tokens
        assert entry["prompt_tokens"] > 5
        assert entry["owner"] == "anna"
        assert 0 < entry["duration_s"] < 30
    assert whole["model"] == stream["model"] == MODEL
    assert stream["id"] == streamed.headers["x-stream-id"]
    assert 0 <= stream["queue_s"] < stream["ttft_s"] < stream["duration_s"]
    assert wrong["status"] == 400
    assert wrong["cause"] == "rejected"
    assert refused["status"] == 401
    assert refused["owner"] is None
    log = server.stderr() + server.out_file.read_text()
    assert SECRET not in log
    assert not any(key in log for key in keyed.key.values())
    assert sum(ids["stream"] in line for line in log.splitlines()) == 1


@pytest.mark.timeout(60)
def test_the_engine_is_killed(keyed: Keyed, held: ExitStack) -> None:
    """Every client gets an error: with a stream, with an answer to come, with a place in the queue. Then the server
    ends with a failure, which restart policies look at, and leaves nothing behind."""
    server = keyed.server
    server.wait_idle()
    streaming = start(keyed, held)
    streaming.read_until(b'"content":"S')
    whole = start(keyed, held, long_chat(stream=False))
    poll("both run", lambda: server.sample("vllm:num_requests_running") == 2, 3)
    queued = start(keyed, held)
    poll("one waits", lambda: waiting(keyed) == 1, 3)

    os.kill(server.engine_pid(), signal.SIGKILL)
    seen = streaming.read_all()
    last = [json.loads(line[6:]) for line in seen.decode().splitlines() if line.startswith("data: {")][-1]
    if "error" in last:
        check_error_body(last, code="engine_failed")
        assert b"data: [DONE]\n\n" in seen
    else:
        # Then the connection must have been broken off, without the final chunk.
        assert not seen.endswith(b"0\r\n\r\n")
    assert b'"finish_reason":"' not in seen
    # Where the engine had begun, no proxy may send the request to another server by itself.
    for one, status in ((whole, b"500"), (queued, b"503")):
        raw = one.read_all()
        if raw:
            assert raw.startswith(b"HTTP/1.1 " + status), raw
            check_error_body(json.loads(raw.partition(b"\r\n\r\n")[2]), code="engine_failed")
    assert server.process.wait(20) not in (0, -signal.SIGKILL)
    server.assert_no_orphan()
    assert "engine died" in server.stderr().strip().splitlines()[-1]
    assert "Traceback" not in "".join(line for line in server.stderr().splitlines() if not line.startswith("{"))
