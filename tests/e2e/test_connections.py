"""How long a connection may be silent, and how old it may be."""

from __future__ import annotations

import json
import time

import httpx

from tests.e2e.conftest import Keyed
from tests.support.server import (
    Raw,
    check_error_body,
    poll,
)


def test_headers_and_silence(keyed: Keyed) -> None:
    """Half a header: 408 and closed after server.header_timeout_s. Nothing, or not even a path: closed."""
    for sent in (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e2e\r\nContent-Le", b"G", b""):
        began = time.monotonic()
        client = Raw(keyed.server.port, sent)
        try:
            raw = client.read_all()
        finally:
            client.close()
        assert 0.8 < time.monotonic() - began < 3
        if len(sent) < 2:
            assert raw == b""
            continue
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        error = check_error_body(json.loads(body), code="headers_timeout")
        assert "1 s" in error["message"]


def test_headers_that_drip(keyed: Keyed) -> None:
    """A byte now and then does not move the deadline."""
    client = Raw(keyed.server.port, b"GET /livez HTTP/1.1\r\n")
    began = time.monotonic()
    client.sock.settimeout(0.2)
    try:
        while time.monotonic() - began < 5:
            try:
                client.seen += client.sock.recv(65536)
            except TimeoutError:
                client.sock.sendall(b"X")
                continue
            break
        assert client.seen.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 3
    finally:
        client.close()


def test_a_kept_connection_may_be_silent(keyed: Keyed) -> None:
    """The deadline is for a request's headers and not for the time between two requests."""
    with httpx.Client(base_url=keyed.server.url) as http:
        assert http.get("/livez").status_code == 200
        quiet_until = time.monotonic() + 1.5
        poll("longer than the deadline", lambda: time.monotonic() > quiet_until, 3)
        with http.stream("GET", "/livez") as response:
            assert response.status_code == 200
            assert len(http._transport._pool.connections) == 1  # type: ignore[attr-defined]


def test_an_idle_connection_is_closed(keyed: Keyed) -> None:
    client = Raw(keyed.server.port, b"GET /livez HTTP/1.1\r\nHost: e2e\r\n\r\n")
    try:
        client.read_until(b"\r\n\r\n")
        began = time.monotonic()
        assert b"connection: close" not in client.read_all()
        assert 2 < time.monotonic() - began < 5
    finally:
        client.close()


def test_an_old_connection_ends_with_connection_close(keyed: Keyed) -> None:
    with httpx.Client(base_url=keyed.server.url) as http:
        began = time.monotonic()
        poll("an answer is the last", lambda: http.get("/livez").headers.get("connection") == "close", 6, 0.1)
        assert time.monotonic() - began > 3
        assert "connection" not in http.get("/livez").headers, "another connection"
