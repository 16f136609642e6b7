"""Chooses the app by the request's path: a completion endpoint, the management app, or vLLM's own app.

The completion endpoints are plain ASGI apps in front of FastAPI, so that no framework code runs between a stream and
its socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.routing import Match

from gateway.asgi import send_whole
from gateway.domain import AppOptions
from gateway.errors import MethodNotAllowed, NotFound
from gateway.protocols.base import StreamProtocol
from gateway.protocols.chat import CHAT
from gateway.protocols.completions import COMPLETIONS
from gateway.transports.http import content_type, paths
from gateway.transports.http.engine_app import EngineApp, NoRoute
from gateway.transports.http.management import STREAMS
from gateway.transports.http.middleware import EXCHANGE
from gateway.transports.http.stream_endpoints import ResumeEndpoint

STREAM_PROTOCOLS: Mapping[str, StreamProtocol] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
}
"""The endpoints whose streams are ours, by path."""


@dataclass(slots=True, eq=False)
class Router:
    """`streams` are the apps of the paths in `STREAM_PROTOCOLS`."""

    streams: Mapping[str, Any]
    resume: ResumeEndpoint
    management_app: FastAPI
    engine_app: EngineApp
    options: Callable[[], AppOptions]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.management_app(scope, receive, send)
        elif scope["type"] != "http":
            # vLLM's WebSocket endpoints are not offered yet. Before the handshake this is a 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                await self._http(scope, receive, send)
            except MethodNotAllowed as error:
                if scope[EXCHANGE].method != "OPTIONS":
                    raise
                await send_whole(send, 204, [(b"allow", error.allow.encode())])

    async def _http(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if (app := self.streams.get(path)) is not None:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{path} takes POST, not {scope['method']}.", allowed={"POST"})
            content_type.check_json(scope["headers"])
            await app(scope, receive, send)
        elif path.endswith("/") and path != "/":
            await self._redirect_slash(scope, receive, send)
        elif (template := self._route_template(scope)) is not None:
            scope[EXCHANGE].stats.endpoint = template
            if scope["method"] == "GET" and template == STREAMS + "/{stream_id}" and not _wants_json(scope):
                await self.resume(scope, receive, send, path.removeprefix(STREAMS + "/"))
            else:
                await self.management_app(scope, receive, send)
        else:
            await self._serve_engine_app(scope, receive, send)

    async def _redirect_slash(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Redirect a path with a trailing slash to the path without it, as vLLM does, if that exists. It is not served
        directly, because the rules of proxies name the path without the slash."""
        path = scope["path"][:-1]
        if path.endswith("/") or not self._is_known(path):
            await self._serve_engine_app(scope, receive, send)
            return
        await send_whole(send, 307, [(b"location", paths.slashless_location(scope)), (b"content-length", b"0")])

    def _route_template(self, scope: MutableMapping[str, Any]) -> str | None:
        """The path template of the management app's route. Raises MethodNotAllowed if only other methods match."""
        allowed: set[str] = set()
        for route in self.management_app.routes:
            match = route.matches(scope)[0]
            if match is Match.FULL:
                return str(getattr(route, "path", "other"))
            if match is Match.PARTIAL:
                allowed |= getattr(route, "methods", None) or set()
        if allowed:
            raise MethodNotAllowed(f"{scope['path']} does not take {scope['method']}.", allowed=allowed)
        return None

    def _is_known(self, path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path}
        is_managed = any(route.matches(scope)[0] is not Match.NONE for route in self.management_app.routes)
        return path in self.streams or is_managed or self.engine_app.has_path(path)

    async def _serve_engine_app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        try:
            await self.engine_app(scope, receive, send)
        except NoRoute:
            base = paths.base_url(scope, scope[EXCHANGE].caller.headers, self.options().root_path)
            raise NotFound(paths.not_found_message(scope["path"], base, self._is_known)) from None


def _wants_json(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is for a stream's status instead of its events: `Accept` names JSON and not SSE."""
    accept = b",".join([value for name, value in scope["headers"] if name == b"accept"])
    return b"application/json" in accept and b"text/event-stream" not in accept
