"""The engine without a model: every token is known in advance, and it fails where its settings define it.

The server has so little KV memory and such small batches that prompts are cut and streams preempted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.engine import deterministic_tokens
from tests.support.deterministic_text import expected_text
from tests.support.server import (
    ASK,
    CHAT,
    MODEL,
    Json,
    Raw,
    Server,
    alive,
    content,
    descendants,
    events,
    poll,
    request_bytes,
)

STREAMS = 100
TOKENS = 300
# Several times as many steps as all other tests take together, and fewer than one stream can take.
DIES_AT_STEP = 5_000
CONTEXT = 32_768

ENV = {
    "SLUICE_SYNTHETIC__ENABLED": "true",
    "SLUICE_SERVER__CORS_ORIGINS": '["http://app.example"]',
    "SLUICE_SERVER__OPERATOR_ENDPOINTS": "true",
    # Long enough for all streams to arrive while the first of them run.
    "SLUICE_SYNTHETIC__STEP_MS": "1",
    "SLUICE_SYNTHETIC__DIE_AT_STEP": str(DIES_AT_STEP),
    # One sequence of the whole context fits; a hundred of these tests' length do not.
    "SLUICE_ENGINE__MAX_MODEL_LEN": str(CONTEXT),
    "SLUICE_ENGINE__BLOCK_SIZE": "128",
    "SLUICE_ENGINE__NUM_GPU_BLOCKS_OVERRIDE": str(CONTEXT // 128 + 2),
    "SLUICE_ENGINE__MAX_NUM_SEQS": "128",
    "SLUICE_ENGINE__MAX_NUM_BATCHED_TOKENS": "256",
}

# Of vLLM's, for paths that are not its own alone, and for one of its endpoints.
FLAGS = ["--root-path", "/llm", "--disable-fastapi-docs", "--enable-server-load-tracking", "--enable-scale-out"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its life ends with its engine's, in the last test."""
    one = Server(tmp_path_factory.mktemp("synthetic"), "--", *FLAGS, env=ENV)
    try:
        one.wait_ready()
        yield one
    finally:
        one.close()


def prompt_of(number: int) -> list[int]:
    """Prompts differ in their first token and in their length, some of them longer than a batch."""
    return [300 + number] + [301] * (2 + 5 * number)


def test_a_chat_has_the_deterministic_text(server: Server) -> None:
    prompt = server.post("/tokenize", model=MODEL, messages=ASK).json()["tokens"]
    answer = server.post(model=MODEL, messages=ASK, max_tokens=200, stream=True, stream_options={"include_usage": True})
    output = events(answer.text)

    assert content(output) == expected_text(prompt, 200)
    assert not content(output).isascii(), "characters of several tokens, too"
    assert output[-1]["usage"]["completion_tokens"] == 200


def test_vllms_flags_hold_for_all_paths(server: Server) -> None:
    for path in ("/llm/v1/models", f"/llm/v1/models/{MODEL}", "/llm/livez", "/livez", "/llm/"):
        assert server.http.get(path).status_code == 200
    for path in ("/docs", "/openapi.json", "/redoc", "/llm/docs", "/llm/llm/livez", "/llm/metrics%0a"):
        assert server.http.get(path).status_code == 404
    shared = server.http.get("/v1/models", headers={"Origin": "http://app.example"})
    assert shared.headers["access-control-allow-origin"] == "http://app.example"
    assert shared.headers.get_list("vary") == ["Origin"], "vLLM's own app adds it, too"
    assert server.post("/llm/v1/chat/completions", model=MODEL, messages=ASK, max_tokens=1).status_code == 200


def test_the_load_counts_our_endpoints_and_stands_in_their_headers(server: Server) -> None:
    server.wait_idle()
    assert server.http.get("/load").json() == {"server_load": 0}
    raw = Raw(server.port, request_bytes({"model": MODEL, "messages": ASK, "max_tokens": 9000, "stream": True}))
    raw.read_until(b"content")
    assert server.http.get("/load").json() == {"server_load": 1}
    asked = {"endpoint-load-metrics-format": "JSON"}
    chat = server.post(headers=asked, model=MODEL, messages=ASK, max_tokens=1)
    text = server.post("/v1/completions", headers=asked, model=MODEL, prompt="x", max_tokens=1)
    raw.rst()
    for answer in (chat, text):
        kind, _, report = answer.headers["endpoint-load-metrics"].partition(" ")
        assert kind == "JSON"
        assert "kv_cache_usage_perc" in json.loads(report)["named_metrics"]
    server.wait_idle()


def test_an_abort_by_vllms_own_endpoint_ends_its_streams_as_it_promises(server: Server) -> None:
    body = {"model": MODEL, "token_ids": [300, 301], "sampling_params": {"max_tokens": 9000}, "stream": True}
    raw = Raw(server.port, request_bytes(body, "/inference/v1/generate"))
    head = raw.read_until(b"data: ").decode().lower()
    stream_id = next(line for line in head.split("\r\n") if line.startswith("x-stream-id: ")).split(": ")[1]
    assert server.post("/inference/v1/abort_requests", request_ids=[stream_id]).status_code == 200
    end = raw.read_until(b"0\r\n\r\n")
    raw.close()

    assert b'"finish_reason":"abort"' in end
    assert b'"error"' not in end
    assert b"data: [DONE]" in end
    server.wait_idle()


@pytest.mark.parametrize("body", [{"messages": ASK}, {"prompt": "x"}])
def test_sagemakers_endpoint_streams(server: Server, body: Json) -> None:
    """It dispatches to the serving objects whose streams are ours elsewhere."""
    path = CHAT if "messages" in body else "/v1/completions"
    asked = {"model": MODEL, "max_tokens": 9, "stream": True, **body}
    theirs, ours = (events(server.post(one, **asked).text) for one in ("/invocations", path))

    assert "".join(map(_text, theirs)) == "".join(map(_text, ours))
    assert theirs[-1]["choices"][0]["finish_reason"] == "length"


def _text(event: Json) -> str:
    choice = event["choices"][0]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"tools": []}, 200),
        ({"tools": None, "tool_choice": None}, 200),
        ({"tool_choice": "none"}, 200),
        ({"tools": [], "tool_choice": "auto"}, 200),
        ({"temperature": None, "top_p": None, "stop": None, "stream": None, "metadata": None, "user": None}, 200),
        ({"tool_choice": "required"}, 400),
        ({"tools": [], "tool_choice": "required"}, 400),
    ],
)
def test_fields_without_effect_are_accepted_by_every_protocol(server: Server, fields: Json, status: int) -> None:
    choice = fields.get("tool_choice")
    anthropic = {**fields, "tool_choice": {"type": "any" if choice == "required" else choice}} if choice else fields
    answers = [
        server.post(model=MODEL, messages=ASK, max_tokens=1, **fields),
        server.post("/v1/messages", model=MODEL, messages=ASK, max_tokens=1, **anthropic),
        server.post("/v1/messages/count_tokens", model=MODEL, messages=ASK, **anthropic),
        server.post("/v1/responses", model=MODEL, input="x", max_output_tokens=1, **fields),
    ]

    assert [answer.status_code for answer in answers] == [status] * 4, [answer.text for answer in answers]
    if status == 400:
        assert all("no tools to choose from" in answer.text for answer in answers)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_a_stream_of_vllms_own_is_cancelled_by_the_id_in_its_header(server: Server, path: str) -> None:
    """A message then ends with Anthropic's error event; a response's stream breaks off."""
    more = (
        {"input": "x", "max_output_tokens": 9000} if path == "/v1/responses" else {"messages": ASK, "max_tokens": 9000}
    )
    raw = Raw(server.port, request_bytes({"model": MODEL, "stream": True, **more}, path))
    head = raw.read_until(b"delta").partition(b"\r\n\r\n")[0].decode()
    headers = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:])
    assert server.http.delete(f"/v1/streams/{headers['x-stream-id']}").json()["status"] == "cancelled"
    end = raw.read_until(b"0\r\n\r\n") if path == "/v1/messages" else raw.read_all()
    raw.close()

    assert b"validation error" not in end
    assert (b"event: error\ndata: " in end) == (path == "/v1/messages")
    if path == "/v1/messages":
        error = json.loads(end[end.index(b"event: error") :].split(b"data: ")[1].split(b"\n")[0])
        assert error["type"] == "error"
        assert error["error"]["message"] == "The request was cancelled by its id."
        assert error["request_id"] == headers["request-id"]
        assert end.endswith(b"0\r\n\r\n")
    server.wait_idle()
    # A line for each request, and nothing about how vLLM came across its end.
    assert "Error" not in server.stderr()


def test_every_position_of_a_hundred_streams_is_right(server: Server) -> None:
    """Half of them by text alone, through our own chunks; half by token ids, through vLLM's."""

    def run(number: int) -> list[Json]:
        answer = server.post(
            "/v1/completions",
            model=MODEL,
            prompt=prompt_of(number),
            max_tokens=TOKENS,
            stream=True,
            return_token_ids=number % 2 == 1,
        )
        return events(answer.text)

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = list(pool.map(run, range(STREAMS)))

    for number, documents in enumerate(streams):
        prompt, choices = prompt_of(number), [document["choices"][0] for document in documents]

        assert "".join(choice["text"] for choice in choices) == expected_text(prompt, TOKENS)
        assert choices[-1]["finish_reason"] == "length"
        if number % 2 == 1:
            output = [token for choice in choices for token in choice["token_ids"] or []]

            assert output == deterministic_tokens.tokens(prompt[0], len(prompt), TOKENS)
    assert server.sample("vllm:num_preemptions_total") > 0


def test_features_of_the_scheduler_work(server: Server) -> None:
    """Stop strings, several choices, cancelled clients."""
    prompt = prompt_of(0)
    text = expected_text(prompt, 300)
    stop = next(character for character in text if ord(character) > 0x1F000)
    answer = server.post("/v1/completions", model=MODEL, prompt=prompt, max_tokens=300, stop=[stop], n=2).json()

    assert [choice["text"] for choice in answer["choices"]] == [text.partition(stop)[0]] * 2
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 2

    endless = {"model": MODEL, "prompt": prompt, "max_tokens": 9000, "stream": True}
    leaving = Raw(server.port, request_bytes(endless, "/v1/completions"))
    leaving.read_until(b"text")
    leaving.close()
    server.wait_idle()


def test_requests_that_need_a_model_do_not_end_the_engine(server: Server) -> None:
    engine = server.engine_pid()
    guided = server.post(model=MODEL, messages=ASK, stream=True, response_format={"type": "json_object"})
    scored = server.ask(logprobs=True, top_logprobs=2, max_tokens=2)["choices"][0]["logprobs"]["content"]

    assert guided.status_code == 400
    assert "structured_outputs" in guided.text
    assert [one["logprob"] for one in scored] == [0, 0]
    assert all(len(one["top_logprobs"]) == 2 for one in scored)
    assert server.ask(max_tokens=5)["usage"]["completion_tokens"] == 5
    assert server.engine_pid() == engine


def test_the_engine_process_dies_in_the_step_that_is_named(server: Server) -> None:
    """What the server makes of that is for other tests."""
    engine = [process for process in descendants(server.pid) if process[0] == server.engine_pid()]
    body = {"model": MODEL, "prompt": prompt_of(0), "max_tokens": DIES_AT_STEP, "stream": True}
    reading = Raw(server.port, request_bytes(body, "/v1/completions"))
    try:
        poll("the engine process has ended", lambda: not alive(engine), 60)
    finally:
        reading.close()
