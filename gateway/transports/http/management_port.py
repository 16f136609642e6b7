"""Metrics and documents on a port of their own, so that no route to the main port can expose them to clients."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from gateway.errors import NotFound
from gateway.transports.http.access import PROBES

# Matched by the start of the path and with any white space: routers accept a trailing slash or line break, and vLLM's
# own app serves documents below these paths, too.
_PATH = re.compile(r"[/\s\x00-\x20]*(metrics|docs|redoc|openapi\.json)([/\s\x00-\x20].*)?", re.DOTALL)


class WithoutManagement:
    """The app of the main port: `app` without metrics and documents."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _PATH.fullmatch(scope["path"]):
            raise NotFound(f"There is nothing at {scope['path']}; it is on the management port.")
        await self._app(scope, receive, send)


class OnlyManagement:
    """The app of the management port: only the metrics, documents, health and version of `app`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path not in PROBES and path != "/version" and not _PATH.fullmatch(path):
                raise NotFound(f"There is nothing at {path} on the management port.")
        await self._app(scope, receive, send)
