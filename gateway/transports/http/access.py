"""Decides whether a request is allowed, by its API key and the web page it comes from.

The rules, in this order:

- `/livez`, `/readyz`, `/health` and SageMaker's `/ping` are open to all, `/metrics` unless it is protected.
- With keys, a request needs one: `Authorization: Bearer <key>`, or `x-api-key: <key>` as Anthropic's clients send it.
  `Authorization` is read first. Each header may occur once, because two programs on the way could read different ones
  of two. A stream can also be read with its token (`stream_tokens`).
- The origin of a request with a valid key is not checked, since a page has the key only if it was given it. All other
  requests must use a name of this server, and must not come from a page of another site (`origins`).
- Operator endpoints need an operator's key, or a server without keys whose settings open them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from gateway.errors import SluiceError, Unauthorized
from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.http.origins import RequestOrigin, Sites
from gateway.transports.http.stream_tokens import StreamTokens

PROBES = frozenset({"/livez", "/readyz", "/health", "/ping"})
"""Probes are sent every few seconds and have no key."""

_STREAMS = "/v1/streams/"
_STREAM = re.compile(rf"{_STREAMS}[^/]+")
_HEADERS = frozenset({b"host", b"origin", b"sec-fetch-site", b"x-forwarded-host", b"authorization", b"x-api-key"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The key's name, whether it is an operator's, and the error if the request is refused."""

    owner: str | None
    operator: bool
    refusal: SluiceError | None


@dataclass(slots=True, kw_only=True, eq=False)
class Access:
    """The rules of one server. `operator_endpoints`: whether every client is an operator if there are no keys.
    `owner_of`: the key name of a live or retained stream, by its id; None if there is none."""

    keys: ApiKeys | None
    sites: Sites
    protect_metrics: InitVar[bool]
    operator_endpoints: bool
    tokens: StreamTokens
    owner_of: Callable[[str], str | None]
    _open: frozenset[str] = field(init=False)

    def __post_init__(self, protect_metrics: bool) -> None:
        self._open = PROBES if protect_metrics else PROBES | {"/metrics"}

    def judge(self, scope: MutableMapping[str, Any]) -> Verdict:
        """The decision about a request or a WebSocket handshake."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _HEADERS:
                headers.setdefault(name, []).append(value)
        # A handshake opens a connection for both directions.
        method = scope.get("method", "POST")
        if self.keys is None:
            refusal = self._site_refusal(scope["path"], method, headers)
            return Verdict(None, self.operator_endpoints, refusal)
        owner, problem = self._key_owner(self.keys, headers)
        if owner is not None:
            return Verdict(owner, self.keys.is_operator(owner), None)
        token = self._read_token(scope, method)
        if token:
            owner = self._token_owner(self.keys, scope["path"], token)
            problem = "This token is not, or no longer, valid for this stream."
        if owner is None and scope["path"] not in self._open:
            return Verdict(None, False, Unauthorized(problem))
        return Verdict(owner, False, self._site_refusal(scope["path"], method, headers))

    @staticmethod
    def _key_owner(keys: ApiKeys, headers: dict[bytes, list[bytes]]) -> tuple[str | None, str]:
        """The name of the request's key; without a valid key None, and the message of the refusal."""
        problem = "This server asks for an API key: send it as `Authorization: Bearer <key>` or `x-api-key: <key>`."
        for name in (b"authorization", b"x-api-key"):
            lines = headers.get(name, ())
            if len(lines) > 1:
                return None, f"This request has more than one `{name.decode()}` header; send one."
        for line in headers.get(b"authorization", ()):
            scheme, _, key = line.partition(b" ")
            if scheme.lower() != b"bearer" or not key.strip():
                problem = "The Authorization header must be `Bearer <key>`."
            elif (owner := keys.owner(key.strip())) is not None:
                return owner, ""
            else:
                problem = "This API key is not known to this server."
        for line in headers.get(b"x-api-key", ()):
            if (owner := keys.owner(line.strip())) is not None:
                return owner, ""
            problem = "This API key is not known to this server."
        return None, problem

    @staticmethod
    def _read_token(scope: MutableMapping[str, Any], method: str) -> str:
        """The token of a request for a stream's events; empty without one."""
        if method not in ("GET", "HEAD") or not _STREAM.fullmatch(scope["path"]):
            return ""
        given = (part[6:] for part in scope["query_string"].split(b"&") if part.startswith(b"token="))
        return next(given, b"").decode("latin-1")

    def _token_owner(self, keys: ApiKeys, path: str, token: str) -> str | None:
        """The key name of the stream that the token is valid for."""
        stream_id = path.removeprefix(_STREAMS)
        owner = self.owner_of(stream_id)
        # When a key is removed, the tokens of its streams become invalid, too.
        is_valid = owner is not None and keys.has_name(owner) and self.tokens.is_valid(token, stream_id, owner)
        return owner if is_valid else None

    def _site_refusal(self, path: str, method: str, headers: dict[bytes, list[bytes]]) -> SluiceError | None:
        if path in PROBES:
            # The kubelet calls a pod by its address, and the responses hold no secrets.
            return None
        text = {name: [line.decode("latin-1") for line in lines] for name, lines in headers.items()}
        return self.sites.refusal(
            method,
            RequestOrigin(
                hosts=tuple(text.get(b"host", ())),
                # Several values are a forgery. Joined, they equal no allowed origin.
                origin=", ".join(text.get(b"origin", ())),
                site=", ".join(text.get(b"sec-fetch-site", ())),
                forwarded_host=", ".join(text.get(b"x-forwarded-host", ())),
            ),
        )
