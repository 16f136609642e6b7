"""The public state of a request."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.streams.stream import Stream


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to a status or cancel request. `events` is the number of the newest event."""

    id: str
    status: str
    resumable: bool
    events: int
    prompt_tokens: int
    completion_tokens: int


def status_of(stream: Stream) -> Status:
    """The status of a stream."""
    stats = stream.stats
    return Status(
        id=stream.id,
        status=stream.status,
        resumable=stream.is_resumable,
        events=stream.last_event,
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.completion_tokens,
    )


__all__ = ["Status", "status_of"]
