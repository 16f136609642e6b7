"""Headers and body fields that vLLM accepts from any client, and should not.

They steer the scheduler, the data-parallel router and the KV connector. From a router of one's own they are useful;
from the open network they let one client push others back or read another client's cache. They are removed unless the
settings declare clients trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = frozenset(
    {
        "priority",
        "data_parallel_rank",
        "kv_transfer_params",
        "ec_transfer_params",
        "kv_hints",
        "vllm_xargs",
        "cache_salt",
        "session_id",
        "request_id",
    }
)
HEADERS = frozenset({"x-vllm-priority", "x-data-parallel-rank", "x-session-id", "x-request-id"})


class Headers(dict[str, str]):
    """Case-insensitive look-up of headers, which vLLM's code requires of a request. Keys are lower case."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(key.lower())

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.lower())


class UntrustedFieldFilter:
    """Removes untrusted fields and headers, or with `trust` lets all of them pass."""

    def __init__(self, trust: bool) -> None:
        self._trust = trust

    def remove_fields(self, document: dict[str, Any]) -> bool:
        """Remove the fields from a parsed body, in place. Returns whether there were any."""
        found = frozenset() if self._trust else FIELDS & document.keys()
        for name in found:
            del document[name]
        return bool(found)

    def filter_headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers that may pass; keys are lower case."""
        if self._trust:
            return headers
        return {name: value for name, value in headers.items() if name not in HEADERS}

    def filter_raw_headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The same for headers in ASGI's form."""
        return headers if self._trust else [item for item in headers if item[0].decode("latin-1") not in HEADERS]
