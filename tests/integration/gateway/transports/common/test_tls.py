from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import preflight
from gateway.asgi import DIRECT_SINK
from gateway.errors import SettingsError
from gateway.settings import Settings
from gateway.settings_sections import Server, Tls
from gateway.transports.common.listeners import bind, bind_unix
from gateway.transports.common.tls import CertificateFiles, Certificates, load
from gateway.transports.http.connection import HttpConnection
from tests.support.asgi import read_body
from tests.support.certificates import Authority, serial
from tests.support.server import poll
from tests.support.threaded_server import ThreadedServer

PIECE = b"x" * 1000


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    """Answers as a stream does: begun in ASGI, gone on with past it."""
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-scheme", scope["scheme"].encode())]})
    await send({"type": "http.response.body", "body": b"begin ", "more_body": True})
    for _ in range(100):
        if scope[DIRECT_SINK].is_writable():
            scope[DIRECT_SINK].write(PIECE)
        else:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    scope[DIRECT_SINK].flush()
    await send({"type": "http.response.body", "body": b" end"})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(authority: Authority, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if client is not None:
        context.load_cert_chain(*client)
    return context


def shown(address: tuple[str, int], context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with (
        socket.create_connection(address) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        der = wrapped.getpeercert(binary_form=True)
        assert der is not None
        return serial(ssl.DER_cert_to_PEM_cert(der))


def test_a_stream_over_tls_is_the_same_as_without(authority: Authority) -> None:
    files = CertificateFiles(*authority.sign("server"))
    with (
        ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=Certificates(files)) as live,
        httpx.Client(verify=trusting(authority), base_url=f"https://localhost:{live.address[1]}") as client,
    ):
        for _ in range(3):
            answer = client.post("/x", content=b"b" * 100_000)

            assert answer.content == b"begin " + PIECE * 100 + b" end"
            assert answer.headers["x-scheme"] == "https"


def test_a_peer_that_does_not_end_its_handshake_is_let_go(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpConnection, "header_timeout_s", 0.3)
    files = CertificateFiles(*authority.sign("server"))
    with (
        ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=Certificates(files)) as live,
        socket.create_connection(live.address) as client,
    ):
        client.settimeout(10)
        client.sendall(b"\x16\x03\x01\x02\x00")

        assert client.recv(100) == b""


def test_plain_http_on_the_port_of_tls_is_closed(authority: Authority) -> None:
    files = CertificateFiles(*authority.sign("server"))
    with (
        ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=Certificates(files)) as live,
        socket.create_connection(live.address) as client,
    ):
        client.settimeout(10)
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = b""
        with pytest.MonkeyPatch.context():
            try:
                while part := client.recv(100):
                    answer += part
            except ConnectionResetError:
                pass

        assert not answer.startswith(b"HTTP")


def test_certificates_are_read_again_without_a_cut(authority: Authority, tmp_path: Path) -> None:
    cert_file, key_file = authority.sign("server")
    certificates = Certificates(CertificateFiles(cert_file, key_file))
    context = trusting(authority)
    with (
        ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=certificates) as live,
        httpx.Client(verify=context, base_url=f"https://localhost:{live.address[1]}") as client,
    ):
        before = shown(live.address, context)
        assert client.post("/x").status_code == 200
        old = next(iter(live.server.server_state.connections))
        new_cert, new_key = authority.sign("renewed")
        # First one, then the other, as some tools do: in between the two do not belong together.
        shutil.copy(new_cert, cert_file)
        shutil.copy(new_key, key_file)
        poll("the new certificate", lambda: shown(live.address, context) != before, 5, 0.1)

        assert client.post("/x").status_code == 200
        assert old in live.server.server_state.connections, "the open connection has been used again"
        assert shown(live.address, context) == serial(new_cert.read_bytes())


def test_a_bad_replacement_keeps_the_old_one_and_is_logged_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sluice")
    cert_file, key_file = authority.sign("server")
    certificates = Certificates(CertificateFiles(cert_file, key_file))
    good = certificates.context.newest
    certificates.refresh()
    cert_file.write_text("nonsense")
    for _ in range(3):
        certificates.refresh()

    assert certificates.context.newest is good
    (line,) = caplog.messages
    assert "stay as they were: server.tls.cert_file" in line

    cert_file.unlink()
    certificates.refresh()

    assert certificates.context.newest is good

    again, again_key = authority.sign("again")
    os.replace(again, cert_file)
    os.replace(again_key, key_file)
    certificates.refresh()

    assert certificates.context.newest is not good
    assert "read again" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("wanted", "shows", "served"),
    [
        (None, "ours", True),
        (None, None, False),
        (None, "foreign", False),
        ("required", None, False),
        ("optional", None, True),
        ("optional", "foreign", False),
        ("none", "foreign", True),
    ],
)
def test_clients_show_certificates(authority: Authority, tmp_path: Path, wanted: Any, shows: Any, served: bool) -> None:
    files = CertificateFiles(*authority.sign("server"), client_ca_file=authority.file, client_certificates=wanted)
    (tmp_path / "other").mkdir()
    foreign = Authority(tmp_path / "other", "foreign")
    client = {None: None, "ours": authority.sign("client"), "foreign": foreign.sign("client")}[shows]
    with ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=Certificates(files)) as live:
        url = f"https://localhost:{live.address[1]}/x"
        if served:
            assert httpx.get(url, verify=trusting(authority, client)).status_code == 200
        else:
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                httpx.get(url, verify=trusting(authority, client))


def test_a_new_authority_of_clients_replaces_the_old_one(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "following")
    trusted = tmp_path / "clients.pem"
    shutil.copy(authority.file, trusted)
    old, new = authority.sign("old-client"), following.sign("new-client")
    certificates = Certificates(CertificateFiles(*authority.sign("server"), client_ca_file=trusted))
    with ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=certificates) as live:
        url = f"https://localhost:{live.address[1]}/x"

        assert httpx.get(url, verify=trusting(authority, old)).status_code == 200

        shutil.copy(following.file, trusted)
        certificates.refresh()

        assert httpx.get(url, verify=trusting(authority, new)).status_code == 200
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            httpx.get(url, verify=trusting(authority, old))


def test_an_old_version_of_tls_is_refused(authority: Authority) -> None:
    files = CertificateFiles(*authority.sign("server"), min_version="1.3")
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with ThreadedServer(streaming, bind("127.0.0.1", 0), certificates=Certificates(files)) as live:
        with pytest.raises(ssl.SSLError):
            shown(live.address, context)

        assert shown(live.address, trusting(authority))


def test_tls_over_a_unix_socket(authority: Authority, tmp_path: Path) -> None:
    sock, _ = bind_unix(tmp_path / "s", "owner")
    with ThreadedServer(streaming, sock, certificates=Certificates(CertificateFiles(*authority.sign("server")))):
        transport = httpx.HTTPTransport(uds=str(tmp_path / "s"), verify=trusting(authority))
        with httpx.Client(transport=transport) as client:
            assert client.get("https://localhost/x").status_code == 200


def complaint(**files: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(CertificateFiles(**files))
    return str(caught.value)


def test_files_that_cannot_work_are_a_sentence_that_names_the_setting(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.sign("server")
    _, other = authority.sign("other")
    _, hidden = authority.sign("hidden", password="secret")
    fifo, empty = tmp_path / "fifo", tmp_path / "empty"
    os.mkfifo(fifo)
    empty.write_text("")
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    gone = tmp_path / "gone"

    assert complaint(cert_file=gone, key_file=key) == f"server.tls.cert_file: {gone} does not exist."
    assert complaint(cert_file=cert, key_file=gone) == f"server.tls.key_file: {gone} does not exist."
    assert complaint(cert_file=cert, key_file=other).startswith(f"server.tls.key_file: the key in {other} is not that")
    assert "has a passphrase" in complaint(cert_file=cert, key_file=hidden)
    assert "server.tls.cert_file" in complaint(cert_file=fifo, key_file=key)
    assert "server.tls.cert_file" in complaint(cert_file=tmp_path, key_file=key)
    assert "holds no certificate" in complaint(cert_file=empty, key_file=key)
    assert "is it a whole PEM file?" in complaint(cert_file=broken, key_file=key)
    assert complaint(cert_file=cert).endswith("holds no private key (PEM). Set server.tls.key_file.")
    assert "server.tls.client_ca_file" in complaint(cert_file=cert, key_file=key, client_ca_file=gone)
    assert "server.tls.client_ca_file" in complaint(cert_file=cert, key_file=key, client_ca_file=broken)
    assert "needs server.tls.client_ca_file" in complaint(cert_file=cert, key_file=key, client_certificates="required")
    assert "server.tls.ciphers" in complaint(cert_file=cert, key_file=key, ciphers="NO-SUCH-CIPHER")


def test_a_check_of_the_settings_finds_them(tmp_path: Path) -> None:
    settings = Settings.model_construct(server=Server(tls=Tls(cert_file=tmp_path / "gone")))

    with pytest.raises(SettingsError, match=r"server\.tls\.cert_file"):
        preflight.check_files(settings)


def test_one_file_may_hold_certificate_and_key(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.sign("server")
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())

    assert load(CertificateFiles(both)).verify_mode is ssl.CERT_NONE
