"""Real servers for the end-to-end tests, and raw clients that can misbehave."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

Json = dict[str, Any]
Process = tuple[int, int]

MODEL = "sluice-demo"
ASK = [{"role": "user", "content": "What is Sluice?"}]
CHAT = "/v1/chat/completions"
# A loaded two-core machine takes more than twice what an idle one does.
READY_WITHIN_S = 110.0


def poll(what: str, check: Callable[[], Any], within_s: float, every_s: float = 0.02) -> Any:
    """Wait until `check` gives something true; fail with its last value otherwise."""
    deadline = time.monotonic() + within_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what} (last seen: {found!r})")
        time.sleep(every_s)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "gateway", *args]


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time of a process that lives; a zombie does not."""
    try:
        state, parent, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if state == "Z" else (int(parent), int(rest[17]))


def descendants(pid: int) -> list[Process]:
    """All processes below `pid`, as (pid, start time): a pid alone may be used again."""
    known = {
        int(entry.name): stat
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (stat := _stat(int(entry.name)))
    }
    found: list[Process] = []
    parents = {pid}
    while parents:
        below = {child for child, (parent, _) in known.items() if parent in parents}
        found += [(child, known[child][1]) for child in below]
        parents = below
    return found


def alive(processes: list[Process]) -> list[Process]:
    """Those of `processes` that are still there."""
    return [(pid, began) for pid, began in processes if (stat := _stat(pid)) is not None and stat[1] == began]


class Server:
    """One `sluice serve` of its own, in its own process group."""

    def __init__(self, folder: Path, *args: str, env: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.out_file, self.err_file = folder / "stdout.log", folder / "stderr.log"
        self.began_s = time.monotonic()
        self.family: list[Process] = []
        with self.out_file.open("wb") as out, self.err_file.open("wb") as err:
            self.process = subprocess.Popen(
                command("serve", "--port", str(self.port), *args),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.http = httpx.Client(base_url=self.url, timeout=60)

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr(self) -> str:
        return self.err_file.read_text(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    def answers(self) -> bool:
        """Whether the socket is open."""
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def wait_open(self) -> None:
        poll("the socket is open", lambda: self.answers() or not self.running(), 20)
        assert self.running(), self.stderr()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.running(), self.stderr()
            return self.http.get("/readyz").status_code == 200

        self.wait_open()
        poll("the server is ready", ready, READY_WITHIN_S, 0.25)
        self.family = descendants(self.pid)
        assert self.engine_pid()

    def engine_pid(self) -> int:
        """vLLM's engine process."""
        for pid, _ in descendants(self.pid):
            with suppress(OSError):
                if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError("there is no engine process")

    def end(self, number: int = signal.SIGTERM, within_s: float = 40) -> int:
        """Signal the gateway alone and wait for its end; its exit code."""
        if self.running():
            os.kill(self.pid, number)
        return self.process.wait(within_s)

    def assert_no_orphan(self, within_s: float = 5) -> None:
        assert self.family, "`family` has not been filled"
        poll("no process of the server is left", lambda: not alive(self.family), within_s, 0.05)

    def close(self) -> None:
        """End the processes that are left, also after a failure. Only those that this object started."""
        self.http.close()
        family = self.family or descendants(self.pid)
        if self.running():
            self.process.kill()
            self.process.wait(10)
        for pid, _ in alive(family):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # Requests of the tests to it.

    def post(self, path: str = CHAT, *, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def ask(self, **body: Any) -> Json:
        """A normal chat; it has to be answered."""
        response = self.post(**{"model": MODEL, "messages": ASK, "temperature": 0, **body})
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    def samples(self) -> dict[str, float]:
        """Every sample of /metrics; `name` sums over all labels, `name{label="value"}` is one label's."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
                for label, value in sample.labels.items():
                    key = f'{sample.name}{{{label}="{value}"}}'
                    found[key] = found.get(key, 0.0) + sample.value
        return found

    def sample(self, name: str) -> float:
        return self.samples().get(name, 0.0)

    def ended(self, cause: str) -> float:
        return self.sample(f'sluice_ended_total{{cause="{cause}"}}')

    def wait_idle(self) -> None:
        poll("the server is idle", lambda: self.sample("sluice_streams_active") == 0, 10)
        poll("the engine is idle", lambda: self.sample("vllm:num_requests_running") == 0, 10)


class Raw:
    """One HTTP/1.1 request on a socket of its own, and every way to leave."""

    def __init__(self, port: int, payload: bytes = b"") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.seen = b""
        if payload:
            self.sock.sendall(payload)

    def read_until(self, mark: bytes) -> bytes:
        """Everything received so far, once it holds `mark`."""
        while mark not in self.seen:
            part = self.sock.recv(65536)
            if not part:
                raise AssertionError(f"the connection ended before {mark!r}: ...{self.seen[-300:]!r}")
            self.seen += part
        return self.seen

    def read_all(self) -> bytes:
        """Everything until the server closes."""
        while part := self.sock.recv(65536):
            self.seen += part
        return self.seen

    def fin(self) -> None:
        # Unread data in the buffer would turn the FIN into an RST.
        self.sock.setblocking(False)
        with suppress(BlockingIOError):
            while self.sock.recv(65536):
                pass
        self.sock.close()

    def rst(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


def request_bytes(body: Json, path: str = CHAT, headers: dict[str, str] | None = None) -> bytes:
    payload = json.dumps(body).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"POST {path} HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n{extra}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(payload) + payload


def long_chat(stream: bool = True, **more: Any) -> Json:
    """A chat that runs until it is ended, or nearly."""
    return {
        "model": MODEL,
        "messages": ASK,
        "temperature": 0,
        "stream": stream,
        "max_tokens": 2000,
        "ignore_eos": True,
        **more,
    }


def events(text: str) -> list[Json]:
    """The documents of a whole SSE body, which must end with `[DONE]`."""
    assert text.endswith("data: [DONE]\n\n"), text[-300:]
    blocks = text.split("\n\n")[:-2]
    strange = [block for block in blocks if not block.startswith("data: ")]
    assert not strange, strange[:3]
    return [json.loads(block[6:]) for block in blocks]


def content(documents: list[Json]) -> str:
    """The text of a streamed chat."""
    return "".join(choice["delta"].get("content") or "" for one in documents for choice in one.get("choices", []))


def lines_of(response: httpx.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if line)


_INTERNAL = re.compile(
    r"Traceback|File \"|\.py\b|/(?:home|root|usr|work|tmp|opt|site-packages)/"
    r"|\b[A-Z]\w*(?:Error|Exception)\b|<class |object at 0x"
)


def check_error(response: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> Json:
    """The response is this failure, in the OpenAI body, without exception texts or paths."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    return check_error_body(response.json(), param, code)


def check_error_body(body: Json, param: str | None = None, code: str | None = None) -> Json:
    error: Json = body["error"]
    assert {"message", "type", "code", "param"} <= error.keys()
    assert isinstance(error["message"], str)
    assert error["message"].strip()
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    assert not _INTERNAL.search(error["message"]), error["message"]
    assert not _INTERNAL.search(error["type"]), error["type"]
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return error
