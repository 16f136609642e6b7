"""Ends a scope when the client disconnects."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from gateway.domain import Cause
from gateway.errors import SluiceError
from gateway.streams.cancel_scope import CancelScope, ClientDisconnected


class DisconnectWatcher(AbstractAsyncContextManager["DisconnectWatcher"]):
    """A scope that is left with Left as soon as the client has gone, or when it is dropped.

    The request's body must have been read before. `excuse` ends the watch: after the last byte of a response, a
    client may leave as it likes.
    """

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._excused = False
        self._cancel_scope = CancelScope()

    async def __aenter__(self) -> Self:
        self._cancel_scope.__enter__()
        self._watch = asyncio.get_running_loop().create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._watch.cancel()
        self._cancel_scope.__exit__(kind, error, stack)

    def disarm(self) -> None:
        """The last byte is on its way: nothing more will be sent that the client could miss."""
        self._excused = True

    def disconnect(self, cause: Cause) -> None:
        """Let go of a client that is still there."""
        self._cancel_scope.end(ClientDisconnected(cause))

    async def _listen(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except SluiceError as error:
            # Of a body that comes meanwhile and is too large.
            self._cancel_scope.end(error)
            return
        if not self._excused:
            self._cancel_scope.end(ClientDisconnected())


__all__ = ["DisconnectWatcher"]
