"""What clients are told about a request."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.streams.stream import Stream


@dataclass(frozen=True, slots=True)
class Status:
    """What `DELETE` and `GET` tell about a request. `events` is the number of the newest event."""

    id: str
    status: str
    resumable: bool
    events: int
    prompt_tokens: int
    completion_tokens: int


def status_of(stream: Stream) -> Status:
    """The status of a stream."""
    tally = stream.producer.tally
    events = stream.producer.log.last
    return Status(stream.id, stream.status, stream.resumable, events, tally.prompt_tokens, tally.completion_tokens)


__all__ = ["Status", "status_of"]
