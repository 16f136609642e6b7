"""Results of grammar checks, cached for requests with the same grammar."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# An agent sends the same few schemas with every turn. An entry takes a few hundred bytes, so this holds thousands.
_MAX_BYTES = 2 * 2**20
# The key, the entry and its share of the dictionary.
_ENTRY_BYTES = 300


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The `backend` that compiles the grammar, or None and the reason in `message`."""

    backend: str | None
    message: str = ""


def digest(constraint: Mapping[str, Any]) -> bytes:
    """The key of a grammar."""
    text = json.dumps(constraint, sort_keys=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class ResultCache:
    """Results by digest. The least recently used are dropped first."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._results: OrderedDict[bytes, CheckResult] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: bytes) -> CheckResult | None:
        found = self._results.get(key)
        if found is not None:
            self._results.move_to_end(key)
        return found

    def put(self, key: bytes, result: CheckResult) -> None:
        """Add or replace a result."""
        if (old := self._results.pop(key, None)) is not None:
            self.size_bytes -= _size_bytes(old)
        self._results[key] = result
        self.size_bytes += _size_bytes(result)
        while self.size_bytes > self._max_bytes:
            _, oldest = self._results.popitem(last=False)
            self.size_bytes -= _size_bytes(oldest)

    def __len__(self) -> int:
        return len(self._results)


def _size_bytes(result: CheckResult) -> int:
    return _ENTRY_BYTES + len(result.message)
