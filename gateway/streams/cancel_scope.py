"""A scope that others can end: whoever holds the leash pulls it, and the scope's body stops with the error given."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from gateway.domain import Cause


class ClientDisconnected(Exception):
    """The reader is gone, by itself or because we had to let go of it. Ends the exchange, is nobody's error."""

    def __init__(self, cause: Cause = Cause.DISCONNECTED) -> None:
        super().__init__(cause.value)
        self.cause = cause


class CancelScope:
    """Held by the task that enters it; `end` may be called by anybody, once, from the same loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._error: Exception | None = None
        self._cancels = 0

    def end(self, error: Exception) -> None:
        """Stop the body at its next wait; the scope is left with `error`. Afterwards, or a second time: nothing."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancels = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._error is None or task is None:
            return
        # uncancel tells whether somebody else wants the task to end, too; then that goes first. A body that swallowed
        # the cancellation (vLLM's handlers do) has been stopped all the same.
        if task.uncancel() <= self._cancels and (error is None or isinstance(error, asyncio.CancelledError)):
            raise self._error from None


__all__ = ["CancelScope", "ClientDisconnected"]
