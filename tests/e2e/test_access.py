"""A server without keys, seen from a browser that a page of another site has sent there."""

from __future__ import annotations

import pytest

from tests.support.server import ASK, CHAT, MODEL, Raw, Server, check_error, request_bytes

ASKED = {"model": MODEL, "messages": ASK, "max_tokens": 2}
EVIL = "https://evil.example"
CALLS = [
    ("POST", CHAT, ASKED),
    ("POST", "/v1/responses", {"model": MODEL, "input": "x", "max_output_tokens": 2}),
    ("POST", "/v1/messages", {"model": MODEL, "messages": ASK, "max_tokens": 2}),
    ("POST", "/tokenize", {"model": MODEL, "prompt": "x"}),
    ("POST", "/invocations", ASKED),
    ("GET", "/v1/models", None),
    ("GET", "/metrics", None),
    ("DELETE", "/v1/streams/chatcmpl-1", None),
]


def is_refused(server: Server, method: str, path: str, body: object, headers: dict[str, str]) -> bool:
    response = server.http.request(method, path, json=body, headers=headers)
    assert not [name for name in response.headers if name.startswith("access-control-allow")]
    return response.status_code == 403


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_pages_of_other_sites_are_refused(server: Server, method: str, path: str, body: object) -> None:
    own = server.url
    for headers in (
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": EVIL, "Host": "evil.example"},
        {"Origin": "http://evil.example", "Host": "evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "127.0.0.1.evil.example"},
    ):
        assert is_refused(server, method, path, body, headers), headers
    for headers in ({}, {"Origin": own}, {"Host": "localhost"}, {"Origin": own, "Sec-Fetch-Site": "same-origin"}):
        assert not is_refused(server, method, path, body, headers), headers


@pytest.mark.parametrize(("path", "body"), [(path, body) for method, path, body in CALLS if method == "POST"])
def test_bodies_are_called_json(server: Server, path: str, body: dict[str, object]) -> None:
    """As `vllm serve` has it, whose answer is 400, too."""
    for kind in ("text/plain", "text/plain; application/json", "application/x-www-form-urlencoded"):
        response = server.http.post(
            path, content=request_bytes(body).partition(b"\r\n\r\n")[2], headers={"Content-Type": kind}
        )
        assert response.status_code == 400, (kind, response.text)
        assert "application/json" in response.text
    assert server.post(path, **body).status_code == 200
    assert (
        server.http.post(path, json=body, headers={"Content-Type": "Application/JSON; charset=utf-8"}).status_code
        == 200
    )


def test_a_preflight_opens_nothing(server: Server) -> None:
    asks = {"Origin": EVIL, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    response = server.http.request("OPTIONS", CHAT, headers=asks)

    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_websocket_of_another_site_is_refused_before_its_handshake(server: Server) -> None:
    head = f"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {EVIL}\r\nConnection: Upgrade\r\n"
    head += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    client = Raw(server.port, head.encode())
    try:
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 403 ")
    finally:
        client.close()


def test_probes_are_answered_by_any_name(server: Server) -> None:
    for path in ("/livez", "/readyz", "/health", "/ping"):
        assert (
            server.http.get(path, headers={"Host": "10.1.2.3:8000", "User-Agent": "kube-probe/1.32"}).status_code == 200
        )


def test_operator_endpoints_are_off_without_keys(server: Server) -> None:
    for method, path in (
        ("GET", "/kv_event_sources"),
        ("POST", "/is_scaling_elastic_ep"),
        ("POST", "/scale_elastic_ep"),
    ):
        error = check_error(server.http.request(method, path), 403, code="forbidden")
        assert "server.operator_endpoints" in error["message"]


def test_answers_vary_by_origin_once_at_most(server: Server) -> None:
    for path in ("/v1/models", "/version"):
        assert server.http.get(path).headers.get("vary", "Origin") == "Origin"
