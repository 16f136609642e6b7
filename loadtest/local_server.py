"""`make load`: runs a scenario against a server on the engine without a model, started for the run.

python -m loadtest.local_server [SCENARIO] [arguments of sluice-load run]
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of a server that is ready within the block, and stopped after it. SystemExit if it does not start."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # A log line for each request would bury the output of the run.
    ours = {"SYNTHETIC__ENABLED": "true", "SERVER__PORT": str(port), "LOG__LEVEL": "warning"}
    environment = {**os.environ, **{f"SLUICE_{name}": value for name, value in ours.items()}}
    print(f"starting a server without a model at {url}", file=sys.stderr, flush=True)
    server = subprocess.Popen([sys.executable, "-m", "gateway", "serve"], env=environment, stdin=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not is_ready(url):
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit("the server did not start; its output is above")
            time.sleep(0.2)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_ready(url: str, path: str = "/readyz") -> bool:
    with suppress(OSError), urllib.request.urlopen(url + path, timeout=2) as answer:  # noqa: S310
        return bool(answer.status == 200)
    return False


def main(arguments: Sequence[str]) -> int:
    """Run the scenario. Returns the exit code of `sluice-load run`."""
    named = bool(arguments) and not arguments[0].startswith("-")
    scenario, rest = (arguments[0], arguments[1:]) if named else ("smoke", arguments)
    from loadtest import cli

    with running_server() as url:
        return cli.main(["run", scenario, "--url", url, *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
