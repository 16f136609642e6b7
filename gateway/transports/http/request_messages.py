"""The ASGI messages of a request for vLLM's own app, which are read ahead to notice a disconnect."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Self

from gateway.domain import Cause
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.middleware import Exchange


class RequestMessages:
    """The `receive` of an ASGI app whose messages can be read ahead.

    While a request waits for its slot, and after its body has been read or a response has started, the app does not
    call `receive`, but the messages must still be read: only they show that the client has disconnected.
    """

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._peeked: deque[Any] = deque()
        self.body_complete = asyncio.Event()
        """Set when the whole body has arrived."""
        self._body_taken = asyncio.Event()
        self._client_left = asyncio.Event()

    async def peek(self) -> Any:
        """Read the next message ahead; the app will receive it, too."""
        message = await self._receive()
        self._peeked.append(message)
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.body_complete.set()
        return message

    def body(self) -> bytes:
        """The part of the body that has been read ahead; the app will receive it, too."""
        return b"".join([one.get("body", b"") for one in self._peeked])

    def stop_reading(self) -> None:
        """Let the app receive no more of the body."""
        self._body_taken.set()

    async def wait_disconnect(self, exchange: Exchange) -> Any:
        """The message behind the body. Ends the request's statistics if the client leaves before the response's end."""
        await self._body_taken.wait()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if not exchange.is_complete:
                # Work that the handler has started in other tasks checks this.
                exchange.stats.end(Cause.DISCONNECTED)
            self._client_left.set()
        return message

    async def __call__(self) -> Any:
        if self._body_taken.is_set():
            await self._client_left.wait()
            return {"type": "http.disconnect"}
        message = self._peeked.popleft() if self._peeked else await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left.set()
            self._body_taken.set()
        elif not message.get("more_body", False):
            self._body_taken.set()
        return message


class BodyArrival(DisconnectWatcher):
    """A disconnect watcher whose scope starts when the body is complete: no slot is held while the body arrives."""

    def __init__(self, messages: RequestMessages) -> None:
        super().__init__(messages.peek)
        self._messages = messages

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self._messages.body_complete.wait()
        except BaseException as error:
            # The watcher runs already.
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self
