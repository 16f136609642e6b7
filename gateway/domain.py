"""Plain data that crosses packages: frozen and slotted, except `RequestStats`, the running count of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol


class Endpoint(StrEnum):
    """An endpoint whose streams are ours. Its path belongs to the router of a transport."""

    CHAT = "chat"
    COMPLETION = "completion"

    @property
    def id_prefix(self) -> str:
        """The beginning of its answers' ids."""
        return "chatcmpl-" if self is Endpoint.CHAT else "cmpl-"


class Cause(StrEnum):
    """Why a request ended: the `cause` label of `sluice_ended_total`. Where a client gets an error, its code is the
    same, except for the two `REFUSED_...`: those requests were not submitted to the engine, so nothing was cut."""

    COMPLETED = "completed"
    REJECTED = "rejected"
    REFUSED_UNREADY = "refused_unready"
    REFUSED_DRAINING = "refused_draining"
    DISCONNECTED = "disconnected"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ENGINE_FAILED = "engine_failed"
    SERVER_DRAINING = "server_draining"
    CLIENT_STALLED = "client_stalled"
    OVERLOADED = "overloaded"
    INTERNAL_ERROR = "internal_error"


class Delta(NamedTuple):
    """An addition to one choice: text, its number of tokens, and why the choice ended, if it did.

    A tuple, because there is one per token, and a frozen dataclass takes three times as long to make.
    """

    text: str
    tokens: int
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A JSON document that the engine has formatted: one stream chunk, or a whole response."""

    payload: bytes


OutputPart = Delta | Chunk


@dataclass(frozen=True, slots=True)
class ChunkTemplate:
    """The parts that all chunks of one plain stream share; with it, a `Delta` becomes the chunk that vLLM would send.

    `role` is the role of a chat's first chunk (None for text completions), `created` is in Unix seconds. `drop_empty`:
    tokens that add no text get no chunk, as behind a tool parser of vLLM's without a tool call. `choice_nulls` and
    `chunk_nulls` name the fields with which this release of vLLM ends choices and chunks, and that are null in a plain
    stream; a chat's choices have theirs only in the chunk that finishes them.
    """

    id: str
    created: int
    model: str
    role: str | None
    fingerprint: str | None
    include_usage: bool
    continuous_usage: bool
    drop_empty: bool
    prompt_tokens: int
    choice_nulls: tuple[str, ...] = ()
    chunk_nulls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of a request, and when the first byte of the request came.

    `owner` is the name of the API key, None where keys are off. `arrival_s` is monotonic (for durations),
    `arrival_wall_s` Unix time (for vLLM's own statistics). `headers` have names in lower case. `is_operator`: whether
    this caller may use the endpoints that run the server rather than the model.
    """

    owner: str | None
    request_id: str
    arrival_s: float
    arrival_wall_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    is_operator: bool = False

    def left_s(self, timeout_s: float, now_s: float) -> float:
        """Seconds from `now_s` to a deadline that is `timeout_s` after the arrival."""
        return max(0.0, timeout_s - (now_s - self.arrival_s))


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of one request, in seconds; None where the client sets none.

    `timeout_s` is the deadline from arrival to the last token; `grace_s` is how long to go on without a reader.
    """

    timeout_s: float | None = None
    grace_s: float | None = None


@dataclass(frozen=True, slots=True)
class AppOptions:
    """Settings of the engine's own HTTP app that apply to our paths, too.

    `root_path` is a prefix that paths may have; `has_docs`: whether the API is described at `/docs` and
    `/openapi.json`; `counts_load`: whether `/load` counts requests.
    """

    root_path: str = ""
    has_docs: bool = True
    counts_load: bool = False


class Instrumentation(Protocol):
    """Reports for metrics. Only `gateway.metrics`, which implements it, uses the library for metrics."""

    def waited(self, seconds: float) -> None:
        """A request was admitted after that time in the queue."""

    def rejected(self, reason: str) -> None:
        """A request was refused."""

    def overhead(self, seconds: float) -> None:
        """The time that a request spent in the gateway itself."""

    def first_token(self, seconds: float) -> None:
        """The time from the first byte of a request to the write of its first token."""

    def token_gap(self, seconds: float) -> None:
        """The time between two engine outputs of one request."""

    def merged(self, deltas: int) -> None:
        """That number of deltas was merged into others, because their reader was late."""

    def ended(self, cause: Cause, wasted_tokens: int) -> None:
        """A request ended; `wasted_tokens` reached no client."""

    def used(self, tenant: str, cause: Cause, prompt_tokens: int, completion_tokens: int) -> None:
        """The usage of a request that ended."""

    def resumed(self, result: str) -> None:
        """A client resumed a stream, or failed to."""

    def recovered(self, result: str, streams: int) -> None:
        """That number of requests went on after their engine's death, or did not."""

    def restarted(self) -> None:
        """A new engine has replaced a dead one."""

    def served(self, endpoint: str, outcome: str, seconds: float) -> None:
        """An HTTP exchange ended."""

    def loop_lag(self, seconds: float) -> None:
        """A timer of the event loop was late by that time."""


@dataclass(slots=True)
class RequestStats:
    """The running count of one request. Times are monotonic seconds; None means that it has not happened."""

    caller: Caller
    instrumentation: Instrumentation
    endpoint: str = "other"
    """The template of the path, for a metric label: clients choose paths freely, and a label stays for ever."""
    uses_engine: bool = False
    """Whether the request needs engine work; only the endings of such requests are reported."""
    submitted: bool = False
    """Whether the engine has the request. Until then it has cost nothing and may be sent to another server."""
    id: str | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queued_s: float | None = None
    first_token_s: float | None = None
    is_first_token_sent: bool = False
    last_token_s: float | None = None
    cause: Cause | None = None
    is_fatal: bool = False
    """Whether engines have died of this request."""
    is_resumable: bool = False
    """Whether the request may go on when its exchange is over."""
    on_end: Callable[[RequestStats], object] | None = None
    """Called once, by `end`."""

    def end(self, cause: Cause) -> None:
        """Record why the request ended. The first cause stays."""
        if self.cause is None:
            self.cause = cause
            if self.on_end is not None:
                self.on_end(self)

    def add_tokens(self, tokens: int, now_s: float | None) -> None:
        """Count `tokens` new tokens that arrived together at `now_s`; None for a whole answer, whose arrival does not
        measure latency."""
        if tokens <= 0:
            return
        self.completion_tokens += tokens
        if now_s is None:
            return
        if self.last_token_s is None:
            self.first_token_s = now_s
        else:
            self.instrumentation.token_gap(now_s - self.last_token_s)
        self.last_token_s = now_s
