"""The operator's own ASGI middleware, around the whole app."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import MutableMapping, Sequence
from functools import partial
from typing import Any

from starlette.middleware.base import BaseHTTPMiddleware

from gateway.asgi import DIRECT_SINK
from gateway.errors import SettingsError


def load(paths: Sequence[str]) -> list[Any]:
    """Import the classes and functions at those paths. Raises SettingsError for one that cannot be used."""
    found = []
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            one = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingsError(f"server.middleware: {path} cannot be imported ({error}).") from None
        if not inspect.isclass(one) and not inspect.iscoroutinefunction(one):
            raise SettingsError(
                f"server.middleware: {path} must be a class whose instances are ASGI apps around the app that it is "
                "given, or a coroutine function of a request and the next handler."
            )
        found.append(one)
    return found


def wrap(app: Any, middleware: Sequence[Any]) -> Any:
    """Wrap `app` in them; the last is the outermost, as under `vllm serve`."""
    if not middleware:
        return app
    for one in middleware:
        # A function costs Starlette's task and queue for each request, as in vLLM.
        make: Any = one if inspect.isclass(one) else partial(BaseHTTPMiddleware, dispatch=one)
        app = make(app)

    async def without_direct_writes(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        # Direct writes to the connection would bypass the middleware.
        await app({name: value for name, value in scope.items() if name != DIRECT_SINK}, receive, send)

    return without_direct_writes
