"""The parts of the gateway over a scripted engine, composed for tests: writers alone, streams, and HTTP in front.

Make each harness inside a virtual loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from gateway.admission.gate import Gate
from gateway.domain import Cause, Chunk, ChunkTemplate, Delta, Endpoint, OutputPart, RequestOptions, RequestStats
from gateway.engine.base import Engine, RecoveryReport, Route
from gateway.engine.supervisor import Phase, Supervisor
from gateway.errors import SluiceError
from gateway.process_context import SingleProcess
from gateway.protocols import sse
from gateway.protocols.base import Framing
from gateway.streamlog.base import Ended, OpenLog
from gateway.streamlog.memory import open_log
from gateway.streams.engine_app import EngineAppAdmission
from gateway.streams.limits import Limits
from gateway.streams.registry import Registry
from gateway.streams.starter import StreamStarter
from gateway.streams.stream import Stream
from gateway.streams.writer import StreamWriter
from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.common.delivery import DeliveryTimers
from gateway.transports.http.access import Access
from gateway.transports.http.engine_app import EngineApp
from gateway.transports.http.management import make_health_router, make_management_app
from gateway.transports.http.middleware import Middleware
from gateway.transports.http.origins import Sites
from gateway.transports.http.paths import RootPathStripper
from gateway.transports.http.router import STREAM_PROTOCOLS, Router
from gateway.transports.http.stream_endpoints import ResumeEndpoint, StreamEndpoint, StreamResponder
from gateway.transports.http.stream_tokens import StreamTokens
from tests.support.asgi import Client
from tests.support.engine import Run, ScriptedEngine, Switch
from tests.support.instrumentation import Recorder, some_stats
from tests.support.time import VirtualClock, clock

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
PROTOCOLS = {protocol.endpoint: protocol for protocol in STREAM_PROTOCOLS.values()}
ANY_SITE = Sites.of("0.0.0.0", False, (), ())
STREAM_LIMITS = Limits(
    max_timeout_s=1000,
    prepare_timeout_s=60,
    max_grace_s=100,
    retention_s=50,
    max_bytes=100_000,
    max_total_bytes=1_000_000,
)
HTTP_LIMITS = Limits(max_timeout_s=3600, max_grace_s=600, retention_s=120, max_bytes=2**20, max_total_bytes=2**24)


class PlainProtocol:
    """A protocol with one document a part: the text of a delta, the payload of a chunk; an empty text has none.

    Texts that are encoded with a template stand in angle brackets, so that a test can see that it was used.
    """

    endpoint = Endpoint.CHAT
    ping = None

    def __init__(self, template: ChunkTemplate | None = None) -> None:
        self._template = template

    def encoder(self, template: ChunkTemplate | None) -> PlainProtocol:
        return PlainProtocol(template)

    def encode(self, parts: Iterable[OutputPart]) -> list[bytes]:
        texts = [part.payload if isinstance(part, Chunk) else part.text.encode() for part in parts]
        return [text if self._template is None else b"<%b>" % text for text in texts if text]

    def encode_text(self, text: str, tokens: int) -> bytes | None:
        return next(iter(self.encode([Delta(text, tokens)])), None)

    def error(self, error: SluiceError) -> bytes:
        return orjson.dumps(error.code)

    def end(self, error: SluiceError | None) -> list[bytes]:
        return [b"end" if error is None else self.error(error)]

    def framing(self, *, is_numbered: bool) -> Framing:
        return sse.numbered if is_numbered else sse.events


class Handle:
    """The engine's handle of one request, which counts its aborts."""

    def __init__(self) -> None:
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1


class WriterHarness:
    """Makes stream writers without an engine; the gate has two slots."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.instrumentation = Recorder()
        self.gate = Gate(
            max_concurrent=2, max_waiting=0, queue_timeout_s=1, clock=self.clock, instrumentation=Recorder()
        )
        self.handle = Handle()
        self.ends = 0

    def queued(
        self, keep_bytes: int | None = None, *, streaming: bool = True, is_resumable: bool = False
    ) -> StreamWriter:
        """A writer whose request waits for its slot."""
        stats = some_stats(self.instrumentation, stream_id="chatcmpl-1", arrival_s=self.clock.now())
        stats.is_resumable = is_resumable
        return StreamWriter(
            stats=stats,
            open_log=open_log,
            keep_bytes=keep_bytes,
            protocol=PlainProtocol(),
            is_streaming=streaming,
            clock=self.clock,
            on_end=self._count_end,
        )

    async def running(self, keep_bytes: int | None = None, *, streaming: bool = True) -> StreamWriter:
        """A writer whose request is in the engine."""
        writer = self.queued(keep_bytes, streaming=streaming)
        writer.admit(await self.gate.enter())
        writer.start(None)
        writer.stats.submitted = True
        writer.attach(self.handle)
        return writer

    def _count_end(self) -> None:
        self.ends += 1


class StreamHarness:
    """Gate, registry and log over a scripted engine, which `switch` takes away and brings back."""

    def __init__(
        self,
        *,
        max_concurrent: int = 2,
        max_waiting: int = 4,
        queue_timeout_s: float = 60,
        limits: Limits = STREAM_LIMITS,
        open_log: OpenLog = open_log,
    ) -> None:
        self.clock = clock()
        self.instrumentation = Recorder()
        self.engine = ScriptedEngine()
        self.switch = Switch(self.engine)
        self.gate = Gate(
            max_concurrent=max_concurrent,
            max_waiting=max_waiting,
            queue_timeout_s=queue_timeout_s,
            clock=self.clock,
            instrumentation=self.instrumentation,
        )
        engines = self._engines()
        self.registry = Registry(engines, limits, self.clock)
        self.starter = StreamStarter(
            engines,
            self.gate,
            self.registry,
            open_log=open_log,
            limits=limits,
            clock=self.clock,
            new_id=SingleProcess().new_id,
        )
        self.engine_app = EngineAppAdmission(engines, self.gate, self.registry, limits, self.clock)

    def _engines(self) -> Any:
        return self.switch

    def open(
        self,
        *,
        owner: str | None = None,
        timeout_s: float | None = None,
        grace_s: float | None = None,
        endpoint: Endpoint = Endpoint.CHAT,
        **fields: Any,
    ) -> Stream:
        """Open a stream past HTTP; `fields` go into the body."""
        stats = some_stats(self.instrumentation, owner, arrival_s=self.clock.now())
        return self.starter.begin(
            PROTOCOLS[endpoint],
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
        """Whether nothing is left: no slot taken, no request queued, no live stream."""
        return (self.gate.slots_taken, self.gate.queued, self.registry.active) == (0, 0, 0)


class HttpHarness(StreamHarness):
    """Everything between a socket and the engine, which a supervisor starts, and clients in front of it."""

    def __init__(
        self,
        *,
        max_concurrent: int = 4,
        max_waiting: int = 8,
        queue_timeout_s: float = 60.0,
        limits: Limits = HTTP_LIMITS,
        max_body_bytes: int = 2**20,
        keys_file: Path | None = None,
        protect_metrics: bool = False,
        operator_endpoints: bool = False,
        sites: Sites = ANY_SITE,
        ready: bool = True,
        keepalive_s: float = 15.0,
        stall_timeout_s: float = 30.0,
        metrics: Callable[[], bytes] = lambda: b"sluice_numbers 1\n",
    ) -> None:
        self._is_ready = ready
        super().__init__(
            max_concurrent=max_concurrent, max_waiting=max_waiting, queue_timeout_s=queue_timeout_s, limits=limits
        )
        self.tokens = StreamTokens(self.clock)
        timers = DeliveryTimers(keepalive_s, stall_timeout_s, self.clock)
        self.responder = StreamResponder(self.registry, timers, self.tokens, self.engine_app.load_report)
        self.keys = None if keys_file is None else ApiKeys(keys_file)
        self.guard = Middleware(
            self._dispatch(metrics),
            access=Access(
                keys=self.keys,
                sites=sites,
                protect_metrics=protect_metrics,
                operator_endpoints=operator_endpoints,
                tokens=self.tokens,
                owner_of=self.registry.owner_of,
            ),
            max_body_bytes=max_body_bytes,
            is_closing=lambda: self.registry.is_draining,
            clock=self.clock,
            instrumentation=self.instrumentation,
        )
        self.app = RootPathStripper(self.guard, lambda: self.engine.options.root_path)

    def _dispatch(self, metrics: Callable[[], bytes]) -> Router:
        small = make_management_app(
            registry=self.registry,
            engines=self.supervisor,
            health=make_health_router(
                unready=lambda: self.supervisor.readiness_error,
                alive=lambda: self.supervisor.phase is not Phase.FAILED,
                metrics=_later(metrics),
                metrics_type="text/plain; version=0.0.4",
                version={"sluice": "0.1.0", "vllm": "scripted"},
            ),
            engine_schema=lambda: self.engine.schema() if self.supervisor.is_ready else {},
            options=lambda: self.engine.options,
            lifespan=None,
            version="0.1.0",
        )
        streams = {
            path: StreamEndpoint(path, protocol, self.starter, self.responder, self.clock)
            for path, protocol in STREAM_PROTOCOLS.items()
        }
        engine_app = EngineApp(self.engine_app)
        return Router(streams, ResumeEndpoint(self.responder), small, engine_app, lambda: self.engine.options)

    def _engines(self) -> Any:
        self.supervisor = Supervisor(
            self._launch,
            max_restarts=3,
            window_s=600,
            clock=self.clock,
            on_lost=self._lost,
            on_recovered=self._regained,
        )
        if self._is_ready:
            self.supervisor.phase, self.supervisor._engine = Phase.UP, self.engine
        return self.supervisor

    async def _launch(self) -> ScriptedEngine:
        return self.engine

    def _lost(self) -> None:
        self.registry.on_engine_lost()

    def _regained(self, recovery: RecoveryReport) -> None:
        self.registry.on_engine_recovered()

    def request(self, method: str, path: str, **options: Any) -> Client:
        """A client's request; `options` as in `Client`."""
        return Client(self.app, method, path, **options)

    def post(
        self,
        path: str = CHAT,
        *,
        headers: Mapping[str, str] | None = None,
        direct_sink: bool = False,
        **fields: Any,
    ) -> Client:
        """A request for a stream; `fields` go into the body, `direct_sink` as in `Client`."""
        body = orjson.dumps({"stream": True, **fields})
        return Client(self.app, "POST", path, headers=headers, direct_sink=direct_sink, body=body)

    def resume(self, stream_id: str, last: int | None = None, **options: Any) -> Client:
        """A request for what follows event number `last` of a stream."""
        headers = {**options.pop("headers", {}), **({} if last is None else {"Last-Event-ID": str(last)})}
        return self.request("GET", f"/v1/streams/{stream_id}", headers=headers, **options)


def _later(metrics: Callable[[], bytes]) -> Callable[[], Awaitable[bytes]]:
    async def expose() -> bytes:
        return metrics()

    return expose


def with_engine_app(max_concurrent: int = 2) -> StreamHarness:
    """A harness whose engine has an app of two paths."""
    harness = StreamHarness(max_concurrent=max_concurrent)
    harness.engine.routes = {("POST", "/v1/embeddings"): Route.USES_ENGINE, ("GET", "/v1/models"): Route.LIGHT}
    return harness


@asynccontextmanager
async def admit(
    harness: StreamHarness, method: str, path: str, stats: RequestStats, options: RequestOptions
) -> AsyncIterator[Engine]:
    """Admission as a transport requests it."""
    stats.endpoint = path
    stats.uses_engine = harness.engine.route(method, path) is Route.USES_ENGINE
    if method == "GET":
        yield harness.engine_app.admit_light()
        return
    async with harness.engine_app.admit(stats, options) as engine:
        yield engine


async def _embed(harness: StreamHarness, stats: RequestStats, timeout_s: float | None = None) -> None:
    async with admit(harness, "POST", "/v1/embeddings", stats, RequestOptions(timeout_s=timeout_s)):
        await asyncio.Event().wait()


def start_embedding(harness: StreamHarness, stats: RequestStats, timeout_s: float | None = None) -> asyncio.Task[None]:
    """An endless request for an embedding, in a task of its own."""
    return asyncio.get_running_loop().create_task(_embed(harness, stats, timeout_s))


def cause(stream: Stream) -> Cause | None:
    """The cause with which a stream has ended."""
    return None if stream.writer.ended is None else stream.writer.ended.cause


def key_line(name: str, key: str, right: str = "") -> str:
    """A line of a keys file."""
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}{right}\n"


def documents(writer: StreamWriter) -> list[bytes]:
    """All documents that are still in the log."""
    writer.flush()
    batch = writer.log.read(0)
    return [] if batch is None else batch.documents


async def read_all(stream: Stream, cursor: int = 0) -> tuple[list[bytes], Ended]:
    """Read a stream to its end."""
    documents: list[bytes] = []
    with stream.read(cursor) as reader:
        while True:
            batch = await reader.next_batch()
            if batch is not None:
                documents += batch.documents
                if batch.ended is not None:
                    return documents, batch.ended


def start_reading(stream: Stream, cursor: int = 0) -> asyncio.Task[tuple[list[bytes], Ended]]:
    """Read a stream to its end in a task of its own."""
    return asyncio.get_running_loop().create_task(read_all(stream, cursor))
