"""Several workers behind TLS, with a management port, and on a Unix socket."""

from __future__ import annotations

import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import SYNTHETIC
from tests.support.certificates import Authority, serial
from tests.support.server import READY_WITHIN_S, Server, free_port, poll
from tests.support.stream_client import COMPLETIONS, completion

pytestmark = [pytest.mark.timeout(400), pytest.mark.full]

ENV = {**SYNTHETIC, "SLUICE_SERVER__WORKERS": "2", "SLUICE_SERVER__DRAIN_TIMEOUT_S": "5"}


@pytest.fixture
def management_port() -> int:
    return free_port()


def wait_for_all(server: Server) -> None:
    poll("all workers are ready", lambda: "ready: " in server.stderr() or not server.running(), 2 * READY_WITHIN_S, 0.1)
    assert server.running(), server.stderr()


@pytest.fixture
def secured(tmp_path: Path, management_port: int) -> Iterator[tuple[Server, Authority]]:
    authority = Authority(tmp_path)
    cert_file, key_file = authority.sign("server")
    env = {
        **ENV,
        "SLUICE_SERVER__MANAGEMENT_PORT": str(management_port),
        "SLUICE_SERVER__TLS__CERT_FILE": str(cert_file),
        "SLUICE_SERVER__TLS__KEY_FILE": str(key_file),
        "SLUICE_SERVER__TLS__CLIENT_CA_FILE": str(authority.file),
    }
    server = Server(tmp_path / "server", env=env)
    yield server, authority
    server.close()


def test_workers_serve_tls_and_one_of_them_answers_for_all_on_the_management_port(
    secured: tuple[Server, Authority], tmp_path: Path, management_port: int
) -> None:
    server, authority = secured
    wait_for_all(server)
    context = ssl.create_default_context(cafile=str(authority.file))
    context.load_cert_chain(*authority.sign("client"))
    url, apart = f"https://localhost:{server.port}", f"http://127.0.0.1:{management_port}"
    for first in range(12):
        # Each on a connection of its own, so that both workers have some.
        made = httpx.post(url + COMPLETIONS, json=completion(first, 3, stream=False), verify=context, timeout=30)
        assert made.status_code == 200, made.text
    with httpx.Client(verify=context) as client:
        assert client.get(url + "/readyz").status_code == 200
        assert [client.get(url + path).status_code for path in ("/metrics", "/docs")] == [404, 404]
    text = httpx.get(apart + "/metrics").text

    assert "sluice_workers 2.0" in text
    assert 'sluice_ended_total{cause="completed"} 12.0' in text
    assert [httpx.get(apart + path).status_code for path in ("/readyz", "/docs", "/v1/models")] == [200, 200, 404]

    new_cert, new_key = authority.sign("renewed")
    shutil.copy(new_key, tmp_path / "server.key")
    shutil.copy(new_cert, tmp_path / "server.pem")
    wanted = serial(new_cert.read_bytes())

    def renewed() -> bool:
        """From any worker: each reads the files itself."""
        pages = [ssl.get_server_certificate(("localhost", server.port)) for _ in range(8)]
        return {serial(page) for page in pages} == {wanted}

    poll("all workers show the new certificate", renewed, 10, 0.2)

    assert server.end(signal.SIGTERM) == 0
    assert "stopped: SIGTERM exit_code=0 completed=12 cut_off=0" in server.stderr()
    assert "Traceback" not in server.stderr()


def test_workers_take_turns_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = Server(tmp_path / "server", env={**ENV, "SLUICE_SERVER__UDS": str(path)})
    try:
        wait_for_all(server)
        for first in range(12):
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30) as client:
                made = client.post("http://here" + COMPLETIONS, json=completion(first, 3, stream=False))
                assert made.status_code == 200, made.text
        assert server.end(signal.SIGTERM) == 0
        assert not path.exists()
        assert "completed=12" in server.stderr()
        assert "Traceback" not in server.stderr()
    finally:
        server.close()
