"""How the process ends, seen from outside: over a scripted engine, so that it takes a second."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import shutdown
from gateway.domain import Cause
from tests.support.server import Raw, free_port, poll, request_bytes

Start = Callable[..., "Served"]


class Served:
    def __init__(self, folder: Path, *words: str) -> None:
        self.port = free_port()
        self.log = folder / "stderr.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.scripted_server", f"server.port={self.port}", *words],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait_ready(self) -> None:
        poll("the server is ready", lambda: "ready: " in self.text() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.text()

    def end(self, *numbers: int, within_s: float) -> tuple[int, float]:
        """Signal it, a second between two; its exit code, and the seconds after the last signal."""
        for index, number in enumerate(numbers):
            if index:
                time.sleep(1)
            self.process.send_signal(number)
        began = time.monotonic()
        return self.process.wait(within_s), time.monotonic() - began


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Served] = []

    def begin(*words: str) -> Served:
        made.append(Served(tmp_path, *words))
        made[-1].wait_ready()
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)


def closing(text: str) -> dict[str, Any]:
    (line,) = [line for line in text.splitlines() if " stopped: " in line]
    return {
        "reason": line.partition("stopped: ")[2].partition(" exit_code")[0],
        **dict(re.findall(r"(\w+)=(\S+)", line)),
    }


def test_the_log_closes_with_why_and_with_what_became_of_the_requests(start: Start) -> None:
    served = start("server.drain_timeout_s=0.2")
    hanging = Raw(served.port, request_bytes({"stream": True}))
    poll("it runs", lambda: "sluice_streams_active 1.0" in metrics(served.port), 10)
    left = Raw(served.port, request_bytes({"stream": True}))
    poll("both run", lambda: "sluice_streams_active 2.0" in metrics(served.port), 10)
    left.rst()
    poll("one has left", lambda: "sluice_streams_active 1.0" in metrics(served.port), 10)
    code, _ = served.end(signal.SIGTERM, within_s=20)
    hanging.close()
    closed = closing(served.text())

    assert code == 0
    assert (closed["reason"], closed["exit_code"]) == ("SIGTERM", "0")
    assert (closed["completed"], closed["cut_off"], closed["ended_otherwise"]) == ("0", "1", "1")
    assert float(closed["uptime_s"]) > 0


def metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text


def test_threads_that_compute_for_ever_do_not_hold_up_the_exit(start: Start) -> None:
    served = start("stuck")
    code, seconds = served.end(signal.SIGTERM, within_s=30)

    assert code == 0
    assert seconds < shutdown.THREADS_WITHIN_S + 5
    assert " stopped: SIGTERM" in served.text().splitlines()[-1], "the last line"


def test_asked_twice_the_process_ends_although_its_event_loop_stands_still(start: Start) -> None:
    served = start("frozen")
    time.sleep(1)
    code, seconds = served.end(signal.SIGTERM, signal.SIGTERM, within_s=30)

    assert code == 1
    assert seconds < shutdown.FORCED_EXIT_WITHIN_S + 3
    assert "a thread delays the exit" in served.text()


def test_a_unix_socket_serves_and_is_gone_at_the_end(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "sluice.sock"
    served = start(f"server.uds={path}", "server.management_port=0")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://localhost/readyz").status_code == 200
        assert client.get("http://localhost/metrics").status_code == 404
    found = re.search(r"metrics, docs and health on (http://\S+)", served.text())

    assert found is not None
    assert "sluice_ready 1.0" in httpx.get(found[1] + "/metrics").text
    assert f"--unix-socket {path}" in served.text()

    code, _ = served.end(signal.SIGTERM, within_s=20)

    assert code == 0
    assert not path.exists()
    assert "Traceback" not in served.text()


def test_the_closing_line_adds_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sluice")
    endings = {Cause.COMPLETED: 5, Cause.SERVER_DRAINING: 2, Cause.DISCONNECTED: 1, Cause.CANCELLED: 1}
    shutdown.log_end("SIGTERM, then SIGINT", 0, endings, 12.34)
    (record,) = caplog.records

    assert record.getMessage() == "stopped: SIGTERM, then SIGINT"
    assert record.fields == {  # type: ignore[attr-defined]
        "exit_code": 0,
        "completed": 5,
        "cut_off": 2,
        "ended_otherwise": 2,
        "uptime_s": 12.3,
    }
