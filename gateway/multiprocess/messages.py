"""What the house and its workers say to each other: small JSON documents, one a line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import orjson

# From the house to a worker.


@dataclass(frozen=True, slots=True)
class EngineUp:
    """An engine is ready; this is where this worker meets it. Generations count the engine's starts from 1."""

    generation: int
    addresses: Mapping[str, str]
    pids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine of that generation is dead."""

    generation: int


@dataclass(frozen=True, slots=True)
class EngineAbandoned:
    """There will be no other engine; the sentence says why."""

    message: str


@dataclass(frozen=True, slots=True)
class PermitGranted:
    """The seats that were asked for under that number."""

    permit_id: int


@dataclass(frozen=True, slots=True)
class PermitRefused:
    """No seats: the server is full (`reason` as in the metric)."""

    permit_id: int
    message: str
    reason: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class AbortClient:
    """Another worker has died: have the engine abort its requests."""

    client_index: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new; what runs may go on for so long."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Shutdown:
    """All have drained: go."""


@dataclass(frozen=True, slots=True)
class ShutdownNow:
    """End whatever runs, and go."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that you live."""


# From a worker to the house.


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """This worker serves on the engine of that generation: what is served, and what became of its requests."""

    generation: int
    model: str
    has_chat: bool
    continued: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    expelled: int = 0
    explained_deaths: int = 0
    """Deaths of engines that are put down to requests of this worker, which have failed for them."""


@dataclass(frozen=True, slots=True)
class EngineUnresponsive:
    """The engine of that generation does not answer."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """This worker cannot serve; the sentence says why."""

    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """Nothing runs here any more."""


@dataclass(frozen=True, slots=True)
class WorkerClosed:
    """This worker ends; how often its requests have ended in each way."""

    endings: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AcquirePermit:
    """Seats, please; the answer carries the same number."""

    permit_id: int
    slots: int


@dataclass(frozen=True, slots=True)
class ReleasePermit:
    """What was asked for under that number is not wanted any more, whether it has been granted or not."""

    permit_id: int


@dataclass(frozen=True, slots=True)
class Pong:
    """I do."""


ParentMessage = (
    Ping
    | EngineUp
    | EngineLost
    | EngineAbandoned
    | PermitGranted
    | PermitRefused
    | AbortClient
    | Drain
    | Shutdown
    | ShutdownNow
)
WorkerMessage = (
    Pong
    | WorkerReady
    | EngineUnresponsive
    | WorkerFailed
    | WorkerDrained
    | WorkerClosed
    | AcquirePermit
    | ReleasePermit
)
Message = ParentMessage | WorkerMessage

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        *(
            Ping,
            EngineUp,
            EngineLost,
            EngineAbandoned,
            PermitGranted,
            PermitRefused,
            AbortClient,
            Drain,
            Shutdown,
            ShutdownNow,
        ),
        *(
            Pong,
            WorkerReady,
            EngineUnresponsive,
            WorkerFailed,
            WorkerDrained,
            WorkerClosed,
            AcquirePermit,
            ReleasePermit,
        ),
    )
}


def encode(message: Message) -> bytes:
    """One line."""
    return orjson.dumps([type(message).__name__, asdict(message)]) + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line. Both ends run the same code, so anything else is a defect and raises what it raises."""
    kind, fields = orjson.loads(line)
    return _KINDS[kind](**fields)


__all__ = [
    "AbortClient",
    "AcquirePermit",
    "Drain",
    "EngineAbandoned",
    "EngineLost",
    "EngineUnresponsive",
    "EngineUp",
    "Message",
    "ParentMessage",
    "PermitGranted",
    "PermitRefused",
    "Ping",
    "Pong",
    "ReleasePermit",
    "Shutdown",
    "ShutdownNow",
    "WorkerClosed",
    "WorkerDrained",
    "WorkerFailed",
    "WorkerMessage",
    "WorkerReady",
    "decode",
    "encode",
]
