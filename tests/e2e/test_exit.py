"""How the process ends: one clear sentence where it could not start, its exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import (
    ASK,
    MODEL,
    Raw,
    Server,
    alive,
    command,
    descendants,
    events,
    free_port,
    long_chat,
    poll,
    request_bytes,
)

pytestmark = pytest.mark.timeout(180)


def run(*argv: str, within_s: float = 100) -> tuple[subprocess.CompletedProcess[str], float]:
    """A `sluice` command that ends by itself, and the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(
        command(*argv), check=False, capture_output=True, text=True, timeout=within_s, start_new_session=True
    )
    return done, time.monotonic() - began


def last_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr: one sentence for the operator."""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sluice: ")
    assert last.endswith((".", "?"))
    assert len(last) < 500
    return last


def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done, seconds = run("serve", "--port", str(port))

    assert done.returncode == 1
    assert seconds < 3
    assert str(port) in last_sentence(done)
    assert "--port" in last_sentence(done)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_model_path_that_does_not_exist() -> None:
    for path in ("/no/such/model", "./no-such-model"):
        done, seconds = run("serve", path, "--port", str(free_port()))
        assert done.returncode == 2
        assert path in last_sentence(done)
        assert "does not exist" in last_sentence(done)
        assert "Traceback" not in done.stderr
        assert seconds < 10


def test_an_unknown_settings_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("admission:\n  max_concurent: 5\n")
    for name in ("serve", "check"):
        done, seconds = run(name, "--config", str(file))
        assert done.returncode == 2
        assert seconds < 5
        sentence = last_sentence(done)
        assert "admission.max_concurent" in sentence
        assert str(file) in sentence
        assert "`max_concurrent`" in sentence


def test_an_unknown_engine_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("engine:\n  max_modle_len: 512\n")
    done, _ = run("serve", "--config", str(file), "--port", str(free_port()))

    assert done.returncode == 2
    sentence = last_sentence(done)
    assert "engine.max_modle_len" in sentence
    assert str(file) in sentence
    assert "`max_model_len`" in sentence
    assert "Traceback" not in done.stderr


def test_not_enough_memory_for_the_kv_cache() -> None:
    done, _ = run("serve", "--port", str(free_port()), "--", "--kv-cache-memory-bytes", "1000")

    assert done.returncode not in (0, -signal.SIGKILL)
    assert "KV cache" in last_sentence(done)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Starts a server of the test's own."""
    made: list[Server] = []

    def make() -> Server:
        made.append(Server(tmp_path / str(len(made))))
        return made[-1]

    yield make
    for one in made:
        one.close()


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_ctrl_c_during_the_start(fresh: Callable[[], Server]) -> None:
    """While the engine process is loading: the gateway does not wait for it, and it does not outlive the gateway."""
    server = fresh()
    server.wait_open()

    def engines() -> list[tuple[int, int]]:
        assert server.running()
        found = descendants(server.pid)
        # Not multiprocessing's resource tracker, which is there from the first.
        return found if any(b"spawn_main" in cmdline(pid) for pid, _ in found) else []

    server.family = poll("the engine process is there", engines, 60)
    os.killpg(server.pid, signal.SIGINT)
    code = server.process.wait(15)
    assert code in (0, 130)
    server.assert_no_orphan(15)
    assert "Traceback" not in server.stderr()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers put their temporary files. A Unix socket's path has 107 bytes, so not in pytest's own folder."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_ctrl_c_lets_streams_finish(fresh: Callable[[], Server], temporary: Path) -> None:
    """The terminal signals the whole process group; the engine is not to take that for itself."""
    server = fresh()
    server.wait_ready()
    client = Raw(server.port, request_bytes(long_chat(max_tokens=1500, stream_options={"include_usage": True})))
    idle = Raw(server.port)
    try:
        client.read_until(b'"content":"S')
        assert any(path.is_socket() for path in temporary.rglob("*"))
        os.killpg(server.pid, signal.SIGINT)
        poll("no new connections", lambda: not server.answers(), 5)
        raw = client.read_until(b"[DONE]\n\n").decode()
        chunks = [line for line in raw.splitlines() if line.startswith("data: ")]
        documents = events("\n\n".join(chunks) + "\n\n")
        assert documents[-1]["usage"]["completion_tokens"] == 1500
        assert documents[-2]["choices"][0]["finish_reason"] == "length"
    finally:
        client.close()
        idle.close()
    assert server.process.wait(20) == 0
    server.assert_no_orphan()
    assert [path for path in temporary.rglob("*") if path.is_socket() or "sluice" in path.name] == []
    assert "Traceback" not in server.stderr()


def test_the_gateway_is_killed(fresh: Callable[[], Server]) -> None:
    """No process is left to stop the engine, so it has to stop by itself: it holds the accelerator's memory."""
    server = fresh()
    server.wait_ready()
    assert server.post(model=MODEL, messages=ASK, max_tokens=2).status_code == 200
    assert alive(server.family)
    server.process.kill()
    server.process.wait(10)
    server.assert_no_orphan(5)
