"""Who may ask: the key of a request, the page it comes from, and what an answer of refusal says.

The rules, in this order:

- `/livez`, `/readyz`, `/health` and SageMaker's `/ping` are answered to everybody, `/metrics` unless it is protected.
- With keys, a request needs one: `Authorization: Bearer <key>`, or `x-api-key: <key>` as Anthropic's clients send it.
  `Authorization` is looked at first; of each there may be one line, because two mean that two programs on the way could
  read different ones. A stream can also be read with its token (`stream_tokens`).
- A request with a good key is not asked where it comes from, since no page has the key unless it was given it. All
  others must be called by a name of this server's, and not by a page of another site (`sites`).
- An operator's key, and a server without keys that says so, opens the endpoints that run the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import SluiceError, Unauthorized
from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.http.origins import RequestOrigin, Sites
from gateway.transports.http.stream_tokens import StreamTokens

PROBES = frozenset({"/livez", "/readyz", "/health", "/ping"})
"""Probes come every few seconds and carry no key."""

_STREAMS = "/v1/streams/"
_STREAM = re.compile(rf"{_STREAMS}[^/]+")
_HEADERS = frozenset({b"host", b"origin", b"sec-fetch-site", b"x-forwarded-host", b"authorization", b"x-api-key"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose request it is, whether he is an operator, and why it is not answered (None: it is)."""

    owner: str | None
    operator: bool
    refusal: SluiceError | None


class Access:
    """The rules of one server."""

    def __init__(
        self,
        *,
        keys: ApiKeys | None,
        sites: Sites,
        protect_metrics: bool,
        operator_endpoints: bool,
        tokens: StreamTokens,
        owner_of: Callable[[str], str | None],
    ) -> None:
        """`operator_endpoints`: whether everybody is an operator where there are no keys. `owner_of`: whose stream that
        is, or was; None if there is none."""
        self._keys = keys
        self._sites = sites
        self._open = PROBES if protect_metrics else PROBES | {"/metrics"}
        self._operator_endpoints = operator_endpoints
        self._tokens = tokens
        self._owner_of = owner_of

    def judge(self, scope: MutableMapping[str, Any]) -> Verdict:
        """What becomes of a request or a WebSocket handshake."""
        told: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _HEADERS:
                told.setdefault(name, []).append(value)
        # A handshake opens a way in both directions.
        method = scope.get("method", "POST")
        if self._keys is None:
            refusal = self._site_refusal(scope["path"], method, told)
            return Verdict(None, self._operator_endpoints, refusal)
        owner, problem = self._key_owner(self._keys, told)
        if owner is not None:
            return Verdict(owner, self._keys.is_operator(owner), None)
        token = self._read_token(scope, method)
        if token:
            owner = self._token_owner(self._keys, scope["path"], token)
            problem = "This token is not, or no longer, good for this stream."
        if owner is None and scope["path"] not in self._open:
            return Verdict(None, False, Unauthorized(problem))
        return Verdict(owner, False, self._site_refusal(scope["path"], method, told))

    @staticmethod
    def _key_owner(keys: ApiKeys, told: dict[bytes, list[bytes]]) -> tuple[str | None, str]:
        """The name of the request's key; without one, what to say about it."""
        problem = "This server asks for an API key: send it as `Authorization: Bearer <key>` or `x-api-key: <key>`."
        for name in (b"authorization", b"x-api-key"):
            lines = told.get(name, ())
            if len(lines) > 1:
                return None, f"This request has more than one `{name.decode()}` header; send one."
        for line in told.get(b"authorization", ()):
            scheme, _, key = line.partition(b" ")
            if scheme.lower() != b"bearer" or not key.strip():
                problem = "The Authorization header must be `Bearer <key>`."
            elif (owner := keys.owner(key.strip())) is not None:
                return owner, ""
            else:
                problem = "This API key is not known here."
        for line in told.get(b"x-api-key", ()):
            if (owner := keys.owner(line.strip())) is not None:
                return owner, ""
            problem = "This API key is not known here."
        return None, problem

    @staticmethod
    def _read_token(scope: MutableMapping[str, Any], method: str) -> str:
        """The token of a request that may have one; empty if it has none."""
        if method not in ("GET", "HEAD") or not _STREAM.fullmatch(scope["path"]):
            return ""
        given = (part[6:] for part in scope["query_string"].split(b"&") if part.startswith(b"token="))
        return next(given, b"").decode("latin-1")

    def _token_owner(self, keys: ApiKeys, path: str, token: str) -> str | None:
        """Whose stream a request with that token reads."""
        stream_id = path.removeprefix(_STREAMS)
        owner = self._owner_of(stream_id)
        # A key that is taken back takes its streams' tokens along.
        good = owner is not None and keys.has_name(owner) and self._tokens.is_valid(token, stream_id, owner)
        return owner if good else None

    def _site_refusal(self, path: str, method: str, told: dict[bytes, list[bytes]]) -> SluiceError | None:
        if path in PROBES:
            # The kubelet calls a pod by its address, and what these tell is no secret.
            return None
        text = {name: [line.decode("latin-1") for line in lines] for name, lines in told.items()}
        return self._sites.refusal(
            method,
            RequestOrigin(
                hosts=tuple(text.get(b"host", ())),
                # Several are a forgery, and are like none that is allowed.
                origin=", ".join(text.get(b"origin", ())),
                site=", ".join(text.get(b"sec-fetch-site", ())),
                forwarded_host=", ".join(text.get(b"x-forwarded-host", ())),
            ),
        )


__all__ = ["PROBES", "Access", "Verdict"]
