"""The engine's own HTTP app, behind admission: engine work needs a permit first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self

from gateway.asgi import Receive
from gateway.domain import Caller, Cause, RequestStats
from gateway.engine.base import Engine, Route
from gateway.errors import Forbidden, MethodNotAllowed, NotFound
from gateway.streams.engine_app import EngineAppAdmission
from gateway.transports.common import request_options
from gateway.transports.http import content_type
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.middleware import EXCHANGE, Exchange

# The first version of ASGI in which Starlette leaves the watch for a disconnect to the server.
_NO_TASK_GROUP = "2.4"


class NoRoute(NotFound):
    """The engine's app has nothing at that path."""


class EngineApp:
    """The ASGI app for every path that is not ours."""

    def __init__(self, admission: EngineAppAdmission) -> None:
        self._admission = admission

    def has_path(self, path: str) -> bool:
        """Whether the engine's app has anything at that path. Raises why there is no engine."""
        return self._admission.engine.route("", path) is not Route.UNKNOWN

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Any) -> None:
        content_type.check_declared(scope["headers"])
        exchange: Exchange = scope[EXCHANGE]
        stats, path = exchange.stats, scope["path"]
        options = request_options.read(stats.caller.headers)
        route = _route(self._admission.engine, scope["method"], path, stats.caller)
        stats.endpoint = self._admission.engine.template(path)
        stats.uses_engine = route is Route.USES_ENGINE
        messages = RequestMessages(receive)
        async with AsyncExitStack() as stack:
            if not stats.uses_engine and scope["method"] == "GET":
                engine = self._admission.admit_light()
            else:
                # Bodies of other types bring no grammars.
                check = partial(_check_body, messages, path, stats) if _is_json(scope) else None
                engine = await stack.enter_async_context(
                    self._admission.admit(stats, options, BodyArrival(messages), check)
                )
            # A disconnect ends the handler by `Task.cancel`. Starlette would watch for it in a task group, whose
            # cancellation passes over every task that is about to run: while tokens arrive faster than they are
            # formatted each stream is one at each try, and would run on without its client.
            scope = {**scope, "asgi": {**scope.get("asgi", {}), "spec_version": _NO_TASK_GROUP}}
            async with DisconnectWatcher(partial(messages.wait_disconnect, exchange)) as watcher:
                await engine.http(scope, messages, partial(_send, messages, watcher, send))


def _route(engine: Engine, method: str, path: str, caller: Caller) -> Route:
    """The route of a request that may be admitted."""
    route = engine.route(method, path)
    if route is Route.UNKNOWN:
        raise NoRoute(f"There is nothing at {path}.")
    if route is Route.WRONG_METHOD:
        raise MethodNotAllowed(f"{path} does not take {method}.", allowed=engine.methods(path))
    if route is Route.OPERATOR:
        check_operator(path, caller)
    return route


def check_operator(path: str, caller: Caller) -> None:
    """Raises Forbidden, with how to become an operator, if the caller is none."""
    if caller.is_operator:
        return
    if caller.owner is None:
        raise Forbidden(
            f"{path} runs this server and is off, because there are no API keys that would tell its operators from "
            "others. Give operators a key (`sluice key new --operator NAME`, server.api_keys_file), or set "
            "server.operator_endpoints."
        )
    raise Forbidden(f"{path} runs this server and takes an operator's key (`sluice key new --operator NAME`).")


async def _check_body(messages: RequestMessages, path: str, stats: RequestStats, engine: Engine) -> None:
    await engine.check_body(path, messages.body(), stats)


async def _send(
    messages: RequestMessages, watcher: DisconnectWatcher, send: Any, message: MutableMapping[str, Any]
) -> None:
    if message["type"] == "http.response.start":
        messages.stop_reading()
    elif not message.get("more_body", False):
        watcher.disarm()
    await send(message)


def _is_json(scope: MutableMapping[str, Any]) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


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
