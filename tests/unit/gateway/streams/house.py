"""A registry over a scripted engine, and readers of its streams."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from gateway.admission.gate import Gate
from gateway.domain import Endpoint, RequestOptions
from gateway.protocols import openai
from gateway.streamlog.base import Ended
from gateway.streamlog.memory import MemoryLog
from gateway.streams.registry import Limits, Registry
from gateway.streams.stream import Stream
from tests.support.engine import Run, ScriptedEngine, Switch
from tests.support.instrumentation import Recorder, some_stats
from tests.support.time import clock

LIMITS = Limits(
    max_timeout_s=1000,
    prepare_timeout_s=60,
    max_grace_s=100,
    retention_s=50,
    max_bytes=100_000,
    max_total_bytes=1_000_000,
)


class House:
    """Make it inside a virtual loop."""

    def __init__(self, slots: int = 2, limits: Limits = LIMITS, queue_timeout_s: float = 60) -> None:
        self.instrumentation = Recorder()
        self.engine = ScriptedEngine()
        self.switch = Switch(self.engine)
        self.gate = Gate(
            max_concurrent=slots,
            max_waiting=4,
            queue_timeout_s=queue_timeout_s,
            clock=clock(),
            instrumentation=self.instrumentation,
        )
        self.registry = Registry(
            engine=self.switch.engine,
            engine_soon=self.switch.soon,
            gate=self.gate,
            log=MemoryLog,
            wire=openai,
            limits=limits,
            clock=clock(),
            instrumentation=self.instrumentation,
        )

    def open(
        self,
        *,
        owner: str | None = None,
        timeout_s: float | None = None,
        grace_s: float | None = None,
        endpoint: Endpoint = Endpoint.CHAT,
        **fields: Any,
    ) -> Stream:
        """Somebody asks for a stream; `fields` go into the body."""
        stats = some_stats(self.instrumentation, owner, arrival_s=clock().now())
        return self.registry.open(
            endpoint,
            orjson.dumps({"stream": True, **fields}),
            stats,
            RequestOptions(timeout_s=timeout_s, grace_s=grace_s),
        )

    def run_of(self, stream: Stream) -> Run:
        """The stream's run in the engine."""
        (run,) = (run for run in self.engine.runs if run.id == stream.id)
        return run

    @property
    def at_rest(self) -> bool:
        return (self.gate.taken, self.gate.waiting, self.registry.active) == (0, 0, 0)


async def read_all(stream: Stream, cursor: int = 0) -> tuple[list[bytes], Ended]:
    """Follow a stream to its end."""
    documents: list[bytes] = []
    with stream.read(cursor) as reader:
        while True:
            batch = await reader.take()
            if batch is not None:
                documents += batch.documents
                if batch.ended is not None:
                    return documents, batch.ended


def reading(stream: Stream, cursor: int = 0) -> asyncio.Task[tuple[list[bytes], Ended]]:
    """Somebody follows a stream to its end, in a task of its own."""
    return asyncio.get_running_loop().create_task(read_all(stream, cursor))


__all__ = ["LIMITS", "House", "read_all", "reading"]
