"""Which path is whose: the two completion endpoints, our small routes, and everything else to vLLM's app.

The completion endpoints are plain ASGI apps in front of FastAPI, so that nothing stands between a stream and its
socket. The OpenAPI document shows ours and vLLM's together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Match

from gateway.errors import ClientError, InternalError, MethodNotAllowed, SluiceError
from gateway.model import Endpoint
from gateway.streams.registry import Registry
from gateway.web.guard import EXCHANGE, error_headers
from gateway.web.respond import Presence, Resume
from gateway.wire import wishes

STREAMS = "/v1/streams"


class Dispatch:
    """Picks the app for a path."""

    def __init__(self, completions: dict[Endpoint, Any], resume: Resume, small: FastAPI, registry: Registry) -> None:
        self._completions: dict[str, Any] = {endpoint.value: app for endpoint, app in completions.items()}
        self._resume = resume
        self._small = small
        self._registry = registry

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._small(scope, receive, send)
        elif scope["type"] != "http":
            # Nothing that vLLM serves over WebSockets is offered yet; before the handshake this is a 403.
            await send({"type": "websocket.close", "code": 1008})
        elif (app := self._completions.get(scope["path"])) is not None:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['path']} takes POST, not {scope['method']}.")
            await app(scope, receive, send)
        elif (template := self._template(scope)) is not None:
            scope[EXCHANGE].tally.endpoint = template
            if scope["method"] == "GET" and template == STREAMS + "/{stream_id}" and not _wants_json(scope):
                await self._resume(scope, receive, send, scope["path"].removeprefix(STREAMS + "/"))
            else:
                await self._small(scope, receive, send)
        else:
            await self._mounted(scope, receive, send)

    def _template(self, scope: MutableMapping[str, Any]) -> str | None:
        for route in self._small.routes:
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", "other"))
        return None

    async def _mounted(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """vLLM's own app, behind admission: whatever makes the engine work needs a permit first."""
        tally = scope[EXCHANGE].tally
        wished = wishes.read(tally.caller.headers)
        inbox = _Inbox(receive)
        waiting = Presence(inbox.ahead)
        async with self._registry.mounted(scope["method"], scope["path"], tally, wished, waiting) as engine:
            await engine.http(scope, inbox, send)


class _Inbox:
    """A request's messages. While it waits for its seat nobody wants them yet, but only they tell that the client has
    left."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._kept: deque[Any] = deque()

    async def ahead(self) -> Any:
        """The next message, which will be given again."""
        self._kept.append(await self._receive())
        return self._kept[-1]

    async def __call__(self) -> Any:
        return self._kept.popleft() if self._kept else await self._receive()


def _wants_json(scope: MutableMapping[str, Any]) -> bool:
    """Whether somebody asks for a stream's status instead of its events: `Accept` names JSON and not SSE."""
    accept = b",".join([value for name, value in scope["headers"] if name == b"accept"])
    return b"application/json" in accept and b"text/event-stream" not in accept


def make_small(
    *, registry: Registry, health: APIRouter, engine_schema: Callable[[], dict[str, Any]], lifespan: Any, version: str
) -> FastAPI:
    """Our small routes. `engine_schema` gives vLLM's OpenAPI document, or {} while there is no engine."""
    app = FastAPI(title="Sluice", version=version, lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.include_router(health)
    app.include_router(_streams(registry))
    app.add_exception_handler(SluiceError, _sluice_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)

    # Plain functions run in a thread: making vLLM's document takes a second that streams must not wait for.
    def openapi() -> JSONResponse:
        return JSONResponse(_document(app, engine_schema()))

    def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/openapi.json", title="Sluice")

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)
    return app


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


def _document(app: FastAPI, engine: dict[str, Any]) -> dict[str, Any]:
    ours = get_openapi(title=app.title, version=app.version, routes=app.routes)
    paths = {**engine.get("paths", {}), **ours["paths"]}
    theirs = engine.get("components", {}).get("schemas", {})
    schemas = {**theirs, **ours.get("components", {}).get("schemas", {})}
    return {**ours, "paths": paths, "components": {"schemas": schemas}}


async def _sluice_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SluiceError)
    return JSONResponse(error.body(), status_code=error.status, headers=error_headers(error))


async def _defect(request: Request, error: Exception) -> JSONResponse:
    """Starlette raises it again after this answer; the guard logs it then."""
    return await _sluice_error(request, InternalError("The server failed to answer this request."))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What the router itself has to say about our small routes is that the method is wrong."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return await _sluice_error(request, MethodNotAllowed(f"{request.url.path} does not take {request.method}."))
    return await _sluice_error(request, ClientError(str(error.detail)))


__all__ = ["Dispatch", "make_small"]
