"""The servers that the end-to-end tests share. Each is started once, on first use."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.server import ASK, MODEL, Server, command


@dataclass
class Starting:
    """The answers of the default server while its engine was loading."""

    open_after_s: float = 0.0
    answers: dict[str, httpx.Response] = field(default_factory=dict)


@dataclass
class Keyed:
    """The small, guarded server: two slots, a queue of two, two clients' keys and an operator's, JSON logs."""

    server: Server
    keys_file: Path
    key: dict[str, str]

    def headers(self, name: str = "anna") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key[name]}"}


@pytest.fixture(scope="session")
def starting() -> Starting:
    """Filled in by `server`."""
    return Starting()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, starting: Starting) -> Iterator[Server]:
    """The embedded default: `sluice serve`, nothing else. Ends with SIGTERM, code 0 and no process left."""
    one = Server(tmp_path_factory.mktemp("server"))
    try:
        one.wait_open()
        starting.open_after_s = time.monotonic() - one.began_s
        for path in ("/readyz", "/health", "/livez", "/metrics"):
            starting.answers[path] = one.http.get(path)
        starting.answers["chat"] = one.post(model=MODEL, messages=ASK)
        starting.answers["models"] = one.http.get("/v1/models")
        one.wait_ready()
        yield one
        assert one.running(), one.stderr()
        one.wait_idle()
        assert one.end(signal.SIGTERM) == 0, one.stderr()
        one.assert_no_orphan()
        assert "Traceback" not in one.stderr()
    finally:
        one.close()


def new_key(name: str, *flags: str) -> tuple[str, str]:
    """A key and its line for the file, as `sluice key new` prints them."""
    asked = command("key", "new", name, *flags)
    made = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout
    key = next(word for word in made.split() if word.startswith("sk-sluice-"))
    line = next(word for word in made.split() if word.startswith(f"{name}:"))
    return key, line


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """The small, guarded server. Its life ends with its engine's, in the last test of `test_limits`."""
    folder = tmp_path_factory.mktemp("keyed")
    made = {name: new_key(name) for name in ("anna", "bert")} | {"omar": new_key("omar", "--operator")}
    keys_file = folder / "keys.txt"
    keys_file.write_text("# for the tests\n" + "".join(f"{line}\n" for _, line in made.values()))
    flags = ["--max-concurrent", "2", "--max-waiting", "2", "--api-keys-file", str(keys_file), "--log-json"]
    env = {
        "SLUICE_SERVER__HEADER_TIMEOUT_S": "1",
        "SLUICE_SERVER__IDLE_TIMEOUT_S": "3",
        "SLUICE_SERVER__MAX_CONNECTION_AGE_S": "4",
        "SLUICE_ADMISSION__QUEUE_TIMEOUT_S": "3",
        # Its engine is not started again, so that its death is the process's.
        "SLUICE_SUPERVISOR__MAX_RESTARTS": "0",
    }
    one = Server(folder, *flags, env=env)
    try:
        one.wait_ready()
        yield Keyed(one, keys_file, {name: key for name, (key, _) in made.items()})
    finally:
        one.close()
