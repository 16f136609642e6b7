"""Every other path: our small ones, vLLM's own on the same engine, and what all responses share."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest

from tests.e2e.conftest import Starting
from tests.support.server import (
    ASK,
    CHAT,
    MODEL,
    Raw,
    Server,
    check_error,
    content,
    events,
    long_chat,
    poll,
    request_bytes,
)

SSE = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


def test_a_starting_server_answers_503_with_retry_after(server: Server, starting: Starting) -> None:
    """The socket is open at once; until the engine is up, every answer is a 503 with Retry-After."""
    assert starting.open_after_s < 3
    assert starting.answers["/livez"].status_code == 200
    assert starting.answers["/metrics"].status_code == 200
    for path in ("/readyz", "/health", "chat", "models"):
        answer = starting.answers[path]
        error = check_error(answer, 503, code="server_starting")
        assert error["type"] == "server_error"
        assert error["retryable"] is True
        assert "starting" in error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert server.http.get("/readyz").json() == {"status": "ready"}
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/livez").status_code == 200


def test_the_start_is_logged(server: Server) -> None:
    """Progress, then the URL and a line to try; and none of vLLM's chatter."""
    log = server.stderr()
    assert f"listening on {server.url}" in log
    assert f"ready: {MODEL} at {server.url}" in log
    assert f"curl -N {server.url}/v1/chat/completions" in log
    assert not re.search(r"\b(INFO|WARNING)\b", log)
    assert server.out_file.read_text() == ""


def test_tokenize_and_back(server: Server) -> None:
    text = "What is Sluice? Γειά"
    tokens = server.post("/tokenize", model=MODEL, prompt=text, add_special_tokens=False).json()

    assert tokens["count"] == len(tokens["tokens"]) > 3
    assert server.post("/detokenize", model=MODEL, tokens=tokens["tokens"]).json()["prompt"] == text
    chat = server.post("/tokenize", model=MODEL, messages=ASK).json()
    assert chat["count"] == server.ask(max_tokens=1)["usage"]["prompt_tokens"]


def test_responses_stream_and_whole(server: Server) -> None:
    body = {"model": MODEL, "input": "What is Sluice?", "temperature": 0}
    whole = server.post("/v1/responses", **body).json()
    streamed = server.post("/v1/responses", **body, stream=True)

    generated = whole["output"][0]["content"][0]["text"]
    assert "streaming inference server" in generated
    documents = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(one["delta"] for one in documents if one["type"] == "response.output_text.delta") == generated
    assert documents[-1]["type"] == "response.completed"
    assert [one["sequence_number"] for one in documents] == list(range(len(documents)))


def test_messages_stream_and_whole(server: Server) -> None:
    body = {"model": MODEL, "messages": ASK, "max_tokens": 100, "temperature": 0}
    whole = server.post("/v1/messages", **body).json()
    streamed = server.post("/v1/messages", **body, stream=True)

    assert "streaming inference server" in whole["content"][0]["text"]
    documents = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    generated = "".join(one["delta"].get("text", "") for one in documents if one["type"] == "content_block_delta")
    assert generated == whole["content"][0]["text"]
    assert documents[-1]["type"] == "message_stop"
    counted = server.post("/v1/messages/count_tokens", model=MODEL, messages=ASK).json()
    assert counted["input_tokens"] == whole["usage"]["input_tokens"]


def test_docs_and_schema_show_both(server: Server) -> None:
    assert "/openapi.json" in server.http.get("/docs").text
    document = server.http.get("/openapi.json").json()

    ours = {"/v1/streams/{stream_id}", "/v1/streams/{stream_id}/cancel", "/livez", "/readyz", "/health", "/metrics"}
    theirs = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/v1/models"}
    assert ours | theirs <= document["paths"].keys()
    assert "delete" in document["paths"]["/v1/streams/{stream_id}"]
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert used <= document["components"]["schemas"].keys()
    assert "ChatCompletionRequest" in used


def test_version(server: Server) -> None:
    found = server.http.get("/version").json()
    assert set(found) == {"sluice", "vllm", "version"}
    assert found["vllm"].startswith("0.")
    assert found["version"] == found["vllm"]


def test_unknown_paths_and_wrong_methods(server: Server) -> None:
    for method in ("GET", "POST", "DELETE"):
        check_error(server.http.request(method, "/nope"), 404, code="not_found")
    for method, path in (
        ("GET", CHAT),
        ("PUT", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("GET", "/v1/responses"),
        ("GET", "/tokenize"),
        ("POST", "/livez"),
        ("GET", "/v1/streams/x/cancel"),
    ):
        refused = server.http.request(method, path)
        check_error(refused, 405, code="method_not_allowed")
        assert refused.headers["allow"] == server.http.request("OPTIONS", path).headers["allow"]
    assert refused.headers["allow"] == "OPTIONS, POST"
    # The demo model is not one of the pooling family.
    check_error(server.post("/v1/embeddings", model=MODEL, input="x"), 404)


def test_head_is_get_without_its_body(server: Server) -> None:
    for path in ("/livez", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/docs", "/openapi.json", "/nope", "/ping"):
        got, head = server.http.get(path), server.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers.get("content-type") == got.headers.get("content-type")
        if path != "/metrics":
            assert head.headers["content-length"] == got.headers["content-length"]


def test_a_slash_too_many_and_a_wrong_base_url(server: Server) -> None:
    assert server.http.get("/v1/models/", follow_redirects=True).json()["data"][0]["id"] == MODEL
    slashed = server.http.post(
        f"{CHAT}/", json={"model": MODEL, "messages": ASK, "max_tokens": 1}, follow_redirects=True
    )
    assert slashed.status_code == 200
    lost = check_error(server.post("/chat/completions", model=MODEL, messages=ASK), 404, code="not_found")
    assert f"{server.url}/v1" in lost["message"]
    assert server.http.get("/").json()["openai_base_url"] == f"{server.url}/v1"
    # vLLM's app takes every path that begins with /metrics.
    for path in ("/metrics%0a", "/metrics/x", "/metricsx", "/metrics;x", "//metrics", "/./metrics", "/%6detrics"):
        raw = Raw(server.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert raw.read_all().startswith(b"HTTP/1.1 404 ")
        raw.close()


def test_metrics_have_the_contracts_names(server: Server) -> None:
    server.ask()
    server.post(**long_chat(max_tokens=5))
    found = server.samples()

    for name in (
        "sluice_time_to_first_token_seconds_count",
        "sluice_inter_token_latency_seconds_count",
        "sluice_request_duration_seconds_count",
        "sluice_queue_wait_seconds_count",
        "sluice_overhead_seconds_count",
        "sluice_requests_total",
        'sluice_ended_total{cause="completed"}',
        "sluice_build_info",
        "sluice_ready",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:request_success_total",
    ):
        assert found.get(name, 0) > 0, name
    for name in (
        "sluice_streams_active",
        "sluice_requests_waiting",
        'sluice_ended_total{cause="disconnected"}',
        'sluice_ended_total{cause="engine_failed"}',
        'sluice_wasted_tokens_total{cause="cancelled"}',
        "sluice_merged_deltas_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
    ):
        assert name in found, name
    assert found[f'sluice_requests_total{{endpoint="{CHAT}"}}'] > 0
    text = server.http.get("/metrics").text
    # A labelled family without samples is still announced.
    assert "# TYPE sluice_rejections_total counter" in text or "# TYPE sluice_rejections counter" in text


def test_every_stream_is_one_ttft(server: Server) -> None:
    """Plain, parsed by vLLM, and text completions alike; a refused request is none. Whole answers have no first
    token that a client saw."""
    name = "sluice_time_to_first_token_seconds_count"
    before = server.sample(name)
    server.post(**long_chat(max_tokens=5))
    assert server.sample(name) == before + 1
    server.post(**long_chat(max_tokens=5, logprobs=True))
    assert server.sample(name) == before + 2
    server.post("/v1/completions", model=MODEL, prompt="Hello", max_tokens=5, stream=True)
    assert server.sample(name) == before + 3
    server.post(**long_chat(max_tokens=-1))
    server.ask(max_tokens=5)
    assert server.sample(name) == before + 3


def test_the_engines_gauge_returns_to_zero_after_an_abort(server: Server) -> None:
    """After an abort the engine makes no further step, and its gauge would stay where the last one left it."""
    server.wait_idle()
    client = Raw(server.port, request_bytes(long_chat()))
    client.read_until(b'"content":"')
    poll("the engine runs it", lambda: server.sample("vllm:num_requests_running") == 1, 5)
    client.rst()
    poll("the gauge is zero", lambda: server.sample("vllm:num_requests_running") == 0, 3)


@pytest.mark.parametrize("path", ["plain", "parsed"])
def test_headers_of_a_stream(server: Server, path: str) -> None:
    more = {"logprobs": True} if path == "parsed" else {}
    response = server.post(**long_chat(max_tokens=5, **more), headers={"X-Request-Id": "mine-1:a"})

    assert response.status_code == 200
    for name, value in SSE.items():
        assert response.headers[name] == value
    documents = events(response.text)
    assert {one["id"] for one in documents} == {response.headers["x-stream-id"]}
    assert response.headers["x-stream-id"].startswith("chatcmpl-")
    assert response.headers["x-request-id"] == "mine-1:a"
    # The id is enough to cancel the stream, so the client may not choose it.
    assert "mine-1" not in response.headers["x-stream-id"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_headers_of_vllms_own_streams(server: Server, path: str) -> None:
    """No proxy may hold them back, either, and they can be cancelled by the id that they carry."""
    body = {"input": "Hello"} if path == "/v1/responses" else {"messages": ASK, "max_tokens": 5}
    response = server.post(path, model=MODEL, stream=True, **body)

    assert response.status_code == 200
    for name, value in SSE.items():
        assert response.headers[name] == value
    assert response.headers["x-request-id"]
    assert f'"id":"{response.headers["x-stream-id"]}"' in response.text
    assert ("request-id" in response.headers) == (path == "/v1/messages")


def test_request_ids(server: Server) -> None:
    """Taken from the client or made, and echoed by every path; what does not belong into a header is replaced."""
    for path in ("/livez", "/v1/models", "/nope"):
        assert server.http.get(path, headers={"X-Request-Id": "abc.1"}).headers["x-request-id"] == "abc.1"
    made = {server.http.get("/livez").headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5
    for bad in ("a b", "x" * 200, '"><script>'):
        assert server.http.get("/livez", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_many_streams_at_once_do_not_mix(server: Server) -> None:
    questions = ["What is Sluice?", "What is TTFT?", "Hello", "Who are you?"] * 8

    def body(question: str) -> dict[str, object]:
        return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": question}]}

    alone = {one: server.ask(**body(one))["choices"][0]["message"]["content"] for one in set(questions)}
    assert len(set(alone.values())) == 4

    async def run() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            asked = [http.post(CHAT, json={**body(one), "stream": True}) for one in questions]
            return [content(events(response.text)) for response in await asyncio.gather(*asked)]

    assert asyncio.run(run()) == [alone[one] for one in questions]
