"""The process: sockets, signals, drain and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from gateway import shutdown
from gateway.app import Sluice
from gateway.errors import SettingsError
from gateway.logs import StartupLog
from gateway.settings import Settings
from gateway.settings_sections import Server
from gateway.transports.common.listeners import Listeners, bind, bind_many, bind_unix, url_of
from gateway.transports.common.tls import CertificateFiles, Certificates
from gateway.transports.http.connection import HttpConnection
from gateway.transports.http.uvicorn_server import UvicornServer, make_config

logger = logging.getLogger("sluice")

Build = Callable[[Callable[[Sluice], None], Callable[[SettingsError], None]], Sluice]
"""Makes the app; its arguments are called when the app is ready, and when its engine has failed for good."""

# How long a thread may run Python code while the event loop waits for the interpreter. Python's 5 ms would delay the
# loop each time that it wakes.
SWITCH_INTERVAL_S = 0.0001
# libuv accepts one new connection per listening socket and turn of the event loop, and under load a turn takes
# milliseconds: the last of a thousand simultaneous connections would wait for seconds, and a probe behind them. So the
# loop has the socket this many times; checking one without a new connection takes less than a microsecond.
ACCEPTS_PER_TURN = 16
# A full collection stops the loop for 0.1 to 0.4 s under a thousand streams, and with Python's own thresholds
# (700, 10, 10) every burst of requests causes several. The objects that vLLM has loaded are frozen and not visited
# again. A request leaves some 30 objects that only a collection frees, so a full one may wait for ten million.
GC_THRESHOLDS = (10_000, 10, 100)


class ServerProcess(UvicornServer):
    """The server with signals and a drain: uvicorn would close its listeners first and raise the signal again."""

    sluice: Sluice
    drain_timeout_s: float
    signals: tuple[str, ...] = ()
    """The names of the signals received."""
    force_exit_after: Callable[[float, int], None] = staticmethod(lambda within_s, code: None)
    """Ends the process with that exit code if it still runs after that time; does nothing in a process of others."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_default_executor(shutdown.LoopThreads(thread_name_prefix="sluice-aside"))
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        self._drain_task: asyncio.Task[None] | None = None
        # Not the loop's own handlers, which wait for the loop's next turn.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        yield

    def _on_signal(self, number: int, _: Any) -> None:
        self.signals = (*self.signals, signal.Signals(number).name)
        if len(self.signals) > 1:
            self.force_exit_after(shutdown.FORCED_EXIT_WITHIN_S, 1)
        with contextlib.suppress(RuntimeError):
            # The loop may be closed already.
            self._loop.call_soon_threadsafe(self._drain_or_end, number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.force_exit_after(shutdown.EXIT_WITHIN_S, 1)
        await super().shutdown(sockets)

    def _drain_or_end(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._drain_task is None:
            logger.info("%s: no new requests, running ones may finish (again to end now)", name)
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())
        else:
            logger.warning("%s: ending now", name)
            self.end_now()

    def end_now(self) -> None:
        """End all requests and the process."""
        self.sluice.registry.end_all()
        self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        await self.sluice.registry.drain(self.drain_timeout_s)
        self.should_exit = True


def listen(server: Server) -> Listeners:
    """Bind all sockets of the settings. Raises SettingsError."""
    found = Listeners([])
    try:
        if server.uds is None:
            found.main = bind_many(server.host, server.port, server.workers)
        else:
            sock, found.file = bind_unix(server.uds, server.uds_access)
            # All workers accept from one queue: the kernel has no other way to share a Unix socket.
            found.main = [sock, *(sock.dup() for _ in range(server.workers - 1))]
        if server.management_port is not None:
            host = server.management_host or server.host
            found.management = bind(host, server.management_port, "server.management")
    except SettingsError:
        found.close()
        raise
    return found


def load_certificates(server: Server) -> Certificates | None:
    """The certificates of the settings, None without TLS. Raises SettingsError if they cannot be used."""
    return None if server.tls is None else Certificates(CertificateFiles(**dict(server.tls)))


def serve(settings: Settings, build: Build, startup_log: StartupLog) -> int:
    """Serve the app until a signal or a failure. Returns the exit code."""
    load_certificates(settings.server)
    listeners = listen(settings.server)
    try:
        url = log_addresses(settings.server, listeners, startup_log)

        def on_ready(ready: Sluice) -> None:
            log_ready(startup_log, url, settings, ready.model, ready.has_chat)

        server, failure = run(settings, build, on_ready, listeners.main[0], listeners.management, ServerProcess)
    finally:
        listeners.close()
    code = 0 if failure is None else failure.exit_code
    reason = "a failure" if failure is not None else ", then ".join(server.signals)
    shutdown.log_end(reason, code, server.sluice.metrics.endings, startup_log.elapsed_s)
    if failure is not None:
        print(f"sluice: {failure}", file=sys.stderr)
    return shutdown.exit_process(code, hurry=server.sluice.supervisor.is_launching)


def run(
    settings: Settings,
    build: Build,
    on_ready: Callable[[Sluice], None],
    sock: socket.socket,
    management: socket.socket | None,
    make: Callable[[Any], ServerProcess],
) -> tuple[ServerProcess, SettingsError | None]:
    """Serve the app on `sock`, and its management app on `management`. `make` takes a uvicorn configuration. Returns
    the ended server and its failure, None after a signal."""
    failure: list[SettingsError] = []

    def fail(error: SettingsError) -> None:
        # An engine that is interrupted together with this process has not failed.
        if not server.should_exit and not sluice.registry.is_draining:
            failure.append(error)
            server.should_exit = True

    sluice = build(on_ready, fail)
    limit_connections(settings)
    server = make(make_config(sluice.asgi))
    server.sluice = sluice
    server.force_exit_after = shutdown.force_exit_after
    server.management = None if management is None else (sluice.management, management)
    server.certificates = load_certificates(settings.server)
    server.drain_timeout_s = settings.server.drain_timeout_s
    sluice.metrics.add_gauge("unsent_bytes", "Bytes in write buffers that clients have not taken.", server.unsent_bytes)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    server.run(sockets=[sock, *[sock.dup() for _ in range(ACCEPTS_PER_TURN - 1)]])
    return server, failure[0] if failure else None


def limit_connections(settings: Settings) -> None:
    """Set the limits of this process's connections."""
    server = settings.server
    HttpConnection.max_header_bytes = server.max_header_bytes
    HttpConnection.max_headers = server.max_headers
    HttpConnection.header_timeout_s = server.header_timeout_s
    HttpConnection.body_timeout_s = server.body_timeout_s
    HttpConnection.min_body_bytes_per_s = server.min_body_bytes_per_s
    # One body of the largest size must fit.
    HttpConnection.max_total_body_bytes = max(server.max_total_body_bytes // server.workers, server.max_body_bytes)
    HttpConnection.idle_timeout_s = server.idle_timeout_s
    HttpConnection.max_age_s = server.max_connection_age_s
    HttpConnection.stall_timeout_s = settings.streams.stall_timeout_s


def log_addresses(server: Server, listeners: Listeners, startup_log: StartupLog) -> str:
    """Log the addresses on which the server listens. Returns the URL of the main one."""
    url = url_of(server.host, listeners.main[0], tls=server.tls is not None)
    startup_log.begin(f"listening on {url}; requests are answered with 503 until the engine is ready")
    if listeners.management is not None:
        host = server.management_host or server.host
        startup_log.begin(f"metrics, docs and health on {url_of(host, listeners.management)} (server.management_port)")
    return url


def log_ready(startup_log: StartupLog, url: str, settings: Settings, model: str, has_chat: bool) -> None:
    """Log that the server is ready, and a request to try."""
    docs = f" (docs at {url}/docs)" if settings.server.management_port is None and settings.server.uds is None else ""
    startup_log.finish(f"ready: {model} at {url}{docs}")
    if settings.server.uds is not None:
        url = f"--unix-socket {settings.server.uds} http{'s' if settings.server.tls else ''}://localhost"
    key = "" if settings.server.api_keys_file is None else " -H 'Authorization: Bearer YOUR_KEY'"
    if not has_chat:
        logger.info("try:\n\n  curl %s/v1/models%s\n", url, key)
        return
    ask = [{"role": "user", "content": "What is Sluice?"}]
    body = orjson.dumps({"model": model, "stream": True, "messages": ask}).decode()
    content_type = "-H 'Content-Type: application/json'"
    logger.info("try:\n\n  curl -N %s/v1/chat/completions%s %s \\\n    -d '%s'\n", url, key, content_type, body)
