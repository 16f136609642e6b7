"""A wrapper that holds vLLM's own app to our HTTP contract: error responses become errors of ours, streams carry the
headers that keep proxies from buffering them, and an aborted request ends with the reason of the abort.

The app itself stays unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson

from gateway.asgi import ASGIApp
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm import error_mapping
from gateway.engine.vllm.bounded_validation import field_path
from gateway.engine.vllm.http_app import stream_errors
from gateway.errors import ClientError, SluiceError

_STREAM_HEADERS = ((b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no"))
_ID = re.compile(rb'"id": ?"([A-Za-z0-9_.-]{1,128})"')
# vLLM prints pydantic's error entries as Python dictionaries; these are the parts for a client.
_PROBLEM = re.compile(r"""'loc': '(?:body\.?)?([^']*)', 'msg': (?:'([^']*)'|"([^"]*)")""")
# In other places it prints pydantic's own text: an optional line with the field, then a line with the problem.
_PYDANTIC = re.compile(r"\d+ validation errors? for ")
_PYDANTIC_PROBLEM = re.compile(r"\n(?:(\S[^\n]*)\n)?  (?! )(?:Value error, )?([^\n]*?)(?: \[type=[^\n]*)?(?=\n|$)")

# The engine's reason to refuse an adapter is for the client, but vLLM reports it as an internal error.
_ADAPTERS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_ADAPTER_REFUSED = re.compile(r"Call to \w+ method failed: ")


def normalize_errors(inner: ASGIApp, engine_error: Callable[[], SluiceError | None]) -> ASGIApp:
    """`inner` within the contract. `engine_error` returns the error of a dead engine, or None."""

    async def http(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        response = _Response(send, scope.get("path", ""))
        try:
            await inner(scope, receive, response)
        except Exception as error:
            raise error_mapping.current_error() or engine_error() or stream_errors.from_exception(error) from None
        if response.is_error:
            raise response.error()

    return http


class _Response:
    """An ASGI `send` that passes successful responses on and keeps the body of an error, for `error` to translate."""

    def __init__(self, send: Any, path: str) -> None:
        self._send = send
        self._path = path
        self._start: MutableMapping[str, Any] = {}
        self._status = 0
        self._body = bytearray()
        self._is_start_pending = False

    @property
    def is_error(self) -> bool:
        return self._status >= 400

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", ()))
            self._start = {**message, "headers": headers}
            if _is_stream(headers):
                names = {name.lower() for name, _ in headers}
                headers += [item for item in _STREAM_HEADERS if item[0] not in names]
                stats = CURRENT_STATS.get()
                # The id is in the first event, which vLLM sends at once.
                self._is_start_pending = stats is not None and stats.id is None and stats.endpoint == "/v1/responses"
            if not self.is_error and not self._is_start_pending:
                await self._send_start()
        elif self.is_error:
            self._body += message.get("body", b"")
        else:
            if self._is_start_pending:
                self._is_start_pending = False
                await self._send_start(message.get("body", b""))
            await self._send(message)

    async def _send_start(self, first: bytes = b"") -> None:
        """Send the status and headers, with the id by which a stream can be cancelled; `first` is the first event."""
        stats = CURRENT_STATS.get()
        if stats is not None:
            if stats.id is None and (found := _ID.search(first)) is not None:
                stats.id = found[1].decode()
            if stats.id is not None and stats.uses_engine and _is_stream(self._start["headers"]):
                self._start["headers"].append((b"x-stream-id", stats.id.encode("ascii", "replace")))
        await self._send(self._start)

    def error(self) -> SluiceError:
        """The error response, as an error of ours."""
        if (known := error_mapping.current_error()) is not None:
            return known
        try:
            document = orjson.loads(bytes(self._body))
        except orjson.JSONDecodeError:
            document = None
        fields = document if isinstance(document, dict) else {}
        info, detail = fields.get("error"), fields.get("detail")
        if isinstance(info, dict):
            message, param = str(info.get("message") or ""), info.get("param")
        else:
            message, param = detail if isinstance(detail, str) else "", None
        problems = _PROBLEM.findall(message)
        if not problems and _PYDANTIC.match(message):
            problems = [(_field(loc), text, "") for loc, text in _PYDANTIC_PROBLEM.findall(message)]
        if problems:
            texts = [f"{field}: {plain or quoted}" if field else plain or quoted for field, plain, quoted in problems]
            return ClientError("; ".join(dict.fromkeys(texts[:3])), param=problems[0][0] or None)
        if self._path in _ADAPTERS and (refused := _ADAPTER_REFUSED.match(message)) is not None:
            return ClientError(message[refused.end() :], param="lora_path")
        return error_mapping.from_info(self._status, message or "The request cannot be served.", param)


def _field(loc: str) -> str:
    return field_path(tuple(int(part) if part.isdigit() else part for part in loc.split("."))) if loc else ""


def _is_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
