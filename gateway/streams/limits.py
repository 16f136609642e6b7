"""Bounds on requests and on retained streams."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.domain import RequestOptions


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds; `prepare_timeout_s` is for checking a body. `max_bytes` is the size of the events that one
    resumable stream may retain, `max_total_bytes` that of all of them together.
    """

    max_timeout_s: float
    max_grace_s: float
    retention_s: float
    max_bytes: int
    max_total_bytes: int
    prepare_timeout_s: float = 60.0

    def timeout_s(self, options: RequestOptions) -> float:
        """The deadline of a request, from its first byte on."""
        return self.max_timeout_s if options.timeout_s is None else min(options.timeout_s, self.max_timeout_s)

    def grace_s(self, options: RequestOptions) -> float | None:
        """How long a request goes on without a reader; None: not at all."""
        return None if options.grace_s is None else min(options.grace_s, self.max_grace_s)
