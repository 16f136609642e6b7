"""The whole HTTP edge over a scripted engine: guard, dispatch, completions, small routes, registry and gate."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from gateway.admission.gate import Gate
from gateway.domain import Endpoint
from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import Phase, Supervisor
from gateway.protocols import openai
from gateway.streamlog.memory import MemoryLog
from gateway.streams.registry import Limits, Registry
from gateway.transports.common.api_keys import Keys
from gateway.transports.http import health
from gateway.transports.http.access import Access
from gateway.transports.http.middleware import Guard
from gateway.transports.http.origins import Sites
from gateway.transports.http.paths import UnderRoot
from gateway.transports.http.responses import Completions, Pace, Responder, Resume
from gateway.transports.http.router import Dispatch, make_small
from gateway.transports.http.stream_tokens import StreamTokens
from tests.support.asgi import Client
from tests.support.engine import ScriptedEngine
from tests.support.instrumentation import Recorder
from tests.support.time import clock

CHAT = Endpoint.CHAT.value
COMPLETION = Endpoint.COMPLETION.value


ANY_SITE = Sites.of("0.0.0.0", False, (), ())


def key_line(name: str, key: str, right: str = "") -> str:
    """A line of a keys file."""
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}{right}\n"


LIMITS = Limits(max_timeout_s=3600, max_grace_s=600, retention_s=120, max_bytes=2**20, max_total_bytes=2**24)


def _later(metrics: Callable[[], bytes]) -> Callable[[], Awaitable[bytes]]:
    async def expose() -> bytes:
        return metrics()

    return expose


class Edge:
    """Everything between a socket and an engine, and the clients in front of it. Make it inside a virtual loop."""

    def __init__(
        self,
        *,
        max_concurrent: int = 4,
        max_waiting: int = 8,
        queue_timeout_s: float = 60.0,
        max_body_bytes: int = 2**20,
        keys_file: Path | None = None,
        protect_metrics: bool = False,
        ready: bool = True,
        keepalive_s: float = 15.0,
        stall_timeout_s: float = 30.0,
        limits: Limits = LIMITS,
        metrics: Callable[[], bytes] = lambda: b"sluice_numbers 1\n",
        operator_endpoints: bool = False,
        sites: Sites = ANY_SITE,
    ) -> None:
        self.clock = clock()
        self.instrumentation = Recorder()
        self.engine = ScriptedEngine()
        self.gate = Gate(
            max_concurrent=max_concurrent,
            max_waiting=max_waiting,
            queue_timeout_s=queue_timeout_s,
            clock=self.clock,
            instrumentation=self.instrumentation,
        )
        self.supervisor = Supervisor(
            self._launch,
            max_restarts=3,
            window_s=600,
            clock=self.clock,
            on_lost=self._lost,
            on_regained=self._regained,
        )
        if ready:
            self.supervisor.phase, self.supervisor._engine = Phase.UP, self.engine
        self.registry = Registry(
            engine=lambda: self.supervisor.engine,
            engine_soon=self.supervisor.soon,
            gate=self.gate,
            log=MemoryLog,
            wire=openai,
            limits=limits,
            clock=self.clock,
            instrumentation=self.instrumentation,
        )
        small = make_small(
            registry=self.registry,
            health=health.make_router(
                unready=lambda: self.supervisor.impediment,
                alive=lambda: self.supervisor.phase is not Phase.FAILED,
                metrics=_later(metrics),
                metrics_type="text/plain; version=0.0.4",
                version={"sluice": "0.1.0", "vllm": "scripted"},
            ),
            engine_schema=lambda: self.engine.schema() if self.supervisor.ready else {},
            options=lambda: self.engine.options,
            lifespan=None,
            version="0.1.0",
        )
        self.tokens = StreamTokens(self.clock)
        pace = Pace(keepalive_s, stall_timeout_s)
        self.responder = Responder(self.registry, pace, self.clock, self.instrumentation, self.tokens)
        self.keys = None if keys_file is None else Keys(keys_file)
        completions = {endpoint: Completions(endpoint, self.responder) for endpoint in Endpoint}
        self.guard = Guard(
            Dispatch(completions, Resume(self.responder), small, self.registry, lambda: self.engine.options),
            access=Access(
                keys=self.keys,
                sites=sites,
                protect_metrics=protect_metrics,
                operator_endpoints=operator_endpoints,
                tokens=self.tokens,
                owner_of=self.registry.owner_of,
            ),
            max_body_bytes=max_body_bytes,
            closing=lambda: self.registry.draining,
            clock=self.clock,
            instrumentation=self.instrumentation,
        )
        self.app = UnderRoot(self.guard, lambda: self.engine.options.root_path)

    async def _launch(self) -> ScriptedEngine:
        return self.engine

    def _lost(self) -> None:
        self.registry.lost()

    def _regained(self, recovery: RecoveryReport) -> None:
        self.registry.regained()

    def client(self, method: str, path: str, **options: Any) -> Client:
        """Somebody sends a request."""
        return Client(self.app, method, path, **options)

    def ask(
        self,
        path: str = CHAT,
        *,
        headers: Mapping[str, str] | None = None,
        line: bool = False,
        **fields: Any,
    ) -> Client:
        """Somebody asks for a stream; `fields` go into the body, `line` as in `Client`."""
        body = orjson.dumps({"stream": True, **fields})
        return Client(self.app, "POST", path, headers=headers, line=line, body=body)

    def come_back(self, stream_id: str, last: int | None = None, **options: Any) -> Client:
        """Somebody who has seen event number `last` comes back for the rest."""
        headers = {**options.pop("headers", {}), **({} if last is None else {"Last-Event-ID": str(last)})}
        return self.client("GET", f"/v1/streams/{stream_id}", headers=headers, **options)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left: no seat taken, nobody waiting, no live stream."""
        return (self.gate.taken, self.gate.waiting, self.registry.active) == (0, 0, 0)


__all__ = ["ANY_SITE", "CHAT", "COMPLETION", "LIMITS", "Edge", "key_line"]
