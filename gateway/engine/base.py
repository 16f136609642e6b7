"""What an engine must answer, and the sink through which it answers.

A request passes four calls: `parse` (is it well-formed?), `check` (can its grammar be compiled?), `prepare` (can it be
served, and how will its chunks look?) and `submit` (go). Behind the first two stands the gate, so nothing that the
engine works on runs for a request that has to wait. All of them raise only errors of `gateway.errors`.
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

CURRENT_STATS: ContextVar[RequestStats | None] = ContextVar("sluice_tally", default=None)
"""The request on whose behalf the running task uses the engine. Set around code of vLLM's that calls the engine by
itself, so that its tokens are counted without a parameter through code that is not ours."""


class Route(Enum):
    """What an engine's own HTTP app has at a path."""

    UNKNOWN = auto()
    WRONG_METHOD = auto()
    LIGHT = auto()
    """Answers without engine work, so it passes the gate."""
    USES_ENGINE = auto()
    """Makes the engine work, so it needs a permit."""
    OPERATOR = auto()
    """Runs the server instead of the model, so it is for its operators; passes the gate."""


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What became of the requests in flight when an engine was replaced: how many went on, how many of the others had
    which reason, and how many are not sent again because engines have died of them."""

    continued: int
    failed: Mapping[str, int]
    expelled: int = 0


class Sink(Protocol):
    """Where an engine puts what it generates. `put`, `finish` and `fail` return at once; after the last two nothing
    counts."""

    def put(self, part: OutputPart) -> None:
        """Take a piece. A delta with a finish reason is the last one."""

    def put_text(self, text: str, tokens: int, now_s: float) -> None:
        """Take a delta without an ending that came at `now_s`; what `put` does, for the one call that is made for every
        token."""

    def finish(self) -> None:
        """The answer is complete."""

    def fail(self, error: SluiceError) -> None:
        """The answer will not be completed."""

    @property
    def is_over_high_water(self) -> bool:
        """Whether ready-made documents pile up, so that their maker should wait in `room`."""

    async def wait_writable(self) -> None:
        """Wait until `full` is over."""


class Call(Protocol):
    """A request body that the engine's own request model has accepted."""

    @property
    def stream(self) -> bool:
        """Whether the client wants a stream."""

    @property
    def slots(self) -> int:
        """How many sequences it will occupy in the engine."""


class Prepared(Protocol):
    """A request that is ready to run.

    `template` tells how to turn deltas into chunks; None means that the engine formats them itself.
    """

    @property
    def template(self) -> ChunkTemplate | None:
        """See the class."""


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


class Engine(Restartable, Protocol):
    """A running engine."""

    @property
    def model(self) -> str:
        """The name under which the model is served."""

    def schema(self) -> dict[str, Any]:
        """The OpenAPI document of `http`."""

    @property
    def options(self) -> AppOptions:
        """See the class."""

    async def model_card(self, name: str) -> dict[str, Any] | None:
        """What there is to tell of a model, or an adapter, that is served under that name; None if none is."""

    def load_report(self, kind: str, queued: int) -> str | None:
        """The engine's load as the value of an ORCA header (`endpoint-load-metrics`) of that kind: TEXT or JSON. Beside
        those that wait in the engine, `queued` wait for it."""

    @property
    def http(self) -> ASGIApp:
        """The engine's own HTTP app, for every path that is not ours."""

    def route(self, method: str, path: str) -> Route:
        """What `http` has at that path."""

    def methods(self, path: str) -> frozenset[str]:
        """The methods that `http` takes at that path."""

    def template(self, path: str) -> str:
        """The path as `http` has declared it, such as `/v1/responses/{response_id}`."""

    def parse(self, endpoint: Endpoint, body: bytes) -> Call:
        """Check a request body. Raises ClientError that names the field."""

    async def check(self, call: Call, stats: RequestStats) -> None:
        """Check the grammar that the request brings, in a process aside. Raises ClientError that names the field, and
        Overloaded where that could not be done in time."""

    async def check_body(self, path: str, body: bytes, stats: RequestStats) -> None:
        """The same for a body that `http` will read. A body that is wrong otherwise is left to that."""

    async def prepare(self, call: Call, stats: RequestStats) -> Prepared:
        """Render the prompt and settle the sampling parameters; sets the tally's model. The answer's id is the tally's
        own."""

    async def submit(self, prepared: Prepared, sink: Sink) -> Handle:
        """Start generating into `sink`."""

    def has_request(self, request_id: str) -> bool:
        """Whether `http` runs anything under that id, for whomever."""

    def cancel(self, request_id: str, owner: str | None) -> RequestStats | None:
        """Abort what `http` runs under that id for that owner and return its count; None if there is nothing."""


class EngineSource(Protocol):
    """The engine of the moment."""

    @property
    def engine(self) -> Engine:
        """The running engine. Raises why there is none."""

    async def wait_ready(self) -> Engine:
        """The running engine; waits while one is being restarted. Raises as `engine`."""


__all__ = [
    "CURRENT_STATS",
    "ASGIApp",
    "Call",
    "Engine",
    "EngineSource",
    "Handle",
    "Prepared",
    "RecoveryReport",
    "Restartable",
    "Route",
    "Sink",
]
