"""The messages between the parent process and its workers: small JSON documents, one per line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import get_args

import orjson

# From the parent process to a worker.


@dataclass(frozen=True, slots=True)
class EngineUp:
    """An engine is ready: this worker's addresses of it, and its processes. Generations count the engine's starts
    from 1."""

    generation: int
    addresses: Mapping[str, str]
    pids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine of that generation is dead."""

    generation: int


@dataclass(frozen=True, slots=True)
class EngineAbandoned:
    """No other engine will be started; `message` gives the reason in a sentence."""

    message: str


@dataclass(frozen=True, slots=True)
class PermitGranted:
    """Answers `AcquirePermit`."""

    permit_id: int


@dataclass(frozen=True, slots=True)
class PermitRefused:
    """Answers `AcquirePermit`: the server is full. `reason` is the label in the metric."""

    permit_id: int
    message: str
    reason: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class AbortClient:
    """Have the engine abort the requests of another worker, which has died."""

    client_index: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Admit nothing new; running requests may go on for `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Exit: all workers have drained."""


@dataclass(frozen=True, slots=True)
class ShutdownNow:
    """End every running request and exit."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A worker whose event loop turns answers with `Pong`."""


# From a worker to the parent process.


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """This worker serves on the engine of that generation: its model, and the fates of the requests that were in flight
    when the engine before it died, as in `RecoveryReport`."""

    generation: int
    model: str
    has_chat: bool
    continued: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    expelled: int = 0
    explained_deaths: int = 0
    """Engine deaths attributed to requests of this worker, which have failed for them."""


@dataclass(frozen=True, slots=True)
class EngineUnresponsive:
    """The engine of that generation does not answer this worker."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """This worker cannot serve; `message` gives the reason in a sentence."""

    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """No request runs in this worker, and none will."""


@dataclass(frozen=True, slots=True)
class WorkerClosed:
    """This worker exits; how many of its requests have ended by each cause."""

    endings: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AcquirePermit:
    """Requests `slots` slots. `permit_id` is the worker's own number for the permit."""

    permit_id: int
    slots: int


@dataclass(frozen=True, slots=True)
class ReleasePermit:
    """The permit is not needed any more, whether it has been granted or not."""

    permit_id: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers `Ping`."""


ParentMessage = (Ping | EngineUp | EngineLost | EngineAbandoned | PermitGranted | PermitRefused | AbortClient) | (
    Drain | Shutdown | ShutdownNow
)
WorkerMessage = (
    Pong | WorkerReady | EngineUnresponsive | WorkerFailed | WorkerDrained | WorkerClosed | AcquirePermit
) | ReleasePermit
Message = ParentMessage | WorkerMessage

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """The message as one line."""
    return orjson.dumps([type(message).__name__, asdict(message)]) + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line. Both processes run the same code, so a malformed line is a defect: the error of the JSON
    or of the constructor is raised as it is."""
    kind, fields = orjson.loads(line)
    return _KINDS[kind](**fields)
