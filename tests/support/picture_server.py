"""A web server with a picture at /, and with redirects, errors and slow answers at other paths."""

from __future__ import annotations

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.images import png

PICTURE = png(8, 4)


class Handler(BaseHTTPRequestHandler):
    """The answers, by path."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        first, _, rest = self.path[1:].partition("/")
        if first == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif first == "status":
            self.send_response(int(rest))
            self.end_headers()
        elif first == "slow":
            self.send_response(200)
            self.end_headers()
            self.server.released.wait(20)  # type: ignore[attr-defined]
        else:
            body = PICTURE + bytes(int(rest) if first == "long" else 0)
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    """The machine that must not be reached unless the settings allow it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.released = threading.Event()
        self.port = self.server_address[1]
