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
    stats = stream.writer.stats
    events = stream.writer.log.last
    return Status(stream.id, stream.status, stream.is_resumable, events, stats.prompt_tokens, stats.completion_tokens)


__all__ = ["Status", "status_of"]
