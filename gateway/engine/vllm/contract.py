"""vLLM's own app, held to our HTTP contract: errors leave as ours, streams carry the headers that keep proxies from
buffering them, and an aborted request ends as what it is.

The app itself is not touched; this stands between it and whoever calls it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson

from gateway.engine.base import ASGIApp
from gateway.engine.vllm import failures
from gateway.errors import ClientError, SluiceError

_STREAM_HEADERS = ((b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no"))
# vLLM prints pydantic's error entries as Python dictionaries; this is what a client needs of them.
_PROBLEM = re.compile(r"""'loc': '(?:body\.?)?([^']*)', 'msg': (?:'([^']*)'|"([^"]*)")""")


def keep(inner: ASGIApp, engine_error: Callable[[], SluiceError | None]) -> ASGIApp:
    """Put the contract around `inner`. `engine_error` tells whether the engine has died."""

    async def kept(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        outlet = _Outlet(send)
        try:
            await inner(scope, receive, outlet)
        except Exception as error:
            raise failures.known() or engine_error() or error from None
        if outlet.failed:
            raise outlet.error()

    return kept


class _Outlet:
    """Passes good responses on; holds bad ones back until they can be said in our words."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._start: MutableMapping[str, Any] = {}
        self._status = 0
        self._body = bytearray()

    @property
    def failed(self) -> bool:
        return self._status >= 400

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._start = message = {**message, "headers": _headers(message.get("headers", ()))}
        elif self.failed:
            self._body += message.get("body", b"")
        if not self.failed:
            await self._send(message)

    def error(self) -> SluiceError:
        """What was held back."""
        try:
            return self._error(orjson.loads(bytes(self._body)))
        except orjson.JSONDecodeError:
            return self._error({})

    def _error(self, document: Any) -> SluiceError:
        info = document.get("error") if isinstance(document, dict) else None
        if isinstance(info, dict):
            message, param = str(info.get("message") or ""), info.get("param")
        else:
            detail = document.get("detail") if isinstance(document, dict) else None
            message, param = detail if isinstance(detail, str) else "", None
        if (known := failures.known()) is not None:
            return known
        problems = _PROBLEM.findall(message)
        if problems:
            texts = [f"{field}: {plain or quoted}" if field else plain or quoted for field, plain, quoted in problems]
            return ClientError("; ".join(dict.fromkeys(texts[:3])), param=problems[0][0] or None)
        return failures.from_info(self._status, message or "The request cannot be served.", param)


def _headers(headers: Any) -> list[tuple[bytes, bytes]]:
    kept = list(headers)
    names = {name.lower() for name, _ in kept}
    if any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in kept):
        kept += [item for item in _STREAM_HEADERS if item[0] not in names]
    return kept


__all__ = ["keep"]
