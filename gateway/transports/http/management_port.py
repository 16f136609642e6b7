"""A port of its own for what operators read, so that no route to the other port can show it to clients."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from gateway.errors import NotFound
from gateway.transports.http.access import PROBES

# By what stands first in the path, however it is written: routers let a trailing slash or line break pass, and vLLM's
# own app has documents of its own below these.
_PATH = re.compile(r"[/\s\x00-\x20]*(metrics|docs|redoc|openapi\.json)([/\s\x00-\x20].*)?", re.DOTALL)


class WithoutManagement:
    """The app of the port for clients: `app` without metrics and documents."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _PATH.fullmatch(scope["path"]):
            raise NotFound(f"There is nothing at {scope['path']}; it is on the management port.")
        await self._app(scope, receive, send)


class OnlyManagement:
    """The app of the management port: of `app` only metrics, documents and health."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path not in PROBES and path != "/version" and not _PATH.fullmatch(path):
                raise NotFound(f"There is nothing at {path} on the management port.")
        await self._app(scope, receive, send)


__all__ = ["OnlyManagement", "WithoutManagement"]
