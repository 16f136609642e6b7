"""What a client may ask for, and what is kept for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a client may ask for and on what is kept for it.

    Times in seconds; `prepare_timeout_s` is for checking a body. `max_bytes` is what one resumable stream may keep,
    `max_total_bytes` all of them together.
    """

    max_timeout_s: float
    max_grace_s: float
    retention_s: float
    max_bytes: int
    max_total_bytes: int
    prepare_timeout_s: float = 60.0


__all__ = ["Limits"]
