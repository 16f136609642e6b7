"""The programs that the chart brings: what `helm test` runs, what keeps workers while their leader serves, and what a
load test waits with.

Against small servers of this file, which do on purpose what a broken path does: hold a stream back, or cut it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.charts.chart import CHART, find, render

WORDS = [" one", " two", " three", " four"]


class _Upstream(BaseHTTPRequestHandler):
    """Streams WORDS 30 ms apart, or not as it should, by `manner`."""

    manner = "live"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/readyz" and self.manner == "loading":
            self._answer(503, b"server_starting")
            type(self).manner = "live"
            return
        self._answer(200, json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["stream"] is True
        assert asked["model"] == "m"
        if self.manner == "locked" and self.headers["Authorization"] != "Bearer secret":
            self._answer(401, b'{"error": {"message": "Which key?"}}')
            return
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": word}}]} for word in WORDS]
        if self.manner == "failing":
            events[-1] = {"error": {"code": "engine_failed"}}
        lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
        if self.manner != "cut":
            lines.append(b"data: [DONE]\n\n")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in [b"".join(lines)] if self.manner == "held" else lines:
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
            time.sleep(0.03)
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def _upstream(manner: str) -> Iterator[int]:
    handler = type("Handler", (_Upstream,), {"manner": manner})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _stream_test(port: int, key: str | None = None) -> tuple[int, str]:
    """Run what the test pod would run: its command, as rendered."""
    values = {"models.a.source.type": "demo", "models.a.gpu.count": 0, "tests.timeoutSeconds": 5}
    command = find(render(values=values), "Pod")["spec"]["containers"][0]["command"]
    assert command[:2] == ["python3", "-c"]
    assert command[3] == "http://rel-a:8000"
    words = [sys.executable, "-c", command[2], f"http://127.0.0.1:{port}", *command[4:]]
    environment = os.environ | ({} if key is None else {"API_KEY": key})
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_stream_that_flows_passes() -> None:
    with _upstream("live") as port:
        code, output = _stream_test(port)

    assert code == 0, output
    assert output.startswith("m: 19 characters in 4 parts")


@pytest.mark.parametrize(
    ("manner", "what"),
    [
        ("held", "the text came all at once"),
        ("cut", "the stream ended without [DONE]"),
        ("failing", "engine_failed"),
        ("locked", "401"),
    ],
)
def test_a_stream_that_does_not_flow_fails(manner: str, what: str) -> None:
    with _upstream(manner) as port:
        code, output = _stream_test(port)

    assert code == 1
    assert what in output


def test_the_key_is_sent() -> None:
    with _upstream("locked") as port:
        code, output = _stream_test(port, "secret")

    assert code == 0, output


def test_no_server_is_a_failure() -> None:
    with _upstream("live") as port:
        pass
    code, output = _stream_test(port)

    assert code == 1
    assert "refused" in output


def _hold(port: int, seconds: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(CHART / "files" / "hold.py"), str(seconds), str(port)]
    return subprocess.Popen(words, env=os.environ | {"LWS_LEADER_ADDRESS": "127.0.0.1"})


def test_a_worker_stays_until_its_leader_has_gone() -> None:
    with _upstream("live") as port:
        process = _hold(port, 60)
        # Longer than three refusals would take.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4.5)

    assert process.wait(20) == 0


def test_a_worker_does_not_stay_longer_than_a_drain() -> None:
    with _upstream("live") as port:
        process = _hold(port, 1)

        assert process.wait(20) == 0


def _wait(port: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """As the load test's first container runs it."""
    values = {"models.a.source.type": "demo", "models.a.gpu.count": 0, "loadTest.enabled": True}
    command = find(render(values=values), "Job")["spec"]["template"]["spec"]["initContainers"][0]["command"]
    assert command[:2] == ["python3", "-c"]
    words = [sys.executable, "-c", command[2], f"http://127.0.0.1:{port}", str(seconds)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_load_test_begins_when_the_server_is_ready() -> None:
    with _upstream("loading") as port:
        assert _wait(port, 20).returncode == 0


def test_a_load_test_does_not_wait_for_ever() -> None:
    with _upstream("live") as port:
        pass
    done = _wait(port, 0)

    assert done.returncode == 1
    assert f"http://127.0.0.1:{port} was not ready within 0 s" in done.stderr
