"""An implementation of `gateway.engine.base` in this process whose every step the test scripts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.domain import AppOptions, Chunk, ChunkTemplate, Delta, Endpoint, RequestStats
from gateway.engine.base import ASGIApp, RecoveryReport, Route, Sink
from gateway.errors import ClientError, EngineFailed, SluiceError


@dataclass
class Call:
    """An accepted body. `formatted`: with ready-made chunks, as tools or logprobs would."""

    endpoint: Endpoint
    stream: bool
    slots: int
    formatted: bool
    document: dict[str, Any]


@dataclass
class Prepared:
    """A call with its template."""

    call: Call
    stats: RequestStats
    template: ChunkTemplate | None


@dataclass
class Run:
    """One request in the engine: the test generates its output, and its aborts are counted."""

    prepared: Prepared
    sink: Sink
    aborts: int = 0
    over: bool = False
    """Whether its last text has been generated."""
    spoke: bool = False
    """Whether its first text has been generated."""

    @property
    def id(self) -> str:
        """The id that the request's client sees."""
        assert self.prepared.stats.id is not None
        return self.prepared.stats.id

    @property
    def live(self) -> bool:
        """Whether it occupies the engine."""
        return not self.over and not self.aborts

    def put_text(self, text: str, tokens: int = 1) -> None:
        """Generate some text: the first of it as a delta, as every engine does."""
        if self.spoke and self.prepared.template is not None:
            self.sink.put_text(text, tokens, asyncio.get_running_loop().time())
        else:
            self.spoke = True
            self.sink.put(Delta(text, tokens))

    def end(self, text: str = "", reason: str = "stop", tokens: int = 1) -> None:
        """Generate the last text."""
        self.over = True
        self.sink.put(Delta(text, tokens, reason))

    def document(self, payload: bytes, tokens: int = 0) -> None:
        """Hand over a ready-made document; an engine that formats counts its tokens itself."""
        self.prepared.stats.add_tokens(tokens, None)
        self.sink.put(Chunk(payload))

    def finish(self) -> None:
        """The documents are complete."""
        self.over = True
        self.sink.finish()

    def fail(self, error: SluiceError) -> None:
        """Fail the request."""
        self.over = True
        self.sink.fail(error)

    def abort(self) -> None:
        self.aborts += 1


@dataclass
class ScriptedEngine:
    """Every request becomes a `Run` in `runs`. Each stage can be held back or made to fail."""

    model: str = "scripted"
    prompt_tokens: int = 7
    runs: list[Run] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    mounted: dict[tuple[str, str | None], RequestStats] = field(default_factory=dict)
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)
    models: set[str] = field(default_factory=lambda: {"scripted"})
    options: AppOptions = field(default_factory=AppOptions)
    http: ASGIApp = None  # type: ignore[assignment]
    check_hold: asyncio.Event | None = None
    check_error: SluiceError | None = None
    prepare_hold: asyncio.Event | None = None
    submit_hold: asyncio.Event | None = None
    prepare_error: Exception | None = None
    submit_error: Exception | None = None
    unready_reason: str | None = None
    death: asyncio.Event = field(default_factory=asyncio.Event)
    restart_takes_s: float = 0.0
    restart_errors: list[Exception] = field(default_factory=list)
    """Raised by the next restarts, one each."""
    recovery: RecoveryReport = field(default_factory=lambda: RecoveryReport(continued=0, failed={}))
    restarts: int = 0
    lasts: list[bool] = field(default_factory=list)
    deaths_explained: int = 0
    given_up: bool = False
    stops: int = 0

    def schema(self) -> dict[str, Any]:
        return {"paths": {"/v1/embeddings": {}}, "components": {"schemas": {"Theirs": {"type": "object"}}}}

    def template(self, path: str) -> str:
        return path

    def methods(self, path: str) -> frozenset[str]:
        return frozenset(method for method, known in self.routes if known == path)

    async def model_card(self, name: str) -> dict[str, Any] | None:
        return {"id": name, "object": "model", "created": 1700000000} if name in self.models else None

    def load_report(self, kind: str, queued: int) -> str | None:
        return (
            f"{kind.upper()} named_metrics.num_requests_waiting={queued}" if kind.upper() in ("TEXT", "JSON") else None
        )

    def route(self, method: str, path: str) -> Route:
        if (method, path) in self.routes:
            return self.routes[method, path]
        return Route.WRONG_METHOD if any(known == path for _, known in self.routes) else Route.UNKNOWN

    def parse(self, endpoint: Endpoint, body: bytes) -> Call:
        self.bodies.append(body)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ClientError("The request body is not valid JSON.") from None
        return Call(
            endpoint, document.get("stream", False), document.get("n", 1), document.get("formatted", False), document
        )

    async def check(self, call: Any, stats: RequestStats) -> None:
        if self.check_hold is not None:
            await self.check_hold.wait()
        if self.check_error is not None:
            raise self.check_error

    async def check_body(self, path: str, body: bytes, stats: RequestStats) -> None:
        self.bodies.append(body)
        await self.check(None, stats)

    async def prepare(self, call: Any, stats: RequestStats) -> Prepared:
        if self.prepare_hold is not None:
            await self.prepare_hold.wait()
        if self.prepare_error is not None:
            raise self.prepare_error
        assert stats.id is not None
        stats.model = self.model
        stats.prompt_tokens = self.prompt_tokens
        plain = call.stream and call.slots == 1 and not call.formatted
        template = chunk_template(call.endpoint, id=stats.id, prompt_tokens=self.prompt_tokens)
        return Prepared(call, stats, template if plain else None)

    async def submit(self, prepared: Any, sink: Sink) -> Run:
        run = Run(prepared, sink)
        self.runs.append(run)
        prepared.stats.submitted = True
        try:
            if self.submit_hold is not None:
                await self.submit_hold.wait()
        except asyncio.CancelledError:
            run.aborts += 1
            raise
        if self.submit_error is not None:
            run.over = True
            raise self.submit_error
        return run

    def has_request(self, request_id: str) -> bool:
        return any(known == request_id for known, _ in self.mounted)

    def cancel(self, request_id: str, owner: str | None) -> RequestStats | None:
        return self.mounted.get((request_id, owner))

    async def wait_dead(self) -> None:
        await self.death.wait()

    def take_explained_deaths(self) -> int:
        explained, self.deaths_explained = self.deaths_explained, 0
        return explained

    async def restart(self, *, last: bool = False) -> RecoveryReport:
        await asyncio.sleep(self.restart_takes_s)
        if self.restart_errors:
            raise self.restart_errors.pop(0)
        self.restarts += 1
        self.lasts.append(last)
        self.death.clear()
        return self.recovery

    def fail_all(self) -> None:
        self.given_up = True
        for run in self.runs:
            if run.live:
                run.fail(EngineFailed("The engine died."))

    async def stop(self) -> None:
        self.stops += 1


class Switch:
    """A supervisor as the registry sees it: there is an engine, there is none and why, or there will be one."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.up = engine
        self.error: SluiceError | None = None
        self._back: asyncio.Event | None = None

    def lose(self) -> None:
        """The engine dies; another is on its way."""
        self._back = asyncio.Event()

    def regain(self, error: SluiceError | None = None) -> None:
        """The engine is back, or there will be none."""
        self.error = error
        assert self._back is not None
        self._back.set()
        self._back = None

    @property
    def engine(self) -> ScriptedEngine:
        if self.error is not None or self._back is not None:
            raise self.error or EngineFailed("The engine has died and is being restarted.", retry_after_s=9)
        return self.up

    async def wait_ready(self) -> ScriptedEngine:
        while self._back is not None:
            await self._back.wait()
        return self.engine


def chunk_template(endpoint: Endpoint = Endpoint.CHAT, **changes: Any) -> ChunkTemplate:
    """The template of the chunks of a plain stream."""
    chat = endpoint is Endpoint.CHAT
    usual: dict[str, Any] = {
        "id": "chatcmpl-1" if chat else "cmpl-1",
        "created": 1700000000,
        "model": "scripted",
        "role": "assistant" if chat else None,
        "fingerprint": None,
        "include_usage": False,
        "continuous_usage": False,
        "drop_empty": False,
        "prompt_tokens": 7,
    }
    return ChunkTemplate(**{**usual, **changes})


__all__ = ["Prepared", "Run", "ScriptedEngine", "Switch", "chunk_template"]
