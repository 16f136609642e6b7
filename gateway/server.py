"""The process: the listening socket, signals, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import orjson
import uvicorn

from gateway.app import Sluice
from gateway.errors import SettingsError
from gateway.logs import Stopwatch
from gateway.protocol import Protocol
from gateway.settings import Settings

logger = logging.getLogger("sluice")

Build = Callable[[Callable[[Sluice], None], Callable[[SettingsError], None]], Sluice]
"""Makes the app from what the process has to give: whom to tell of readiness, whom of failure."""

# How long a thread may go on in Python while the event loop has something to do.
SWITCH_EVERY_S = 0.0001
# libuv takes one new connection per listening socket and turn of the event loop, and under load a turn takes
# milliseconds: the last of a thousand that come together would wait for seconds, and a probe behind them. So the loop
# gets the socket so many times over; looking at one where nobody waits takes less than a microsecond.
ACCEPTS_PER_TURN = 16
# A full collection stands the loop still for 0.1 to 0.4 s under a thousand streams, and with Python's own thresholds
# (700, 10, 10) every burst of requests has several. What vLLM has loaded is frozen and looked at no more. A request
# leaves some 30 objects behind that only a collection frees, so it may wait for ten million.
GC_THRESHOLDS = (10_000, 10, 100)
# When a drain is over, connections get so long to take what they have been sent last.
FLUSH_WITHIN_S = 2


class HttpServer(uvicorn.Server):
    """uvicorn with our way to stop: it would close its listeners first and raise the signal again at the end."""

    sluice: Sluice
    drain_timeout_s: float

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.look_after_peer()
        return await super().on_tick(counter)

    def unsent_bytes(self) -> int:
        """What waits in the buffers of all connections."""
        return sum(one.unsent_bytes for one in self.server_state.connections if isinstance(one, Protocol))

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._draining is None:
            logger.info("%s: no new requests, running ones may finish (again to end now)", name)
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            logger.warning("%s: ending now", name)
            self.end_now()

    def end_now(self) -> None:
        """End whatever runs, and the process."""
        self.sluice.end_now()
        self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        await self.sluice.drain(self.drain_timeout_s)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, open before anything slow happens. Raises SettingsError if the address is taken."""
    return bind_many(host, port, 1)[0]


def bind_many(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets at one address, among which the kernel shares out the connections. Raises as `bind`."""
    socks: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        for number in range(count):
            sock = socket.socket(family, kind, proto)
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number > 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            address = sock.getsockname()
            if count > 1:
                # The first is bound without it, so that another program that would share the address is noticed.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for sock in socks:
            sock.listen(1024)
    except socket.gaierror:
        raise SettingsError(f"server.host: {host!r} is not an address of this machine.") from None
    except OSError as error:
        for sock in socks:
            sock.close()
        taken = " Another program listens there; choose another with --port." if error.errno == errno.EADDRINUSE else ""
        raise SettingsError(f"Cannot listen on {host}:{port}: {error.strerror}.{taken}", exit_code=1) from None
    return socks


def serve(settings: Settings, build: Build, watch: Stopwatch) -> int:
    """Serve what `build` makes until a signal or a failure; returns the exit code."""
    sock = bind(settings.server.host, settings.server.port)
    url = url_of(settings.server.host, sock)

    def announce_it(ready: Sluice) -> None:
        announce(watch, url, settings, ready.model, ready.chats)

    watch.say(f"listening on {url}; requests are answered with 503 until the engine is ready")
    sluice, failure = run(settings, build, announce_it, sock, HttpServer)
    if failure is not None:
        print(f"sluice: {failure}", file=sys.stderr)
    return leave(0 if failure is None else failure.exit_code, hurry=sluice.starting)


def run(
    settings: Settings,
    build: Build,
    on_ready: Callable[[Sluice], None],
    sock: socket.socket,
    make: Callable[[uvicorn.Config], HttpServer],
) -> tuple[Sluice, SettingsError | None]:
    """Serve what `build` makes on `sock`; with it, why it had to end, None if it was asked to."""
    failure: list[SettingsError] = []

    def fail(error: SettingsError) -> None:
        # An engine that is interrupted together with us has not failed.
        if not server.should_exit and not sluice.registry.draining:
            failure.append(error)
            server.should_exit = True

    sluice = build(on_ready, fail)
    Protocol.max_header_bytes = settings.server.max_header_bytes
    Protocol.header_timeout_s = settings.server.header_timeout_s
    Protocol.idle_timeout_s = settings.server.idle_timeout_s
    Protocol.max_age_s = settings.server.max_connection_age_s
    server = make(configure(sluice.asgi))
    server.sluice = sluice
    server.drain_timeout_s = settings.server.drain_timeout_s
    sluice.metrics.watch("unsent_bytes", "Bytes in our buffers that clients have not taken.", server.unsent_bytes)
    # What a thread computes in Python must not keep the event loop waiting for the usual 5 ms each time it wakes.
    sys.setswitchinterval(SWITCH_EVERY_S)
    gc.set_threshold(*GC_THRESHOLDS)
    server.run(sockets=[sock, *[sock.dup() for _ in range(ACCEPTS_PER_TURN - 1)]])
    return sluice, failure[0] if failure else None


def leave(code: int, *, hurry: bool) -> int:
    """The exit code. `hurry`: a thread is in the middle of building an engine and would hold the interpreter's exit for
    as long as that takes."""
    if hurry:
        for process in multiprocessing.active_children():
            process.kill()
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)
    return code


def configure(app: Any, *, lifespan: Literal["on", "off"] = "on") -> uvicorn.Config:
    """uvicorn as we use it."""
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FLUSH_WITHIN_S,
    )


def url_of(host: str, sock: socket.socket) -> str:
    """What to type to reach it."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - shown, not bound
    shown = everywhere.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{sock.getsockname()[1]}"


def announce(watch: Stopwatch, url: str, settings: Settings, model: str, chats: bool) -> None:
    """Say that the server is ready, and what to try."""
    watch.say(f"ready: {model} at {url} (docs at {url}/docs)")
    key = "" if settings.server.api_keys_file is None else " -H 'Authorization: Bearer YOUR_KEY'"
    if not chats:
        logger.info("try:\n\n  curl %s/v1/models%s\n", url, key)
        return
    ask = [{"role": "user", "content": "What is Sluice?"}]
    body = orjson.dumps({"model": model, "stream": True, "messages": ask}).decode()
    content_type = "-H 'Content-Type: application/json'"
    logger.info("try:\n\n  curl -N %s/v1/chat/completions%s %s \\\n    -d '%s'\n", url, key, content_type, body)


__all__ = ["HttpServer", "announce", "bind", "bind_many", "configure", "leave", "run", "serve", "url_of"]
