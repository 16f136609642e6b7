"""Stream ids that name the worker which has the stream. Pure.

vLLM's own ids are hexadecimal, so the `w` keeps them apart from these.
"""

from __future__ import annotations

import re
import secrets

from gateway.domain import Endpoint

# A client needs only the id to read or cancel a stream, so an id must not be guessable: 112 random bits.
_RANDOM_BYTES = 14
MAX_WORKERS = 256
"""Two hexadecimal digits number the workers."""

_PREFIXES = "|".join(endpoint.id_prefix for endpoint in Endpoint)
_OURS = re.compile(rf"(?:{_PREFIXES})w([0-9a-f]{{2}})[0-9a-f]{{{2 * _RANDOM_BYTES}}}")


def new(worker: int) -> str:
    """A fresh id of that worker's, without the endpoint's prefix."""
    return f"w{worker:02x}{secrets.token_hex(_RANDOM_BYTES)}"


def worker_of(stream_id: str) -> int | None:
    """The worker that has the stream; None if the id does not name one."""
    found = _OURS.fullmatch(stream_id)
    return None if found is None else int(found[1], 16)
