"""What is known about grammars that have been checked, kept for those who send them again."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# An agent sends the same few schemas with every turn; an entry takes a few hundred bytes, so these are thousands.
MAX_BYTES = 2 * 2**20
# A key, the entry itself and the dictionary's share of it.
_ENTRY_BYTES = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """`backend` compiles the grammar, or it is refused, and `message` says why."""

    backend: str | None
    message: str = ""
    cpu_s: float = 0.0


def digest(constraint: Mapping[str, Any]) -> bytes:
    """The key of a grammar: equal for equal ones, whoever sends them."""
    text = json.dumps(constraint, sort_keys=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Verdicts:
    """A map from digests to verdicts that forgets those used longest ago."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Verdict] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: bytes) -> Verdict | None:
        """What is known; asking counts as use."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Keep a verdict, at the price of the oldest."""
        if (old := self._kept.pop(key, None)) is not None:
            self.size_bytes -= _weight(old)
        self._kept[key] = verdict
        self.size_bytes += _weight(verdict)
        while self.size_bytes > self._max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.size_bytes -= _weight(gone)

    def __len__(self) -> int:
        return len(self._kept)


def _weight(verdict: Verdict) -> int:
    return _ENTRY_BYTES + len(verdict.message)


__all__ = ["MAX_BYTES", "Verdict", "Verdicts", "digest"]
