"""Whatever comes in: the right status, one clear sentence in the OpenAI body, and the next request is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import ASK, CHAT, MODEL, Json, Raw, Server, check_error, check_error_body

JSON = {"Content-Type": "application/json"}
TEXT = "/v1/completions"
FUNCTION: Json = {"name": "f", "parameters": {"type": "object", "properties": {}}}

# name -> (path, body, status, param)
REFUSED: dict[str, tuple[str, Any, int, str | None]] = {
    "not json": (CHAT, b"{bad", 400, None),
    "nothing": (CHAT, b"", 400, None),
    "cut json": (CHAT, b'{"model": "sluice-demo", "messages": [', 400, None),
    "invalid utf-8": (CHAT, b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', 400, None),
    "lone surrogate": (CHAT, b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400, None),
    "deep json": (CHAT, b"[" * 100_000, 400, None),
    "a list": (CHAT, [1], 400, None),
    "a string": (CHAT, "x", 400, None),
    "null": (CHAT, b"null", 400, None),
    "text, not json": (TEXT, b"prompt=Hello", 400, None),
    "messages missing": (CHAT, {}, 400, "messages"),
    "messages a string": (CHAT, {"messages": "x"}, 400, "messages"),
    "messages an object": (CHAT, {"messages": {"role": "user"}}, 400, "messages"),
    "messages of numbers": (CHAT, {"messages": [1]}, 400, "messages[0]"),
    "no messages": (CHAT, {"messages": []}, 400, "messages"),
    "content a number": (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    "role missing": (CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role"),
    "unknown role": (CHAT, {"messages": [{"role": "alien", "content": "x"}]}, 400, "messages"),
    "unknown model": (CHAT, {"model": "nope", "messages": ASK}, 404, "model"),
    "model a number": (CHAT, {"model": 5, "messages": ASK}, 400, "model"),
    "negative max_tokens": (CHAT, {"messages": ASK, "max_tokens": -1}, 400, "max_tokens"),
    "max_tokens 0": (CHAT, {"messages": ASK, "max_tokens": 0}, 400, "max_tokens"),
    "huge max_tokens": (CHAT, {"messages": ASK, "max_tokens": 10**9}, 400, "max_tokens"),
    "max_tokens past all bounds": (CHAT, {"messages": ASK, "max_tokens": 10**40}, 400, "max_tokens"),
    "negative max_completion_tokens": (
        CHAT,
        {"messages": ASK, "max_completion_tokens": -5},
        400,
        "max_completion_tokens",
    ),
    "too long": (CHAT, {"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "messages"),
    "n of 1000": (CHAT, {"messages": ASK, "n": 1000}, 400, "n"),
    "n of 0": (CHAT, {"messages": ASK, "n": 0}, 400, "n"),
    "n negative": (CHAT, {"messages": ASK, "n": -1}, 400, "n"),
    "temperature a word": (CHAT, {"messages": ASK, "temperature": "hot"}, 400, "temperature"),
    "temperature negative": (CHAT, {"messages": ASK, "temperature": -1}, 400, "temperature"),
    "stream a word": (CHAT, {"messages": ASK, "stream": "perhaps"}, 400, "stream"),
    "bias beyond the vocabulary": (CHAT, {"messages": ASK, "logit_bias": {"999999": 1}}, 400, "logit_bias"),
    "tools a string": (CHAT, {"messages": ASK, "tools": "x"}, 400, "tools"),
    "a tool without function": (CHAT, {"messages": ASK, "tools": [{"type": "function"}]}, 400, "tools[0].function"),
    "a tool without name": (
        CHAT,
        {"messages": ASK, "tools": [{"type": "function", "function": {"parameters": {}}}]},
        400,
        "tools[0].function.name",
    ),
    "tool parameters a list": (
        CHAT,
        {"messages": ASK, "tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
        400,
        "tools[0].function.parameters",
    ),
    "an unknown tool chosen": (
        CHAT,
        {
            "messages": ASK,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        400,
        "tool_choice",
    ),
    "a tool required, none given": (CHAT, {"messages": ASK, "tool_choice": "required"}, 400, "tool_choice"),
    "schema missing": (CHAT, {"messages": ASK, "response_format": {"type": "json_schema"}}, 400, "response_format"),
    "schema that is none": (
        CHAT,
        {
            "messages": ASK,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "wat"}}},
        },
        400,
        "response_format",
    ),
    "bad regex": (CHAT, {"messages": ASK, "structured_outputs": {"regex": "("}}, 400, "structured_outputs"),
    "prompt missing": (TEXT, {}, 400, "prompt"),
    "prompt of mixed things": (TEXT, {"prompt": ["a", 3]}, 400, "prompt[0]"),
    "token ids beyond the vocabulary": (TEXT, {"prompt": [99_999_999]}, 400, "prompt"),
    "prompt too long": (TEXT, {"prompt": "word " * 5000}, 400, "prompt"),
    "1000 prompts": (TEXT, {"prompt": ["x"] * 1000}, 400, None),
    "text, n of 1000": (TEXT, {"prompt": "x", "n": 1000}, 400, "n"),
    "text, unknown model": (TEXT, {"model": "nope", "prompt": "x"}, 404, "model"),
}
# The same for paths that vLLM's own app answers. vLLM writes bodies of its own there, which ours replace.
MOUNTED: dict[str, tuple[str, Any, int, str | None]] = {
    "responses, not json": ("/v1/responses", b"{bad", 400, None),
    "responses, invalid utf-8": ("/v1/responses", b'{"input": "\xff"}', 400, None),
    "responses, input missing": ("/v1/responses", {}, 400, "input"),
    "responses, unknown model": ("/v1/responses", {"model": "nope", "input": "x"}, 404, "model"),
    "tokenize, not json": ("/tokenize", b"{bad", 400, None),
    "tokenize, prompt a number": ("/tokenize", {"prompt": 5}, 400, "prompt"),
    "detokenize, tokens missing": ("/detokenize", {}, 400, "tokens"),
}


@pytest.fixture(autouse=True)
def _served_afterwards(server: Server) -> Iterator[None]:
    """After every test in this file, a normal request."""
    yield
    assert server.ask(max_tokens=4)["choices"][0]["message"]["content"] == "Sluice is a streaming"


def send(server: Server, path: str, body: Any, *, stream: bool = False) -> httpx.Response:
    if isinstance(body, dict):
        body = {"model": MODEL, **({"stream": True} if stream else {}), **body}
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.http.post(path, content=payload, headers=JSON)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server: Server, name: str) -> None:
    """Refused before the first byte, so a client that asked for a stream gets the real status, too."""
    path, body, status, param = REFUSED[name]
    for stream in (False, True):
        error = check_error(send(server, path, body, stream=stream), status, param)
        assert error["retryable"] is False
        assert "\n" not in error["message"]


@pytest.mark.parametrize("name", MOUNTED)
def test_refused_by_vllms_app(server: Server, name: str) -> None:
    path, body, status, param = MOUNTED[name]
    check_error(send(server, path, body), status, param)


def test_odd_tool_schemas_do_no_harm(server: Server) -> None:
    """vLLM takes a schema of an unknown type for one without rules; what counts is that nothing breaks."""
    for schema in ({"type": "nonsense"}, {"type": 7}, {"$ref": "#/nowhere"}, {"properties": 3}):
        for choice in ("auto", "required"):
            tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
            body = {"messages": ASK, "tools": [tool], "tool_choice": choice, "max_tokens": 8}
            response = send(server, CHAT, body)
            if response.status_code != 200:
                check_error(response, 400)


def test_a_body_announced_as_too_large_is_refused_unread(server: Server) -> None:
    """Refused by its Content-Length: the server does not wait for 100 MB."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\nContent-Length: {100 * 2**20}\r\n\r\n"
    )
    began = time.monotonic()
    client = Raw(server.port, head.encode())
    try:
        status, body = answer(client)
    finally:
        client.close()
    assert status == 413
    error = check_error_body(body, code="body_too_large")
    assert "server.max_body_bytes" in error["message"]
    assert time.monotonic() - began < 5


def answer(client: Raw) -> tuple[int, Json]:
    """Status and JSON body of the one response that a raw client got."""
    head, _, rest = client.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(rest) < length:
        part = client.sock.recv(65536)
        assert part, "the body is cut"
        rest += part
    return int(head.split()[1]), json.loads(rest[:length])


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_a_body_that_is_too_large(server: Server, how: str) -> None:
    """100 MB from a client that sends it all; the server must neither keep it nor break off before it has answered."""
    memory = resident_bytes(server.pid)
    block = b"x" * 2**20
    sizes = {"Content-Length": str(100 * len(block))} if how == "length" else {"Transfer-Encoding": "chunked"}
    head = f"POST {CHAT} HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n"
    client = Raw(
        server.port, (head + "".join(f"{name}: {value}\r\n" for name, value in sizes.items()) + "\r\n").encode()
    )
    try:
        # The server may stop listening once it has answered.
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                client.sock.sendall(block if how == "length" else b"100000\r\n" + block + b"\r\n")
        status, body = answer(client)
    finally:
        client.close()
    assert status == 413
    check_error_body(body, code="body_too_large")
    assert resident_bytes(server.pid) - memory < 60 * 2**20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_large_body_is_fine_below_the_limit(server: Server) -> None:
    """8 MB are read, parsed and refused for their content."""
    response = send(server, CHAT, {"messages": [{"role": "user", "content": "word " * (8 * 2**20 // 5)}]})
    check_error(response, 400)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"hello\r\n\r\n",
        b"\x00\xff" * 300,
        b"GET\r\n\r\n",
    ],
    ids=["tls", "words", "bytes", "no path"],
)
def test_garbage_on_the_socket(server: Server, garbage: bytes) -> None:
    client = Raw(server.port, garbage)
    try:
        status, body = answer(client)
        check_error_body(body, code="invalid_request")
        assert status == 400
        assert client.sock.recv(1) == b""
    finally:
        client.close()


@pytest.mark.parametrize("how", ["one header", "many headers", "path", "endless line"])
def test_headers_too_large(server: Server, how: str) -> None:
    """64 KiB of it; the limit is 32."""
    size = 64 * 2**10
    head = {
        "one header": b"GET /livez HTTP/1.1\r\nHost: e2e\r\nX-Large: " + b"x" * size + b"\r\n\r\n",
        "many headers": b"GET /livez HTTP/1.1\r\nHost: e2e\r\n" + b"X-A: 12345678\r\n" * (size // 15) + b"\r\n",
        "path": b"GET /" + b"x" * size + b" HTTP/1.1\r\nHost: e2e\r\n\r\n",
        "endless line": b"GET /livez HTTP/1.1\r\nX-Large: " + b"x" * size,
    }[how]
    client = Raw(server.port)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sock.sendall(head)
        status, body = answer(client)
        assert status == 431
        check_error_body(body, code="headers_too_large")
    finally:
        client.close()


def test_many_broken_connections(server: Server) -> None:
    """A scanner at work: nothing piles up."""
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 50\r\n\r\n{")
    server.wait_idle()
    assert server.sample("sluice_requests_waiting") == 0


def test_wrong_methods(server: Server) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = server.http.request(method, CHAT)

        check_error(answer, 405, code="method_not_allowed")
        assert "POST" in answer.headers["allow"]
    options = server.http.options(CHAT)
    assert options.status_code == 204
    assert "POST" in options.headers["allow"]


def test_nothing_of_this_reached_the_log_as_a_stack(server: Server) -> None:
    assert "Traceback" not in server.stderr()
    assert "failed with an unexpected error" not in server.stderr()
