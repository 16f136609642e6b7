"""What the house and its workers say to each other: small JSON documents, one a line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import orjson

# From the house to a worker.


@dataclass(frozen=True, slots=True)
class Up:
    """An engine is ready; this is where this worker meets it. Generations count the engine's starts from 1."""

    generation: int
    addresses: Mapping[str, str]
    pids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine of that generation is dead."""

    generation: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """There will be no other engine; the sentence says why."""

    message: str


@dataclass(frozen=True, slots=True)
class Granted:
    """The seats that were asked for under that number."""

    ask: int


@dataclass(frozen=True, slots=True)
class Refused:
    """No seats: the server is full (`reason` as in the metric)."""

    ask: int
    message: str
    reason: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class Evict:
    """Another worker has died: have the engine abort its requests."""

    number: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new; what runs may go on for so long."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    """All have drained: go."""


@dataclass(frozen=True, slots=True)
class EndNow:
    """End whatever runs, and go."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that you live."""


# From a worker to the house.


@dataclass(frozen=True, slots=True)
class Ready:
    """This worker serves on the engine of that generation: what is served, and what became of its requests."""

    generation: int
    model: str
    chats: bool
    continued: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    expelled: int = 0
    explained: int = 0
    """Deaths of engines that are put down to requests of this worker, which have failed for them."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """The engine of that generation does not answer."""

    generation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """This worker cannot serve; the sentence says why."""

    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing runs here any more."""


@dataclass(frozen=True, slots=True)
class Closed:
    """This worker ends; how often its requests have ended in each way."""

    endings: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ask:
    """Seats, please; the answer carries the same number."""

    ask: int
    slots: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """What was asked for under that number is not wanted any more, whether it has been granted or not."""

    ask: int


@dataclass(frozen=True, slots=True)
class Pong:
    """I do."""


Order = Ping | Up | Lost | GivenUp | Granted | Refused | Evict | Drain | Leave | EndNow
Report = Pong | Ready | Complaint | Failed | Drained | Closed | Ask | GiveBack
Message = Order | Report

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        *(Ping, Up, Lost, GivenUp, Granted, Refused, Evict, Drain, Leave, EndNow),
        *(Pong, Ready, Complaint, Failed, Drained, Closed, Ask, GiveBack),
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
    "Ask",
    "Closed",
    "Complaint",
    "Drain",
    "Drained",
    "EndNow",
    "Evict",
    "Failed",
    "GiveBack",
    "GivenUp",
    "Granted",
    "Leave",
    "Lost",
    "Message",
    "Order",
    "Ping",
    "Pong",
    "Ready",
    "Refused",
    "Report",
    "Up",
    "decode",
    "encode",
]
