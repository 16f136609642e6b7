"""Which path is whose: the two completion endpoints, our small routes, and everything else to vLLM's app.

The completion endpoints are plain ASGI apps in front of FastAPI, so that nothing stands between a stream and its
socket. The OpenAPI document shows ours and vLLM's together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import asdict
from functools import partial
from typing import Any, Self

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from gateway.domain import AppOptions, Cause, Endpoint
from gateway.errors import ClientError, InternalError, MethodNotAllowed, NotFound, SluiceError
from gateway.streams.registry import NoRoute, Registry
from gateway.transports.common import request_options
from gateway.transports.http import content_type, docs, paths
from gateway.transports.http.disconnect import DisconnectWatcher
from gateway.transports.http.error_response import error_headers
from gateway.transports.http.middleware import EXCHANGE, Exchange
from gateway.transports.http.responses import Resume

STREAMS = "/v1/streams"


class Router:
    """Picks the app for a path."""

    def __init__(
        self,
        completions: dict[Endpoint, Any],
        resume: Resume,
        small: FastAPI,
        registry: Registry,
        options: Callable[[], AppOptions],
    ) -> None:
        self._completions: dict[str, Any] = {endpoint.value: app for endpoint, app in completions.items()}
        self._resume = resume
        self._management_app = small
        self._registry = registry
        self._options = options

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._management_app(scope, receive, send)
        elif scope["type"] != "http":
            # Nothing that vLLM serves over WebSockets is offered yet; before the handshake this is a 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                await self._http(scope, receive, send)
            except MethodNotAllowed as error:
                if scope[EXCHANGE].method != "OPTIONS":
                    raise
                headers = [(b"allow", error.allow.encode())]
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b""})

    async def _http(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if (app := self._completions.get(path)) is not None:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{path} takes POST, not {scope['method']}.", allowed={"POST"})
            content_type.check_json(scope["headers"])
            await app(scope, receive, send)
        elif path.endswith("/") and path != "/":
            await self._redirect_slash(scope, receive, send)
        elif (template := self._route_template(scope)) is not None:
            scope[EXCHANGE].stats.endpoint = template
            if scope["method"] == "GET" and template == STREAMS + "/{stream_id}" and not _wants_json(scope):
                await self._resume(scope, receive, send, path.removeprefix(STREAMS + "/"))
            else:
                await self._management_app(scope, receive, send)
        else:
            await self._serve_engine_app(scope, receive, send)

    async def _redirect_slash(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """A slash at the end leads to the path without it, as with vLLM, if there is one. It is not served as that,
        because rules of proxies are about the path without."""
        path = scope["path"][:-1]
        if path.endswith("/") or not (self._is_ours(path) or self._registry.is_known(path)):
            await self._serve_engine_app(scope, receive, send)
            return
        headers = [(b"location", paths.slashless_location(scope)), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _route_template(self, scope: MutableMapping[str, Any]) -> str | None:
        """The template of our small route for a request. Raises MethodNotAllowed if only other methods are taken."""
        allowed: set[str] = set()
        for route in self._management_app.routes:
            match = route.matches(scope)[0]
            if match is Match.FULL:
                return str(getattr(route, "path", "other"))
            if match is Match.PARTIAL:
                allowed |= getattr(route, "methods", None) or set()
        if allowed:
            raise MethodNotAllowed(f"{scope['path']} does not take {scope['method']}.", allowed=allowed)
        return None

    def _is_ours(self, path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path}
        small = any(route.matches(scope)[0] is not Match.NONE for route in self._management_app.routes)
        return path in self._completions or small

    def _is_known(self, path: str) -> bool:
        return self._is_ours(path) or self._registry.is_known(path)

    async def _serve_engine_app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """vLLM's own app, behind admission: whatever makes the engine work needs a permit first."""
        content_type.check_declared(scope["headers"])
        stats = scope[EXCHANGE].stats
        wished = request_options.read(stats.caller.headers)
        inbox = RequestMessages(receive)
        waiting = _BodyArrival(inbox)
        # Other bodies bring no grammars.
        read = inbox.body if _is_json(scope) else None
        try:
            async with self._registry.mounted(scope["method"], scope["path"], stats, wished, waiting, read) as engine:
                # A disconnect is watched for here, and ends the handler by `Task.cancel`. Starlette would watch for it
                # in a task group, whose cancellation passes over every task that is about to run: while tokens arrive
                # faster than they are formatted each stream is one at each try, and would run on without its client.
                scope = {**scope, "asgi": {**scope.get("asgi", {}), "spec_version": _NO_TASK_GROUP}}
                async with DisconnectWatcher(partial(inbox.wait_disconnect, scope[EXCHANGE])) as presence:
                    await engine.http(scope, inbox, partial(_answer, inbox, presence, send))
        except NoRoute:
            base = paths.base_url(scope, stats.caller.headers, self._options().root_path)
            raise NotFound(paths.not_found_message(scope["path"], base, self._is_known)) from None


# The first version of ASGI in which Starlette leaves the watch for a disconnect to the server.
_NO_TASK_GROUP = "2.4"


async def _answer(
    inbox: RequestMessages, presence: DisconnectWatcher, send: Any, message: MutableMapping[str, Any]
) -> None:
    """Send; with the last byte of an answer the client may leave."""
    if message["type"] == "http.response.start":
        inbox.stop_reading()
    elif not message.get("more_body", False):
        presence.disarm()
    await send(message)


class RequestMessages:
    """A request's messages. While it waits for its seat nobody wants them yet, but only they tell that the client has
    left; neither does anybody once the body has been read, or an answer has begun."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._peeked: deque[Any] = deque()
        self.body_complete = asyncio.Event()
        """Set when all of the body is here."""
        self._body_taken = asyncio.Event()
        self._client_left = asyncio.Event()

    async def peek(self) -> Any:
        """The next message, which will be given again."""
        message = await self._receive()
        self._peeked.append(message)
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.body_complete.set()
        return message

    def body(self) -> bytes:
        """What has come of the body; it will be given again."""
        return b"".join([one.get("body", b"") for one in self._peeked])

    def stop_reading(self) -> None:
        """Nobody wants what is left of the body."""
        self._body_taken.set()

    async def wait_disconnect(self, exchange: Exchange) -> Any:
        """The message that comes behind the body; marks the request of a client that has left before its end."""
        await self._body_taken.wait()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if not exchange.complete:
                # Work that its handler has begun elsewhere looks at this.
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


class _BodyArrival(DisconnectWatcher):
    """A presence whose scope begins when the body is complete: nobody holds a seat while it arrives."""

    def __init__(self, inbox: RequestMessages) -> None:
        super().__init__(inbox.peek)
        self._inbox = inbox

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self._inbox.body_complete.wait()
        except BaseException as error:
            # The scope has been entered as far as the client's leaving goes.
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self


def _is_json(scope: MutableMapping[str, Any]) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


def _wants_json(scope: MutableMapping[str, Any]) -> bool:
    """Whether somebody asks for a stream's status instead of its events: `Accept` names JSON and not SSE."""
    accept = b",".join([value for name, value in scope["headers"] if name == b"accept"])
    return b"application/json" in accept and b"text/event-stream" not in accept


def make_management_app(
    *,
    registry: Registry,
    health: APIRouter,
    engine_schema: Callable[[], dict[str, Any]],
    options: Callable[[], AppOptions],
    lifespan: Any,
    version: str,
) -> FastAPI:
    """Our small routes. `engine_schema` gives vLLM's OpenAPI document, or {} while there never was an engine."""
    app = FastAPI(title="Sluice", version=version, lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.include_router(health)
    app.include_router(_streams(registry))
    app.include_router(_models(registry, options, version))
    app.add_exception_handler(SluiceError, _sluice_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)

    # Plain functions run in a thread: making vLLM's document takes a second that streams must not wait for.
    def openapi() -> JSONResponse:
        docs.check_enabled(options())
        return JSONResponse(_document(app, engine_schema(), options().root_path))

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    docs.add(app, options)
    return app


def _models(registry: Registry, options: Callable[[], AppOptions], version: str) -> APIRouter:
    router = APIRouter()

    async def model(model_id: str) -> JSONResponse:
        """One of the models of `/v1/models`, by its name."""
        return JSONResponse(await registry.model_card(model_id))

    async def load() -> JSONResponse:
        """Requests in work or waiting; 0 without vLLM's `--enable-server-load-tracking`."""
        return JSONResponse({"server_load": registry.active if options().counts_load else 0})

    async def about(request: Request) -> JSONResponse:
        """What this is, and which base URLs clients need."""
        base = paths.base_url(request.scope, request.headers, options().root_path)
        urls = {"openai_base_url": base + "/v1", "anthropic_base_url": base, "docs": base + "/docs"}
        return JSONResponse({"name": "Sluice", "version": version, **urls})

    router.add_api_route("/v1/models/{model_id:path}", model, methods=["GET"], summary="One model")
    router.add_api_route("/load", load, methods=["GET"], summary="How many requests there are")
    router.add_api_route("/", about, methods=["GET"], summary="What this server is")
    return router


def _streams(registry: Registry) -> APIRouter:
    router = APIRouter(prefix=STREAMS, tags=["streams"])

    async def status(stream_id: str, request: Request) -> JSONResponse:
        """Resume or join a resumable stream as Server-Sent Events, after `Last-Event-ID` or `?starting_after=N`; with
        `Accept: application/json`, tell where it is instead. 204: everything has been read. 410: kept no longer."""
        return JSONResponse(asdict(registry.status(stream_id, request.scope[EXCHANGE].caller)))

    async def cancel(stream_id: str, request: Request) -> JSONResponse:
        """Cancel any live request of yours by the id that it carries; answers with its final status."""
        return JSONResponse(asdict(registry.cancel(stream_id, request.scope[EXCHANGE].caller)))

    router.add_api_route("/{stream_id}", status, methods=["GET"], summary="Resume a stream, or its status")
    router.add_api_route("/{stream_id}", cancel, methods=["DELETE"], summary="Cancel a request")
    router.add_api_route("/{stream_id}/cancel", cancel, methods=["POST"], summary="Cancel a request")
    return router


def _document(app: FastAPI, engine: dict[str, Any], root_path: str) -> dict[str, Any]:
    ours = get_openapi(title=app.title, version=app.version, routes=app.routes)
    shown = {**engine.get("paths", {}), **ours["paths"]}
    theirs = engine.get("components", {}).get("schemas", {})
    schemas = {**theirs, **ours.get("components", {}).get("schemas", {})}
    servers = {"servers": [{"url": root_path}]} if root_path else {}
    return {**ours, **servers, "paths": shown, "components": {"schemas": schemas}}


async def _sluice_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SluiceError)
    return JSONResponse(error.body(), status_code=error.status, headers=error_headers(error))


async def _defect(request: Request, error: Exception) -> JSONResponse:
    """Starlette raises it again after this answer; the guard logs it then."""
    return await _sluice_error(request, InternalError("The server failed to answer this request."))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return await _sluice_error(request, ClientError(str(error.detail)))


__all__ = ["Router", "make_management_app"]
