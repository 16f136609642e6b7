"""Tokens with which a browser resumes one stream: `EventSource` cannot send a key, so its URL carries the value of the
response header `X-Stream-Token`.

A token permits reading one stream with the rights of the key that created it, until the stream's retention must have
ended. Its secret is local to the process: all responses for a stream, including those that other workers forward, come
from the process that has the stream.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from gateway.clock import Clock

_TOKEN = re.compile(r"([0-9a-f]{1,16})\.([0-9a-f]{64})")


class StreamTokens:
    """Creates and verifies tokens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)

    def make(self, stream_id: str, owner: str | None, until_s: float) -> str:
        """The token of that stream, valid until a time of the clock."""
        until = f"{max(0, round(until_s)):x}"
        return f"{until}.{self._signature(stream_id, owner, until)}"

    def is_valid(self, token: str, stream_id: str, owner: str | None) -> bool:
        """Whether the token belongs to that stream and has not expired."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return False
        is_signed = hmac.compare_digest(match[2], self._signature(stream_id, owner, match[1]))
        return is_signed and int(match[1], 16) >= self._clock.now()

    def _signature(self, stream_id: str, owner: str | None, until: str) -> str:
        # Ids and key names contain no line breaks, so two streams never have the same text.
        text = f"{stream_id}\n{'' if owner is None else owner}\n{until}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
