"""How large a grammar may be. Measured before anything else looks at it, in one walk that stops at the first limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Where a schema lists alternatives.
_CHOICES = frozenset({"enum", "anyOf", "oneOf", "allOf", "prefixItems", "type"})
# Where each key of an object is a property that the grammar must tell from the others.
_PROPERTIES = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"})
# What a value weighs besides its text: vLLM copies and walks all of them on the event loop.
_NODE_BYTES = 8
# A structural tag is a wrapper around schemas, which are what is measured.
_WRAPPER_NESTING = 16


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """The settings. `timeout_s` is CPU time of one compilation."""

    timeout_s: float = 4.0
    max_bytes: int = 512 * 2**10
    max_properties: int = 2000
    max_choices: int = 5000
    max_nesting: int = 64
    max_memory_bytes: int = 256 * 2**20
    processes: int = 8

    @property
    def wall_s(self) -> float:
        """How long a compilation may take on the clock, where others compete for the machine."""
        return 1.75 * self.timeout_s


class TooLarge(Exception):
    """A grammar passes a limit. The message says which, and names the setting."""


def measure(constraint: Mapping[str, Any], limits: GrammarLimits) -> None:
    """Raise TooLarge if the grammar of one request passes a limit; ValueError if a JSON text in it is not JSON.

    `constraint` holds the one field of vLLM's structured outputs that is set, by its name.
    """
    for name, value in constraint.items():
        if name in ("json", "structural_tag") and value is not None:
            deepest = limits.max_nesting + (_WRAPPER_NESTING if name == "structural_tag" else 0)
            _Walk(limits).take(_parsed(value, limits) if isinstance(value, str) else value, deepest)
        elif name in ("regex", "grammar") and isinstance(value, str):
            _weigh(len(value), limits)
            _count(value.count("|"), limits)
        elif name == "choice" and isinstance(value, list):
            _count(len(value), limits)
            _weigh(sum(map(len, map(str, value))), limits)


def _parsed(text: str, limits: GrammarLimits) -> Any:
    _weigh(len(text), limits)
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep(limits) from None


def _weigh(size_bytes: int, limits: GrammarLimits) -> None:
    if size_bytes > limits.max_bytes:
        raise TooLarge(f"has more than {limits.max_bytes} bytes (grammars.max_bytes)")


def _count(choices: int, limits: GrammarLimits) -> None:
    if choices > limits.max_choices:
        raise TooLarge(f"has more than {limits.max_choices} alternatives (grammars.max_choices)")


def _too_deep(limits: GrammarLimits) -> TooLarge:
    return TooLarge(f"is nested deeper than {limits.max_nesting} levels (grammars.max_nesting)")


class _Walk:
    """Counts through a JSON schema, level by level."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._properties = 0
        self._choices = 0

    def take(self, schema: Any, deepest: int) -> None:
        """Count all of it. Raises TooLarge."""
        level: list[Any] = [schema]
        for _ in range(deepest + 1):
            level = [child for node in level for child in self._node(node)]
            if not level:
                return
        raise _too_deep(self._limits)

    def _node(self, node: Any) -> list[Any]:
        """Count one object or list; its children that are such, too."""
        limits = self._limits
        if isinstance(node, dict):
            self._bytes += sum(map(len, node.keys())) + _NODE_BYTES * len(node)
            for key in _PROPERTIES & node.keys():
                self._properties += len(node[key]) if isinstance(node[key], dict) else 0
            for key in _CHOICES & node.keys():
                self._choices += len(node[key]) if isinstance(node[key], list) else 0
            if isinstance(pattern := node.get("pattern"), str):
                self._choices += pattern.count("|")
            values = list(node.values())
        elif isinstance(node, list):
            self._bytes += _NODE_BYTES * len(node)
            values = node
        else:
            values = [node]
        self._bytes += sum([len(value) for value in values if isinstance(value, str)])
        _weigh(self._bytes, limits)
        _count(self._choices, limits)
        if self._properties > limits.max_properties:
            raise TooLarge(f"has more than {limits.max_properties} properties or definitions (grammars.max_properties)")
        return [value for value in values if isinstance(value, dict | list)]


__all__ = ["GrammarLimits", "TooLarge", "measure"]
