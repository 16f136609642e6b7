"""The process: the listening socket, signals, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import orjson
import uvicorn

from gateway import memory, shutdown
from gateway.app import Sluice
from gateway.errors import SettingsError
from gateway.logs import StartupLog
from gateway.settings import Server, Settings
from gateway.transports.common.listeners import Listeners, bind, bind_many, bind_unix, url_of
from gateway.transports.common.tls import CertificateFiles, Certificates
from gateway.transports.http.connection import HttpConnection
from gateway.transports.http.request_limits import body_budget

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
# After bodies of so many bytes have been held at once, what is free again is given back.
LARGE_PEAK_BYTES = 64 * 2**20
# When a drain is over, connections get so long to take what they have been sent last.
FLUSH_WITHIN_S = 2


class HttpServer(uvicorn.Server):
    """uvicorn with our way to stop: it would close its listeners first and raise the signal again at the end."""

    sluice: Sluice
    drain_timeout_s: float
    management: socket.socket | None = None
    certificates: Certificates | None = None
    _certificates_task: asyncio.Task[None] | None = None
    _memory_task: asyncio.Task[None] | None = None
    signals: tuple[str, ...] = ()
    """The signals that have come, by name."""
    force_exit_after: Callable[[float, int], None] = staticmethod(lambda within_s, code: None)
    """Ends the process with that code, if it still lives after so long; set where it is this server's own."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_default_executor(shutdown.LoopThreads(thread_name_prefix="sluice-aside"))
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(1)
        self.servers = []
        for sock in sockets or []:
            await self._listen(self.config, sock, self.certificates)
        if self.management is not None:
            config = configure(self.sluice.management, lifespan="off")
            config.load()
            await self._listen(config, self.management, None)
        self.started = True

    async def _listen(
        self, config: uvicorn.Config, sock: socket.socket, certificates: Certificates | None = None
    ) -> None:
        make = partial(HttpConnection, config, self.server_state, self.lifespan.state)
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        options: dict[str, Any] = {}
        if certificates is not None:
            # A peer that begins a handshake and does not end it is held to the same time as one with headers.
            options = {"ssl": certificates.context, "ssl_handshake_timeout": HttpConnection.header_timeout_s}
            options["ssl_shutdown_timeout"] = FLUSH_WITHIN_S
        self.servers.append(await create(make, sock=sock, backlog=config.backlog, **options))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        self._drain_task: asyncio.Task[None] | None = None
        # Not the loop's own handlers: they are called only when the loop gets round to it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        yield

    def _on_signal(self, number: int, _: Any) -> None:
        self.signals = (*self.signals, signal.Signals(number).name)
        if len(self.signals) > 1:
            self.force_exit_after(shutdown.FORCED_EXIT_WITHIN_S, 1)
        with contextlib.suppress(RuntimeError):
            # The loop may be over already.
            self._loop.call_soon_threadsafe(self._drain_or_end, number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.force_exit_after(shutdown.EXIT_WITHIN_S, 1)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpConnection):
                    connection.check_peer()
            self._release_memory()
            if self.certificates is not None and (self._certificates_task is None or self._certificates_task.done()):
                self._certificates_task = asyncio.ensure_future(asyncio.to_thread(self.certificates.refresh))
        return await super().on_tick(counter)

    def _release_memory(self) -> None:
        budget = body_budget(self.server_state)
        if budget is not None and budget.peak_bytes > LARGE_PEAK_BYTES and budget.used_bytes < budget.peak_bytes // 2:
            budget.reset_peak()
            self._memory_task = asyncio.ensure_future(asyncio.to_thread(memory.release_free))

    def unsent_bytes(self) -> int:
        """What waits in the buffers of all connections."""
        return sum(one.unsent_bytes for one in self.server_state.connections if isinstance(one, HttpConnection))

    def _drain_or_end(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._drain_task is None:
            logger.info("%s: no new requests, running ones may finish (again to end now)", name)
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())
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


def listen(server: Server) -> Listeners:
    """All listening sockets of the settings. Raises SettingsError."""
    found = Listeners([])
    try:
        if server.uds is None:
            found.main = bind_many(server.host, server.port, server.workers)
        else:
            sock, found.file = bind_unix(server.uds, server.uds_access)
            # One queue that all workers take from: the kernel has no other way to share a Unix socket.
            found.main = [sock, *(sock.dup() for _ in range(server.workers - 1))]
        if server.management_port is not None:
            host = server.management_host or server.host
            found.management = bind(host, server.management_port, "server.management")
    except SettingsError:
        found.close()
        raise
    return found


def load_certificates(server: Server) -> Certificates | None:
    """The certificates of the settings. Raises SettingsError if they cannot be used."""
    return None if server.tls is None else Certificates(CertificateFiles(**dict(server.tls)))


def serve(settings: Settings, build: Build, watch: StartupLog) -> int:
    """Serve what `build` makes until a signal or a failure; returns the exit code."""
    load_certificates(settings.server)
    listeners = listen(settings.server)
    try:
        url = log_addresses(settings.server, listeners, watch)

        def announce_it(ready: Sluice) -> None:
            log_ready(watch, url, settings, ready.model, ready.has_chat)

        server, failure = run(settings, build, announce_it, listeners.main[0], listeners.management, HttpServer)
    finally:
        listeners.close()
    code = 0 if failure is None else failure.exit_code
    reason = "a failure" if failure is not None else ", then ".join(server.signals)
    shutdown.log_end(reason, code, server.sluice.metrics.endings, watch.elapsed_s)
    if failure is not None:
        print(f"sluice: {failure}", file=sys.stderr)
    return shutdown.exit_process(code, hurry=server.sluice.is_starting)


def run(
    settings: Settings,
    build: Build,
    on_ready: Callable[[Sluice], None],
    sock: socket.socket,
    management: socket.socket | None,
    make: Callable[[uvicorn.Config], HttpServer],
) -> tuple[HttpServer, SettingsError | None]:
    """Serve what `build` makes on `sock`, and on `management` what is kept apart; the server at its end, with why it
    had to end, None if it was asked to."""
    failure: list[SettingsError] = []

    def fail(error: SettingsError) -> None:
        # An engine that is interrupted together with us has not failed.
        if not server.should_exit and not sluice.registry.draining:
            failure.append(error)
            server.should_exit = True

    sluice = build(on_ready, fail)
    limit_connections(settings)
    server = make(configure(sluice.asgi))
    server.sluice = sluice
    server.force_exit_after = shutdown.force_exit_after
    server.management = management
    server.certificates = load_certificates(settings.server)
    server.drain_timeout_s = settings.server.drain_timeout_s
    sluice.metrics.add_gauge("unsent_bytes", "Bytes in our buffers that clients have not taken.", server.unsent_bytes)
    # What a thread computes in Python must not keep the event loop waiting for the usual 5 ms each time it wakes.
    sys.setswitchinterval(SWITCH_EVERY_S)
    gc.set_threshold(*GC_THRESHOLDS)
    server.run(sockets=[sock, *[sock.dup() for _ in range(ACCEPTS_PER_TURN - 1)]])
    return server, failure[0] if failure else None


def limit_connections(settings: Settings) -> None:
    """Have all connections keep to the settings."""
    server = settings.server
    HttpConnection.max_header_bytes = server.max_header_bytes
    HttpConnection.max_headers = server.max_headers
    HttpConnection.header_timeout_s = server.header_timeout_s
    HttpConnection.body_timeout_s = server.body_timeout_s
    HttpConnection.min_body_bytes_per_s = server.min_body_bytes_per_s
    # One of the largest must fit.
    HttpConnection.max_total_body_bytes = max(server.max_total_body_bytes // server.workers, server.max_body_bytes)
    HttpConnection.idle_timeout_s = server.idle_timeout_s
    HttpConnection.max_age_s = server.max_connection_age_s
    HttpConnection.stall_timeout_s = settings.streams.stall_timeout_s


def configure(app: Any, *, lifespan: Literal["on", "off"] = "on") -> uvicorn.Config:
    """uvicorn as we use it."""
    return uvicorn.Config(
        app,
        http=HttpConnection,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FLUSH_WITHIN_S,
    )


def log_addresses(server: Server, listeners: Listeners, watch: StartupLog) -> str:
    """Log where the server listens; its URL."""
    url = url_of(server.host, listeners.main[0], tls=server.tls is not None)
    watch.begin(f"listening on {url}; requests are answered with 503 until the engine is ready")
    if listeners.management is not None:
        host = server.management_host or server.host
        watch.begin(f"metrics, docs and health on {url_of(host, listeners.management)} (server.management_port)")
    return url


def log_ready(watch: StartupLog, url: str, settings: Settings, model: str, has_chat: bool) -> None:
    """Say that the server is ready, and what to try."""
    docs = f" (docs at {url}/docs)" if settings.server.management_port is None and settings.server.uds is None else ""
    watch.finish(f"ready: {model} at {url}{docs}")
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


__all__ = ["HttpServer", "configure", "listen", "load_certificates", "log_addresses", "log_ready", "run", "serve"]
