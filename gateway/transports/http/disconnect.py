"""Ends a scope when the client disconnects."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from gateway.asgi import Receive, wait_disconnect
from gateway.domain import Cause
from gateway.errors import SluiceError
from gateway.streams.cancel_scope import CancelScope, ClientDisconnected


class DisconnectWatcher(AbstractAsyncContextManager["DisconnectWatcher"]):
    """A scope that is left with ClientDisconnected when the client disconnects, or by `disconnect`.

    `receive` gives the messages after the request's body. After `disarm` the client may leave: a response is complete
    with its last byte.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_disarmed = False
        self._scope = CancelScope()

    async def __aenter__(self) -> Self:
        self._scope.__enter__()
        self._watch = asyncio.get_running_loop().create_task(self._wait())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._watch.cancel()
        self._scope.__exit__(kind, error, stack)

    def disarm(self) -> None:
        """The last byte is about to be sent: a client that leaves misses nothing."""
        self._is_disarmed = True

    def disconnect(self, cause: Cause) -> None:
        """Give up a client that is still connected."""
        self._scope.end(ClientDisconnected(cause))

    async def _wait(self) -> None:
        try:
            await wait_disconnect(self._receive)
        except SluiceError as error:
            # Of a body that arrives meanwhile and is too large.
            self._scope.end(error)
            return
        if not self._is_disarmed:
            self._scope.end(ClientDisconnected())
