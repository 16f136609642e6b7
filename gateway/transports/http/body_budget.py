"""Request bodies: how many bytes of them one process holds at once, and how slowly one may arrive. Pure."""

from __future__ import annotations

from typing import Protocol

from gateway.errors import BodyTooSlow

# Over this time a body's rate is measured, so it is also how long one may take to begin.
WINDOW_S = 10.0
# Bodies up to this size are not counted: whoever fills the memory must not keep others from asking short questions.
UNCOUNTED_BYTES = 64 * 2**10


class BodyReceiver(Protocol):
    """A connection whose request has a body."""

    @property
    def is_arriving(self) -> bool:
        """Whether more of the body is to come."""

    def refuse_over_budget(self) -> None:
        """End the request; what has come of its body is needed no more."""


class BodyBudget:
    """Counts what the bodies of requests weigh until they are answered, and makes room when it is too much.

    The body that has been arriving for the longest goes first. A client that fills the memory with many slow ones so
    loses them, and not one who sends a body meanwhile.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.peak_bytes = 0
        """The most that was held since `reset_peak`."""
        self._held: dict[BodyReceiver, int] = {}

    def add(self, one: BodyReceiver, count: int) -> None:
        """So many bytes more are held for `one`; it may be among those that are refused for it."""
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
        """Its body is held no more."""
        self.used_bytes -= self._held.pop(one, 0)

    def reset_peak(self) -> None:
        """Begin to look for the most anew."""
        self.peak_bytes = self.used_bytes


class BodyDeadline:
    """When the body of one request has to be there, and how fast it must come until then."""

    def __init__(self, now_s: float, *, timeout_s: float, min_bytes_per_s: int) -> None:
        self._timeout_s = timeout_s
        self._min_bytes_per_s = min_bytes_per_s
        self._ends_s = now_s + timeout_s
        self._window_s = now_s
        self._window_bytes = 0

    @property
    def next_check_s(self) -> float:
        """When to look again."""
        return min(self._window_s + WINDOW_S, self._ends_s)

    def check(self, now_s: float, seen_bytes: int, *, paused: bool) -> BodyTooSlow | None:
        """Why the body is too slow, None if it is not. `paused`: it is we who do not read, so the client's time stands
        still."""
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


__all__ = ["UNCOUNTED_BYTES", "WINDOW_S", "BodyBudget", "BodyDeadline", "BodyReceiver"]
