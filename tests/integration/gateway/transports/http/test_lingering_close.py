"""Real sockets: an answer that comes before the end of its request reaches a client that sends everything first."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.transports.common.listeners import bind, bind_unix
from gateway.transports.common.tls import CertificateFiles, Certificates
from tests.support.certificates import Authority
from tests.support.connection_apps import Early
from tests.support.server import poll
from tests.support.threaded_server import ThreadedServer

BODY_BYTES = 8 * 2**20


@pytest.mark.parametrize("over", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_an_early_answer_reaches_a_client_that_sends_everything_first(over: str, framing: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificates = Certificates(CertificateFiles(*authority.sign("server"))) if over == "tls" else None
    sock = bind_unix(tmp_path / "s", "owner")[0] if over == "unix" else bind("127.0.0.1", 0)
    with ThreadedServer(Early(), sock, certificates=certificates) as live:
        client: Any = socket.socket(socket.AF_UNIX if over == "unix" else socket.AF_INET)
        client.settimeout(20)
        client.connect(live.address)
        if over == "tls":
            context = ssl.create_default_context(cafile=str(authority.file))
            client = context.wrap_socket(client, server_hostname="localhost")
        with client:
            how = f"content-length: {BODY_BYTES}" if framing == "length" else "transfer-encoding: chunked"
            client.sendall(f"POST /x HTTP/1.1\r\nhost: a\r\n{how}\r\n\r\n".encode())
            piece = b"b" * 65536 if framing == "length" else b"10000\r\n" + b"b" * 65536 + b"\r\n"
            for _ in range(BODY_BYTES // 65536):
                client.sendall(piece)
            answer = client.recv(65536)

        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"connection: close" in answer

        poll("the connection is over", lambda: not live.server.server_state.connections, 5)


def test_a_client_that_never_stops_sending_is_cut_off() -> None:
    with ThreadedServer(Early(), bind("127.0.0.1", 0)) as live, socket.create_connection(live.address) as client:
        client.settimeout(20)
        client.sendall(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999999\r\n\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 2**30:
                sent += client.send(b"b" * 65536)

        assert sent < 2**28
