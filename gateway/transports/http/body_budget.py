"""Limits for request bodies: their memory in one process, and the time and rate of their arrival. Pure."""

from __future__ import annotations

from typing import Protocol

from gateway.errors import BodyTooSlow

# A body's rate is measured over this time, which is also the time that it has to begin.
WINDOW_S = 10.0
# Bodies up to this size are not counted: a client that fills the memory must not block small requests of others.
UNCOUNTED_BYTES = 64 * 2**10


class BodyReceiver(Protocol):
    """A connection whose request has a body."""

    @property
    def is_arriving(self) -> bool:
        """Whether the body is incomplete and still wanted."""

    def refuse_over_budget(self) -> None:
        """End the request and drop its body."""


class BodyBudget:
    """Counts the bytes of request bodies until their responses start, and refuses bodies when they exceed the limit.

    The body that has been arriving for the longest is refused first: a client that fills the memory with many slow
    bodies loses them, and other clients do not.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.peak_bytes = 0
        """The maximum of `used_bytes` since `reset_peak`."""
        self._held: dict[BodyReceiver, int] = {}

    def add(self, one: BodyReceiver, count: int) -> None:
        """Count `count` more bytes of `one`, which may itself be refused for them."""
        self._held[one] = self._held.get(one, 0) + count
        self.used_bytes += count
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        while self.used_bytes > self.limit_bytes:
            oldest = next((held for held in self._held if held.is_arriving), None)
            if oldest is None:
                return
            self.release(oldest)
            oldest.refuse_over_budget()

    def release(self, one: BodyReceiver) -> None:
        """Count the body of `one` no longer."""
        self.used_bytes -= self._held.pop(one, 0)

    def reset_peak(self) -> None:
        self.peak_bytes = self.used_bytes


class BodyDeadline:
    """The time limit and the minimum rate of one request's body."""

    def __init__(self, now_s: float, *, timeout_s: float, min_bytes_per_s: int) -> None:
        self._timeout_s = timeout_s
        self._min_bytes_per_s = min_bytes_per_s
        self._ends_s = now_s + timeout_s
        self._window_s = now_s
        self._window_bytes = 0

    @property
    def next_check_s(self) -> float:
        """The time of the next `check`."""
        return min(self._window_s + WINDOW_S, self._ends_s)

    def check(self, now_s: float, seen_bytes: int, *, paused: bool) -> BodyTooSlow | None:
        """The error of a body that is too slow, otherwise None. `paused`: this process does not read, so the client's
        time stands still."""
        passed_s = now_s - self._window_s
        if paused:
            self._ends_s += passed_s
        elif now_s >= self._ends_s:
            return BodyTooSlow(
                f"The request's body was not complete after {self._timeout_s:g} s (server.body_timeout_s)."
            )
        elif passed_s < WINDOW_S:
            return None
        elif seen_bytes - self._window_bytes < self._min_bytes_per_s * passed_s:
            return BodyTooSlow(
                f"The request's body came more slowly than {self._min_bytes_per_s} bytes a second "
                "(server.min_body_bytes_per_s)."
            )
        self._window_s, self._window_bytes = now_s, seen_bytes
        return None
