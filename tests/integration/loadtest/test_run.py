"""The command from its arguments to its exit code, with Locust, worker processes and a small server."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest import cli
from loadtest.measure.result import Result
from tests.integration.loadtest.raw_server import GOOD, HEAD, LAST, Scripted, framed
from tests.unit.loadtest.requests import chunk, event

ROOT = Path(__file__).resolve().parents[3]
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "me"}]}).encode()
SCENARIO: dict[str, Any] = {
    "stages": {"warmup_s": 0.5, "measure_s": 2, "drain_s": 1},
    "load": {"kind": "constant", "rate": 20},
    "workloads": [{"name": "w", "prompt_tokens": 5, "output_tokens": 5}],
    "slo": {"ttft_p50_ms": 5000},
    # The machine that runs the tests is shared.
    "generator": {"lateness_p99_ms": 5000, "loop_lag_p99_ms": 5000},
}


def serving(answer: bytes) -> Callable[[socket.socket, bytes], None]:
    """A server of one model, which answers every chat with `answer`."""

    def script(sock: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET /v1/models"):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(MODELS), MODELS))
        elif request.startswith(b"POST /v1/chat/completions"):
            sock.sendall(answer)
        else:
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    return script


@pytest.fixture
def server() -> Iterator[Callable[[bytes], Scripted]]:
    servers: list[Scripted] = []

    def start(answer: bytes) -> Scripted:
        servers.append(Scripted(serving(answer)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def run(folder: Path, url: str, *flags: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """`sluice-load run` in a process of its own, since Locust patches the process that imports it."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**SCENARIO, **changes}))
    arguments = [
        sys.executable,
        "-m",
        "loadtest.cli",
        "run",
        str(file),
        "--url",
        url,
        "--out",
        str(folder / "out"),
        *flags,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=100, env=env, cwd=folder)


def test_a_good_run_with_two_workers(server: Callable[[bytes], Scripted], tmp_path: Path) -> None:
    done = run(tmp_path, server(GOOD).url, "--workers", "2", "--api-key", "sk-secret")
    out = tmp_path / "out"

    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: pass" in done.stdout
    result = Result.read(out / "result.json")
    assert (result.summary.requests, result.summary.ok, result.generator.workers) == (40, 40, 2)
    assert (result.summary.asked_rps, result.summary.achieved_rps) == (20, 20)
    assert sum(server.due for server in result.timeline) == 49
    assert {server.stage for server in result.timeline} >= {"warmup", "measure"}
    with gzip.open(out / "requests.jsonl.gz", "rt") as log:
        assert sorted(json.loads(line)["number"] for line in log) == list(range(49))
    assert {file.name for file in out.iterdir()} == {"result.json", "report.html", "summary.md", "requests.jsonl.gz"}
    for file in out.iterdir():
        assert b"sk-secret" not in file.read_bytes(), file


def test_a_missed_slo(server: Callable[[bytes], Scripted], tmp_path: Path) -> None:
    done = run(tmp_path, server(GOOD).url, slo={"ttft_p50_ms": 0.001})

    assert done.returncode == 1, done.stdout + done.stderr
    assert "verdict: slo_missed" in done.stdout


def test_a_generator_that_drops_arrivals(server: Callable[[bytes], Scripted], tmp_path: Path) -> None:
    done = run(tmp_path, server(HEAD + framed(event(chunk("a")))).url, max_in_flight=2)

    assert done.returncode == 3, done.stdout + done.stderr
    assert "arrivals were dropped" in done.stdout


def test_a_server_with_incomplete_streams(server: Callable[[bytes], Scripted], tmp_path: Path) -> None:
    incomplete = HEAD + framed(event(chunk("a")), event(chunk(finish="stop"))) + LAST
    done = run(tmp_path, server(incomplete).url)

    assert done.returncode == 4, done.stdout + done.stderr
    assert "40 x no_done" in done.stdout


VISITOR = """
from locust import constant, task
from loadtest.runner.locust_users import SSEUser

class Visitor(SSEUser):
    wait_time = constant(0.1)

    @task
    def chat(self):
        record = self.stream({"model": "m", "messages": [], "max_tokens": 9})
        assert len(record.content_ns) == 2
"""


@pytest.mark.parametrize(("answer", "failed"), [(GOOD, False), (HEAD + framed(event(chunk("a"))) + LAST, True)])
def test_custom_locust_users(server: Callable[[bytes], Scripted], tmp_path: Path, answer: bytes, failed: bool) -> None:
    """Locust's own tables have one sample for each stream, and its error kind."""
    (tmp_path / "mine.py").write_text(VISITOR)
    arguments = [
        "-f",
        "mine.py",
        "--host",
        server(answer).url,
        "--headless",
        "-u",
        "2",
        "-t",
        "5s",
        "--csv",
        "c",
        "-L",
        "ERROR",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "locust", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    row = (tmp_path / "c_stats.csv").read_text().splitlines()[1].split(",")

    assert row[:2] == ["SSE", "chat"], done.stdout + done.stderr
    assert int(row[2]) > 5
    assert int(row[3]) == (int(row[2]) if failed else 0)
    if failed:
        assert "no_done" in (tmp_path / "c_failures.csv").read_text()


def test_no_server_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    done = run(tmp_path, url)

    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smok", "--url", "http://x"], "Did you mean `smoke`?"),
        (["run", "smoke", "--url", "x"], "--url: 'x' is not a URL"),
        (["report", "/nowhere"], "cannot be read"),
        (["compare", "/nowhere", "/nowhere"], "cannot be read"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert "locust" not in sys.modules, "it would patch this process"


@pytest.mark.parametrize("arguments", [["run", "smoke"], ["run", "smoke", "--url", "http://x", "--workers", "0"], []])
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)

    assert ended.value.code == 2


def test_builtin_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenarios"]) == 0
    assert "smoke    Half a minute of everything" in capsys.readouterr().out
