"""A scope that can be ended from outside, with an error.

Unlike a scope of anyio's, it cancels its task once, so that code of vLLM's that swallows the cancellation can go on to
clean up.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from gateway.domain import Cause


class ClientDisconnected(Exception):
    """The client has left, or was given up for `cause`. Ends the exchange, and is not an error of the server."""

    def __init__(self, cause: Cause = Cause.DISCONNECTED) -> None:
        super().__init__(cause.value)
        self.cause = cause


class CancelScope:
    """Belongs to the task that enters it; `end` may be called from any code in the same loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._error: Exception | None = None
        self._outer_cancels = 0

    def end(self, error: Exception) -> None:
        """Stop the body at its next wait; the scope is left with `error`. After the scope, or a second time, this does
        nothing."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._outer_cancels = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._error is None or task is None:
            return
        # Where the task was cancelled from elsewhere, too, that cancellation goes first. A body that swallowed the
        # cancellation, as vLLM's handlers do, was stopped all the same.
        if task.uncancel() <= self._outer_cancels and (error is None or isinstance(error, asyncio.CancelledError)):
            raise self._error from None
