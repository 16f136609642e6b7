"""A process that requests `/livez` every 5 ms and records how long the answers took.

The answer comes from the event loop that serves every stream, so the longest wait is the longest time for which that
loop was held. `python -m tests.support.livez_probe PORT` prints a line of JSON for each line that it reads.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

EVERY_S = 0.005
ASK = b"GET /livez HTTP/1.1\r\nHost: livez\r\n\r\n"


class LivezProbe:
    """The process. `lap` gives the waits since the lap before, in milliseconds."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.livez_probe", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def lap(self) -> dict[str, float]:
        """`asked`, and the median, 99th percentile and maximum of the waits."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found


def _poll(port: int, waits_s: list[float], asked_since_s: list[float]) -> None:
    sock: socket.socket | None = None
    while True:
        asked_since_s[:] = [time.perf_counter()]
        try:
            if sock is None:
                sock = socket.create_connection(("127.0.0.1", port), timeout=600)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(ASK)
            seen = sock.recv(65536)
        except OSError:
            seen = b""
        if seen.startswith(b"HTTP/1.1 200"):
            waits_s.append(time.perf_counter() - asked_since_s[0])
        if not seen or b"connection: close" in seen.lower():
            if sock is not None:
                sock.close()
            sock = None
        asked_since_s[:] = []
        time.sleep(EVERY_S)


def main() -> None:
    """Poll, and report on request."""
    waits_s: list[float] = []
    asked_since_s: list[float] = []
    threading.Thread(target=_poll, args=(int(sys.argv[1]), waits_s, asked_since_s), daemon=True).start()
    for _ in sys.stdin:
        took, waits_s[:] = sorted(waits_s), []
        # What has not been answered yet counts, too.
        took += [time.perf_counter() - since for since in asked_since_s]
        if not took:
            took = [0.0]
        took.sort()
        report = {
            "asked": len(took),
            "p50_ms": round(took[len(took) // 2] * 1e3, 1),
            "p99_ms": round(took[int(len(took) * 0.99)] * 1e3, 1),
            "max_ms": round(took[-1] * 1e3, 1),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
