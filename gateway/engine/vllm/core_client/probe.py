"""Sends the engine a small question about once a second, on the way that requests take: through the client's socket to
the engine's busy loop, and back with its outputs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

# A question costs the engine about as much as one token.
_EVERY_S = 1.0


class Probe:
    """At most one question is unanswered at a time."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], now_s: float) -> None:
        """`ask` sends the question and returns the answer: whether an operator has paused the engine."""
        self._ask = ask
        self._sent_s = now_s - _EVERY_S
        self._task: asyncio.Task[bool] | None = None
        self.is_paused = False
        """The newest answer."""

    def step(self, now_s: float) -> float | None:
        """Take an answer that has come, and send the question if it is time to. Returns when the unanswered question
        was sent, None if there is none."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            # Errors are reported elsewhere; the question to a dead engine is sent again.
            with suppress(Exception, asyncio.CancelledError):
                self.is_paused = task.result()
        if self._task is None and now_s - self._sent_s >= _EVERY_S:
            self._sent_s = now_s
            self._task = asyncio.ensure_future(self._ask())
        return None if self._task is None else self._sent_s

    def close(self) -> None:
        """Stop waiting for an answer."""
        if self._task is not None:
            self._task.cancel()
