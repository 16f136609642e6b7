"""The whole HTTP edge over a scripted engine: guard, dispatch, completions, small routes, registry and gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from gateway.admission.gate import Gate
from gateway.engine.supervisor import Phase, Supervisor
from gateway.model import Endpoint
from gateway.streamlog.memory import PendingLog
from gateway.streams.registry import Registry
from gateway.web import health
from gateway.web.guard import Guard
from gateway.web.keys import Keys
from gateway.web.respond import Completions
from gateway.web.routes import Dispatch, make_small
from tests.support.asgi import Client
from tests.support.engine import ScriptedEngine
from tests.support.facts import Recorder
from tests.support.time import clock

CHAT = Endpoint.CHAT.value
COMPLETION = Endpoint.COMPLETION.value


def key_line(name: str, key: str) -> str:
    """A line of a keys file."""
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


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
        metrics: Callable[[], bytes] = lambda: b"sluice_numbers 1\n",
    ) -> None:
        self.clock = clock()
        self.facts = Recorder()
        self.engine = ScriptedEngine()
        self.gate = Gate(
            max_concurrent=max_concurrent,
            max_waiting=max_waiting,
            queue_timeout_s=queue_timeout_s,
            clock=self.clock,
            facts=self.facts,
        )
        began = self.clock.now()
        self.supervisor = Supervisor(self._launch, lambda: self.clock.now() - began)
        if ready:
            self.supervisor.phase, self.supervisor._engine = Phase.UP, self.engine
        self.registry = Registry(
            engine=lambda: self.supervisor.engine,
            gate=self.gate,
            log=PendingLog,
            clock=self.clock,
            facts=self.facts,
        )
        small = make_small(
            registry=self.registry,
            health=health.make_router(
                unready=lambda: None if self.supervisor.ready else self.supervisor.unready(),
                alive=lambda: self.supervisor.phase is not Phase.FAILED,
                metrics=metrics,
                metrics_type="text/plain; version=0.0.4",
                version={"sluice": "0.1.0", "vllm": "scripted"},
            ),
            engine_schema=lambda: self.engine.schema() if self.supervisor.ready else {},
            lifespan=None,
            version="0.1.0",
        )
        completions = {endpoint: Completions(endpoint, self.registry, self.clock, self.facts) for endpoint in Endpoint}
        self.app = Guard(
            Dispatch(completions, small, self.registry),
            keys=None if keys_file is None else Keys(keys_file, self.clock),
            protect_metrics=protect_metrics,
            max_body_bytes=max_body_bytes,
            clock=self.clock,
            facts=self.facts,
        )

    async def _launch(self) -> ScriptedEngine:
        return self.engine

    def client(self, method: str, path: str, **options: Any) -> Client:
        """Somebody sends a request."""
        return Client(self.app, method, path, **options)

    def ask(self, path: str = CHAT, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Client:
        """Somebody asks for a stream; `fields` go into the body."""
        return Client(self.app, "POST", path, headers=headers, body=orjson.dumps({"stream": True, **fields}))

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left: no seat taken, nobody waiting, no live stream."""
        return (self.gate.taken, self.gate.waiting, self.registry.active) == (0, 0, 0)


__all__ = ["CHAT", "COMPLETION", "Edge", "key_line"]
