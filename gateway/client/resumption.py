"""The rules after a stream's connection breaks: the next request, its time, and the end of all attempts. No IO."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote

import httpx

from gateway.client.sse_events import Events
from gateway.clock import Clock

_RESUMABLE = "X-Stream-Resumable"
_ENDPOINTS = ("/chat/completions", "/completions")
# Headers that describe the POST or its body, and have no or another meaning on the GET that resumes it. All others are
# repeated: keys, cookies and those that proxies on the way need.
_POST_HEADERS = ("content-length", "content-type", "content-encoding", "transfer-encoding", "expect")
_OPTION_HEADERS = (_RESUMABLE, "x-request-timeout", "idempotency-key")


@dataclass(frozen=True, slots=True)
class Policy:
    """The duration and the spacing of attempts."""

    grace_s: float
    backoff_s: float
    max_backoff_s: float
    clock: Clock
    jitter: Callable[[], float]


class Resumption:
    """The events and the current outage of one stream.

    An outage begins when the connection breaks and ends with a new event or a keep-alive on a later connection. It may
    last as long as the server keeps the stream; the caller's own timeouts limit a single attempt.
    """

    def __init__(self, request: httpx.Request, response: httpx.Response, policy: Policy) -> None:
        self.events = Events()
        self._request = request
        self._stream_id = response.headers["X-Stream-Id"]
        self._grace_s = _seconds(response.headers[_RESUMABLE], policy.grace_s)
        self._policy = policy
        self._error: httpx.TransportError | None = None
        self._deadline_s = 0.0
        self._attempts = 0
        self._retry_after_s = 0.0
        self._refusal: str | None = None

    def on_connection_lost(self, error: httpx.TransportError | None) -> None:
        """The connection has broken; None: the body ended early, but without a network error."""
        if self._error is None or self.events.is_alive:
            self._error = error or httpx.RemoteProtocolError("the stream ended before its [DONE]")
            self._deadline_s = self._policy.clock.now() + self._grace_s
            self._attempts = 0
        self.events.restart()

    def pause_s(self) -> float:
        """Seconds until the next attempt. Raises the error that began the outage if there are no more attempts."""
        left_s = self._deadline_s - self._policy.clock.now()
        retry_after_s, self._retry_after_s = self._retry_after_s, 0.0
        if self._refusal is not None:
            self.raise_outage(self._refusal)
        if left_s <= 0 or retry_after_s > left_s:
            self.raise_outage(f"not back within {self._grace_s:g} s")
        # Full jitter (uniform from zero) spreads clients best that have lost the same server at once. It is added to
        # Retry-After, which is the same for all of them.
        ceiling_s = min(self._policy.max_backoff_s, math.ldexp(self._policy.backoff_s, min(self._attempts, 30)))
        self._attempts += 1
        return retry_after_s + min(self._policy.jitter() * ceiling_s, left_s - retry_after_s)

    def request(self) -> httpx.Request:
        """The GET for the missing events, with the caller's headers and timeouts."""
        path = next(self._request.url.path.removesuffix(end) for end in _ENDPOINTS if _path_ends(self._request, end))
        headers = self._request.headers.copy()
        for name in (*_POST_HEADERS, *_OPTION_HEADERS):
            headers.pop(name, None)
        headers["Accept"] = "text/event-stream"
        headers["Accept-Encoding"] = "identity"
        if self.events.last_seq:
            headers["Last-Event-ID"] = str(self.events.last_seq)
        return httpx.Request(
            "GET",
            self._request.url.copy_with(path=f"{path}/streams/{quote(self._stream_id, safe='')}"),
            headers=headers,
            # `target` would override the path.
            extensions={name: value for name, value in self._request.extensions.items() if name != "target"},
        )

    def accept(self, response: httpx.Response) -> bool:
        """Whether this response continues the stream. If not, it decides the next `pause_s`."""
        if _is_readable(response):
            return True
        if response.status_code in (408, 429) or response.status_code >= 500:
            self._retry_after_s = _seconds(response.headers.get("Retry-After", ""), 0.0)
        else:
            self._refusal = f"the server answered {response.status_code}"
        return False

    def raise_outage(self, why: str) -> NoReturn:
        """Raise the error that began the outage."""
        assert self._error is not None
        self._error.add_note(f"stream {self._stream_id} was not resumed after event {self.events.last_seq}: {why}")
        raise self._error


def wants_stream(request: httpx.Request) -> bool:
    """Whether this is a request for a streamed completion.

    A body that is not in memory is not read, because that would consume it. Raises TypeError for a request that is not
    httpx's.
    """
    if not isinstance(request, httpx.Request):
        # openai-python 3.54 accepts httpx's clients, but its own default clients are httpx2's.
        raise TypeError(f"ResumingTransport serves httpx.Client and httpx.AsyncClient, not {type(request).__module__}")
    if request.method != "POST" or not any(_path_ends(request, end) for end in _ENDPOINTS):
        return False
    if not isinstance(request.stream, httpx.ByteStream):
        return False
    try:
        document = json.loads(b"".join(request.stream))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("stream") is True


def with_stream_headers(request: httpx.Request, grace_s: float) -> httpx.Request:
    """A copy of the request with the headers for a resumable stream; the caller may send the original again."""
    headers = request.headers.copy()
    headers.setdefault(_RESUMABLE, f"{grace_s:.15g}")
    # Events are parsed from the raw bytes, so these must not be compressed.
    headers["Accept-Encoding"] = "identity"
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _path_ends(request: httpx.Request, suffix: str) -> bool:
    return request.url.path.endswith(suffix)


def _is_readable(response: httpx.Response) -> bool:
    """Whether the body is uncompressed events, and not a proxy's error page."""
    return (
        response.status_code == 200
        and response.headers.get("Content-Type", "").lower().startswith("text/event-stream")
        and response.headers.get("Content-Encoding", "identity").lower() == "identity"
    )


def is_resumable(response: httpx.Response) -> bool:
    return _is_readable(response) and _RESUMABLE in response.headers and "X-Stream-Id" in response.headers


def _seconds(text: str, otherwise: float) -> float:
    """A header's seconds; `otherwise` if it has none (Retry-After may be a date, which Sluice never sends)."""
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if math.isfinite(value) and value >= 0 else otherwise
