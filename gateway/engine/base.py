"""The contract of an engine, and of the sink that it fills.

A request passes four calls: `parse` (is it well-formed?), `check` (can its grammar be compiled?), `prepare` (can it be
served, and with which chunks?) and `submit`. The gate is between `check` and `prepare`, so a request that waits costs
the engine nothing. All of them raise only errors of `gateway.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from gateway.asgi import ASGIApp
from gateway.domain import AppOptions, ChunkTemplate, Endpoint, OutputPart, RequestStats
from gateway.errors import SluiceError

CURRENT_STATS: ContextVar[RequestStats | None] = ContextVar("sluice_stats", default=None)
"""The request for which the running task uses the engine. Set around code of vLLM's that calls the engine, so that its
tokens are counted without a parameter through code that is not ours."""


class Route(Enum):
    """The kind of a path of an engine's own HTTP app."""

    UNKNOWN = auto()
    WRONG_METHOD = auto()
    LIGHT = auto()
    """Answers without engine work; needs no permit."""
    USES_ENGINE = auto()
    """Needs engine work, and a permit."""
    OPERATOR = auto()
    """Runs the server instead of the model, for its operators; needs no permit."""


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """The requests that were in flight when an engine died: how many went on, how many failed for each reason, and how
    many are not sent again because engines have died of them."""

    continued: int
    failed: Mapping[str, int]
    expelled: int = 0


class Sink(Protocol):
    """Takes the output of one request. `put`, `put_text`, `finish` and `fail` return at once; after one of the last two
    they have no effect."""

    def put(self, part: OutputPart) -> None:
        """Take output. A delta with a finish reason is the last."""

    def put_text(self, text: str, tokens: int, now_s: float) -> None:
        """As `put`, for a delta without a finish reason that arrived at `now_s`: the call that is made for every
        token."""

    def finish(self) -> None:
        """The answer is complete."""

    def fail(self, error: SluiceError) -> None:
        """The answer will not be completed."""

    @property
    def is_over_high_water(self) -> bool:
        """Whether formatted documents pile up, so that their formatter should wait in `wait_writable`."""

    async def wait_writable(self) -> None:
        """Wait until it is no longer over its high water."""


class Call(Protocol):
    """A request body that the engine's own request model has accepted."""

    @property
    def stream(self) -> bool:
        """Whether the client requested a stream."""

    @property
    def slots(self) -> int:
        """The number of its sequences in the engine."""


class Prepared(Protocol):
    """A request that can be submitted."""

    @property
    def template(self) -> ChunkTemplate | None:
        """The parts that its chunks share; None if the engine formats its documents itself."""


class Handle(Protocol):
    """A request that runs in the engine."""

    def abort(self) -> None:
        """Stop generating and free the sequence. Returns at once; a request that is over is left alone."""


class Restartable(Protocol):
    """An engine, or the processes of one that other processes use: it can die and be restarted."""

    @property
    def unready_reason(self) -> str | None:
        """Why a request sent now would not be served soon although the engine lives; None if it would be."""

    async def wait_dead(self) -> None:
        """Return when the engine process has died, or is stuck and has been killed."""

    async def restart(self, *, last: bool = False) -> RecoveryReport:
        """Start another engine process in the dead one's place and send it the requests that can go on. `last`: its
        death will be final. Raises if it cannot start, and SettingsError if no further attempt will be made."""

    def take_explained_deaths(self) -> int:
        """How many deaths since the last call are attributed to requests that have failed for them."""

    def fail_all(self) -> None:
        """Fail everything in flight: no other engine will be started."""

    async def stop(self) -> None:
        """End the engine and its processes."""


class EngineHttpApp(Protocol):
    """The engine's own HTTP app, for every path that is not ours."""

    @property
    def http(self) -> ASGIApp:
        """The app."""

    @property
    def options(self) -> AppOptions:
        """The app's settings."""

    def schema(self) -> dict[str, Any]:
        """Its OpenAPI document."""

    def route(self, method: str, path: str) -> Route:
        """The kind of that path."""

    def methods(self, path: str) -> frozenset[str]:
        """The methods that the path takes."""

    def template(self, path: str) -> str:
        """The path as the app declares it, such as `/v1/responses/{response_id}`."""

    async def check_body(self, path: str, body: bytes, stats: RequestStats) -> None:
        """As `Engine.check`, for a body that the app will read. Other errors of the body are left to the app."""

    def has_request(self, request_id: str) -> bool:
        """Whether the app runs a request under that id, of any owner."""

    def cancel(self, request_id: str, owner: str | None) -> RequestStats | None:
        """Abort the requests that the app runs under that id for that owner, and return their count; None if there are
        none."""


class Engine(Restartable, EngineHttpApp, Protocol):
    """A running engine."""

    @property
    def model(self) -> str:
        """The name under which the model is served."""

    async def model_card(self, name: str) -> dict[str, Any] | None:
        """The description of a model, or an adapter, that is served under that name; None if none is."""

    def load_report(self, kind: str, queued: int) -> str | None:
        """The engine's load as the value of an ORCA header (`endpoint-load-metrics`) of that kind: TEXT or JSON.
        `queued` requests wait outside the engine."""

    def parse(self, endpoint: Endpoint, body: bytes) -> Call:
        """Check a request body. Raises ClientError that names the field."""

    async def check(self, call: Call, stats: RequestStats) -> None:
        """Check the grammar in the request, in another process. Raises ClientError that names the field, and Overloaded
        if the check takes too long."""

    async def prepare(self, call: Call, stats: RequestStats) -> Prepared:
        """Render the prompt and set the sampling parameters and `stats.model`. The answer's id is `stats.id`."""

    async def submit(self, prepared: Prepared, sink: Sink) -> Handle:
        """Start generating into `sink`."""


class EngineSource(Protocol):
    """The engine of the moment."""

    @property
    def engine(self) -> Engine:
        """The running engine. Raises why there is none."""

    async def wait_ready(self) -> Engine:
        """The running engine; waits while one is being restarted. Raises as `engine`."""
