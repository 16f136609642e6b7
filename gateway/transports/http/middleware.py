"""First and last for every request, ours and vLLM's: request id, access, body size, the one place where any error
becomes a response, and the one log line at the end.

Pure ASGI around everything: a middleware framework would cost memory and a task per stream, and hide disconnects.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from gateway.asgi import ARRIVAL, DIRECT_SINK
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
from gateway.transports.common.accounting import Accounting
from gateway.transports.http import paths
from gateway.transports.http.access import PROBES, Access, Verdict
from gateway.transports.http.error_response import error_response

logger = logging.getLogger(__name__)

_QUIET_PATHS = PROBES | {"/metrics"}
# Others that are asked again and again by whoever waits or watches.
_POLLED = frozenset({"/v1/models", "/load", "/version", "/"})
# Headers that no app decides.
_OURS = frozenset({b"x-request-id", b"request-id"})
# What may be echoed into a header and a log line without a second thought.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
EXCHANGE = "sluice.exchange"


@dataclass(slots=True)
class Exchange:
    """One request and its response, as the guard saw them."""

    caller: Caller
    stats: RequestStats
    path: str
    method: str
    """HEAD is GET to all but the outlet, which keeps the body back."""
    status: int = 0
    complete: bool = False
    gone: bool = False
    failure: Cause | None = None


class Middleware:
    """The outermost ASGI app."""

    def __init__(
        self,
        app: Any,
        *,
        access: Access,
        max_body_bytes: int,
        closing: Callable[[], bool],
        clock: Clock,
        instrumentation: Instrumentation,
    ) -> None:
        """`closing`: whether the server is about to stop, so that no connection should be used again."""
        self._app = app
        self._closing = closing
        self._access = access
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._instrumentation = instrumentation
        self._accounting = Accounting(clock, instrumentation)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket" and self._access.judge(scope).refusal is not None:
            # Before the handshake is accepted, a close is answered with 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        verdict = self._access.judge(scope)
        exchange = self._exchange(scope, verdict)
        if exchange.method == "HEAD":
            # A copy: the server, too, looks at its own.
            scope = {**scope, "method": "GET"}
        scope[EXCHANGE] = exchange
        outlet = _TrackedSend(exchange, send, self._closing)
        try:
            paths.check(scope)
            if verdict.refusal is not None:
                raise verdict.refusal
            inlet = _LimitedReceive(receive, self._max_body_bytes, scope, outlet, self._instrumentation)
            await self._app(scope, inlet, outlet)
            if outlet.refusal is not None:
                raise outlet.refusal
        except ClientDisconnected as left:
            exchange.gone = True
            if not exchange.stats.is_resumable:
                exchange.stats.end(left.cause)
            clear_tracebacks(left)
        except SluiceError as error:
            clear_tracebacks(error)
            await self._fail(error, exchange, outlet)
        except Exception as error:
            log_defect(logger, "a request failed with an error that nobody foresaw", error)
            clear_tracebacks(error)
            await self._fail(InternalError("The server failed to answer this request."), exchange, outlet)
        finally:
            self._close(exchange)

    def _exchange(self, scope: MutableMapping[str, Any], verdict: Verdict) -> Exchange:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = headers.get("x-request-id", "")
        now = self._clock.now()
        arrival = scope.get(ARRIVAL, now)
        caller = Caller(
            owner=verdict.owner,
            request_id=asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(8),
            arrival_s=arrival,
            arrival_wall_s=self._clock.wall() - (now - arrival),
            headers=headers,
            operator=verdict.operator,
        )
        return Exchange(caller, self._accounting.open(caller), scope["path"], scope["method"])

    async def _fail(self, error: SluiceError, exchange: Exchange, outlet: _TrackedSend) -> None:
        stats = exchange.stats
        exchange.failure = cause_of(error, submitted=stats.submitted)
        if not stats.is_resumable:
            stats.end(exchange.failure)
        outlet.refusal = None
        if exchange.status:
            # Half a response is out and cannot be mended. Returning now makes the server break the connection
            # without the final chunk, so that the client notices.
            return
        await outlet.replace(*error_response(error, exchange.path, exchange.caller.request_id))

    def _close(self, exchange: Exchange) -> None:
        self._accounting.close(
            exchange.stats,
            path=exchange.path,
            status=exchange.status or None,
            is_delivered=exchange.complete and not exchange.gone,
            is_error=exchange.status >= 400,
            failure=exchange.failure,
            log_level=logging.DEBUG if _is_polled(exchange) else logging.INFO,
        )


def _is_polled(exchange: Exchange) -> bool:
    """Whether somebody only looked whether the server is there, or ready, which people do every second."""
    if exchange.path in _QUIET_PATHS:
        return True
    looked = exchange.method in ("GET", "HEAD") and exchange.status in (200, 503)
    return looked and (exchange.path in _POLLED or exchange.path.startswith("/v1/models/"))


def with_cors(app: Any, origins: Sequence[str]) -> Any:
    """Let pages of these origins call `app` from a browser. Outside the guard, because preflight requests carry no
    key and refusals must be readable, too."""
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
    """The request body, with its limit; the connection has others, and knows when one is passed."""

    def __init__(
        self,
        receive: Any,
        limit: int,
        scope: MutableMapping[str, Any],
        outlet: _TrackedSend,
        instrumentation: Instrumentation,
    ) -> None:
        self._instrumentation = instrumentation
        self._outlet = outlet
        self._receive = receive
        self._limit = limit
        self._line = scope.get(DIRECT_SINK)
        self._seen = 0
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise self._too_large()

    async def __call__(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            # Also what the server says after a complete response, where it means nothing.
            self._outlet.gone()
        elif message["type"] == "http.request":
            if self._line is not None and self._line.body_error is not None and message.get("more_body", False):
                if isinstance(self._line.body_error, Overloaded):
                    self._instrumentation.rejected(self._line.body_error.reason)
                # One of its own: with its stack the connection would keep all that has come of the body.
                raise self._refused(copy(self._line.body_error))
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
        self._outlet.refusal = error
        return error


class _TrackedSend:
    """The response: adds the request id to its headers, escapes line separators in its JSON, and remembers how far it
    got. While there is a refusal, what the app says about it is dropped: the guard will answer."""

    def __init__(self, exchange: Exchange, send: Any, closing: Callable[[], bool]) -> None:
        self._exchange = exchange
        self._send = send
        self._closing = closing
        self._held: MutableMapping[str, Any] | None = None
        self._is_json = False
        self.refusal: SluiceError | None = None

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if self.refusal is not None:
            return
        if message["type"] == "http.response.start":
            kind = next((value for name, value in message.get("headers", ()) if name.lower() == b"content-type"), b"")
            self._is_json = kind.startswith((b"application/json", b"text/event-stream"))
            self._held = message
            if kind.startswith(b"application/json"):
                # What is escaped is longer, and the length stands before it.
                return
            await self._start()
        elif message["type"] == "http.response.body":
            await self._continue(message)
        else:
            await self._send(message)

    async def _continue(self, message: MutableMapping[str, Any]) -> None:
        more = message.get("more_body", False)
        if self._is_json and message.get("body"):
            message = {**message, "body": escaped(message["body"])}
        if self._held is not None:
            await self._start(None if more else len(message.get("body", b"")))
        if self._exchange.method == "HEAD":
            return
        self._exchange.complete = self._exchange.complete or not more
        await self._send(message)

    async def _start(self, length: int | None = None) -> None:
        """Send the head; `length` is the body's, if it is known by now."""
        message, self._held = self._held, None
        assert message is not None
        exchange = self._exchange
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
        if self._closing():
            headers = [item for item in headers if item[0].lower() != b"connection"]
            headers.append((b"connection", b"close"))
        await self._send({**message, "status": exchange.status, "headers": headers})
        if exchange.method == "HEAD":
            exchange.complete = True
            await self._send({"type": "http.response.body", "body": b""})

    def gone(self) -> None:
        """The client has left. What an app still sends goes nowhere, however complete it looks."""
        self._exchange.gone = self._exchange.gone or not self._exchange.complete

    async def replace(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send this response, in place of one whose head is held back."""
        self._held = None
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


__all__ = ["ARRIVAL", "EXCHANGE", "Exchange", "Middleware", "with_cors"]
