"""Tokens that let a browser come back for one stream: `EventSource` cannot send a key, so its URL carries what the
answer's `X-Stream-Token` said.

A token is good for reading one stream, as the key that made the stream, until the last moment at which that can still
be kept. The secret behind it is this process's own: a stream's answers, also those that other workers pass on, all come
from the process that has it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from gateway.clock import Clock

_TOKEN = re.compile(r"([0-9a-f]{1,16})\.([0-9a-f]{64})")


class StreamTokens:
    """Makes tokens and knows them again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)

    def make(self, stream_id: str, owner: str | None, until_s: float) -> str:
        """The token of that stream, good until a moment of the clock."""
        until = f"{max(0, round(until_s)):x}"
        return f"{until}.{self._signature(stream_id, owner, until)}"

    def is_valid(self, token: str, stream_id: str, owner: str | None) -> bool:
        """Whether that is a token of that stream, and its time is not over."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return False
        proven = hmac.compare_digest(match[2], self._signature(stream_id, owner, match[1]))
        return proven and int(match[1], 16) >= self._clock.now()

    def _signature(self, stream_id: str, owner: str | None, until: str) -> str:
        # Neither ids nor key names hold line breaks, so no two streams make the same text.
        text = f"{stream_id}\n{'' if owner is None else owner}\n{until}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


__all__ = ["StreamTokens"]
