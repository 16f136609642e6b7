"""The options in a request's headers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gateway.domain import RequestOptions
from gateway.errors import ClientError

TIMEOUT = "x-request-timeout"
RESUMABLE = "x-stream-resumable"


def read(headers: Mapping[str, str]) -> RequestOptions:
    """The options in `headers` (names in lower case). Raises ClientError that names the header."""
    timeout_s = _seconds(headers, TIMEOUT, "X-Request-Timeout")
    if timeout_s == 0:
        raise ClientError("X-Request-Timeout must be more than 0 seconds.", param="X-Request-Timeout")
    return RequestOptions(timeout_s=timeout_s, grace_s=_seconds(headers, RESUMABLE, "X-Stream-Resumable"))


def _seconds(headers: Mapping[str, str], name: str, shown: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    # NaN fails every comparison.
    if not 0 <= seconds < math.inf:
        raise ClientError(f"{shown} must be a number of seconds, such as 30 or 2.5.", param=shown)
    return seconds
