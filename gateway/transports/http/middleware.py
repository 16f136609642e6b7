"""The first and last code of every request: request id, access, body size; the place where errors become responses; and
the account at the end.

Pure ASGI: a middleware framework would cost memory and a task per stream, and hide disconnects.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, MutableMapping, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from gateway.asgi import ARRIVAL, DIRECT_SINK, send_whole
from gateway.bounded_text import log_defect
from gateway.clock import Clock
from gateway.domain import Caller, Cause, Instrumentation, RequestStats
from gateway.errors import (
    BodyTooLarge,
    InternalError,
    Overloaded,
    SluiceError,
    cause_of,
    clear_tracebacks,
    is_anthropic,
    status_of,
)
from gateway.protocols.json_text import escaped
from gateway.streams.cancel_scope import ClientDisconnected
from gateway.transports.common import accounting
from gateway.transports.http import paths
from gateway.transports.http.access import PROBES, Access, Verdict
from gateway.transports.http.error_response import error_response

logger = logging.getLogger(__name__)

_QUIET_PATHS = PROBES | {"/metrics"}
# Other paths that clients poll.
_POLLED = frozenset({"/v1/models", "/load", "/version", "/"})
# Response headers that only this middleware sets.
_OURS = frozenset({b"x-request-id", b"request-id"})
# Safe to echo into a header and a log line.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
EXCHANGE = "sluice.exchange"


@dataclass(slots=True)
class Exchange:
    """One request and its response."""

    caller: Caller
    stats: RequestStats
    path: str
    method: str
    """HEAD is GET for the app; `_TrackedSend` drops the body."""
    status: int = 0
    is_complete: bool = False
    is_disconnected: bool = False
    failure: Cause | None = None


@dataclass(slots=True, eq=False)
class Middleware:
    """The outermost ASGI app. `is_closing`: whether the server is about to stop, so that no connection should be used
    again."""

    app: Any
    _: KW_ONLY
    access: Access
    max_body_bytes: int
    is_closing: Callable[[], bool]
    clock: Clock
    instrumentation: Instrumentation

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket" and self.access.judge(scope).refusal is not None:
            # Before the handshake is accepted, a close is answered with 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        verdict = self.access.judge(scope)
        exchange = self._exchange(scope, verdict)
        if exchange.method == "HEAD":
            # A copy: the server reads its own.
            scope = {**scope, "method": "GET"}
        scope[EXCHANGE] = exchange
        tracked_send = _TrackedSend(exchange, send, self.is_closing)
        try:
            paths.check(scope)
            if verdict.refusal is not None:
                raise verdict.refusal
            limited_receive = _LimitedReceive(receive, self.max_body_bytes, scope, tracked_send, self.instrumentation)
            await self.app(scope, limited_receive, tracked_send)
            if tracked_send.refusal is not None:
                raise tracked_send.refusal
        except ClientDisconnected as left:
            exchange.is_disconnected = True
            if not exchange.stats.is_resumable:
                exchange.stats.end(left.cause)
            clear_tracebacks(left)
        except SluiceError as error:
            clear_tracebacks(error)
            await self._fail(error, exchange, tracked_send)
        except Exception as error:
            log_defect(logger, "a request failed with an unexpected error", error)
            clear_tracebacks(error)
            await self._fail(InternalError("The server failed to answer this request."), exchange, tracked_send)
        finally:
            self._close(exchange)

    def _exchange(self, scope: MutableMapping[str, Any], verdict: Verdict) -> Exchange:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", "")
        now = self.clock.now()
        arrival = scope.get(ARRIVAL, now)
        caller = Caller(
            owner=verdict.owner,
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else secrets.token_hex(8),
            arrival_s=arrival,
            arrival_wall_s=self.clock.wall() - (now - arrival),
            headers=headers,
            is_operator=verdict.operator,
        )
        return Exchange(caller, accounting.new_stats(caller, self.instrumentation), scope["path"], scope["method"])

    async def _fail(self, error: SluiceError, exchange: Exchange, tracked_send: _TrackedSend) -> None:
        stats = exchange.stats
        exchange.failure = cause_of(error, submitted=stats.submitted)
        if not stats.is_resumable:
            stats.end(exchange.failure)
        tracked_send.refusal = None
        if exchange.status:
            # Part of the response is sent. Returning now makes the server break the connection without the final chunk,
            # so that the client notices.
            return
        await tracked_send.replace(*error_response(error, exchange.path, exchange.caller.request_id))

    def _close(self, exchange: Exchange) -> None:
        accounting.close(
            exchange.stats,
            self.clock.now(),
            path=exchange.path,
            status=exchange.status or None,
            is_delivered=exchange.is_complete and not exchange.is_disconnected,
            is_error=exchange.status >= 400,
            failure=exchange.failure,
            log_level=logging.DEBUG if _is_polled(exchange) else logging.INFO,
        )


def _is_polled(exchange: Exchange) -> bool:
    """Whether the request only checks the server's state, as probes and user interfaces do every second."""
    if exchange.path in _QUIET_PATHS:
        return True
    is_check = exchange.method in ("GET", "HEAD") and exchange.status in (200, 503)
    return is_check and (exchange.path in _POLLED or exchange.path.startswith("/v1/models/"))


def with_cors(app: Any, origins: Sequence[str]) -> Any:
    """Let web pages of these origins call `app`. Outside the middleware, because preflight requests have no key, and
    pages must be able to read refusals, too."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[
            "X-Stream-Id",
            "X-Stream-Token",
            "X-Stream-Resumable",
            "X-Request-Id",
            "Request-Id",
            "Retry-After",
        ],
    )


class _LimitedReceive:
    """The request body, with its limit in bytes. The connection has more limits, and reports one that is passed in its
    `body_error`."""

    def __init__(
        self,
        receive: Any,
        limit: int,
        scope: MutableMapping[str, Any],
        tracked_send: _TrackedSend,
        instrumentation: Instrumentation,
    ) -> None:
        self._instrumentation = instrumentation
        self._tracked_send = tracked_send
        self._receive = receive
        self._limit = limit
        self._connection = scope.get(DIRECT_SINK)
        self._seen = 0
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise self._too_large()

    async def __call__(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            # The server also sends this after a complete response, where it has no meaning.
            self._tracked_send.on_disconnect()
        elif message["type"] == "http.request":
            error = None if self._connection is None else self._connection.body_error
            if error is not None and message.get("more_body", False):
                if isinstance(error, Overloaded):
                    self._instrumentation.rejected(error.reason)
                # A copy: with the traceback the connection would keep all of the body that has arrived.
                raise self._refused(copy(error))
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise self._too_large()
        return message

    def _too_large(self) -> SluiceError:
        return self._refused(
            BodyTooLarge(f"The request body is larger than {self._limit} bytes (server.max_body_bytes).")
        )

    def _refused(self, error: SluiceError) -> SluiceError:
        # Frameworks take an error of `receive` for a body that cannot be parsed, and answer 400.
        self._tracked_send.refusal = error
        return error


@dataclass(slots=True, eq=False)
class _TrackedSend:
    """The response: adds the request id to its headers, escapes line separators in its JSON, and records its progress.
    While there is a refusal, the app's response is dropped: the middleware answers."""

    exchange: Exchange
    send: Any
    is_closing: Callable[[], bool]
    _held: MutableMapping[str, Any] | None = field(default=None, init=False)
    _is_json: bool = field(default=False, init=False)
    refusal: SluiceError | None = field(default=None, init=False)

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if self.refusal is not None:
            return
        if message["type"] == "http.response.start":
            kind = next((value for name, value in message.get("headers", ()) if name.lower() == b"content-type"), b"")
            self._is_json = kind.startswith((b"application/json", b"text/event-stream"))
            self._held = message
            if kind.startswith(b"application/json"):
                # The escaped body is longer, and its length is in the head.
                return
            await self._start()
        elif message["type"] == "http.response.body":
            await self._continue(message)
        else:
            await self.send(message)

    async def _continue(self, message: MutableMapping[str, Any]) -> None:
        more = message.get("more_body", False)
        if self._is_json and message.get("body"):
            message = {**message, "body": escaped(message["body"])}
        if self._held is not None:
            await self._start(None if more else len(message.get("body", b"")))
        if self.exchange.method == "HEAD":
            return
        self.exchange.is_complete = self.exchange.is_complete or not more
        await self.send(message)

    async def _start(self, length: int | None = None) -> None:
        """Send the head; `length` is the body's, if it is known."""
        message, self._held = self._held, None
        assert message is not None
        exchange = self.exchange
        exchange.status = status_of(message["status"], submitted=exchange.stats.submitted)
        headers = [item for item in message.get("headers", ()) if item[0].lower() not in _OURS]
        given = len(headers)
        headers.append((b"x-request-id", exchange.caller.request_id.encode()))
        if is_anthropic(exchange.path):
            headers.append((b"request-id", exchange.caller.request_id.encode()))
        if message["status"] in (429, 503) and not any(name.lower() == b"retry-after" for name, _ in headers[:given]):
            headers.append((b"retry-after", b"1"))
        if self._is_json and any(name.lower() == b"content-length" for name, _ in headers):
            headers = [item for item in headers if item[0].lower() != b"content-length"]
            if length is not None:
                headers.append((b"content-length", b"%d" % length))
        if self.is_closing():
            headers = [item for item in headers if item[0].lower() != b"connection"]
            headers.append((b"connection", b"close"))
        await self.send({**message, "status": exchange.status, "headers": headers})
        if exchange.method == "HEAD":
            exchange.is_complete = True
            await self.send({"type": "http.response.body", "body": b""})

    def on_disconnect(self) -> None:
        """The client has left. Later messages of the app do not complete the exchange."""
        self.exchange.is_disconnected = self.exchange.is_disconnected or not self.exchange.is_complete

    async def replace(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send this response, in place of one whose head is held back."""
        self._held = None
        await send_whole(self, status, headers, body)
