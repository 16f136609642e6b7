"""Limits on the size of a grammar, checked before other code reads it, in one pass that stops at the first limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys under which a schema lists alternatives.
_CHOICES = frozenset({"enum", "anyOf", "oneOf", "allOf", "prefixItems", "type"})
# Keys under which each key of an object is a property that the grammar must distinguish from the others.
_PROPERTIES = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"})
# Counted for a value besides its text: vLLM copies and walks all values on the event loop.
_NODE_BYTES = 8
# A structural tag wraps schemas; the limit on nesting is meant for those.
_WRAPPER_NESTING = 16


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """The settings of `grammars`. `timeout_s` is CPU time of one compilation."""

    timeout_s: float = 4.0
    max_bytes: int = 512 * 2**10
    max_properties: int = 2000
    max_choices: int = 5000
    max_nesting: int = 64
    max_memory_bytes: int = 256 * 2**20
    processes: int = 8

    @property
    def wall_s(self) -> float:
        """The limit of a compilation on the clock, where others compete for the machine."""
        return 1.75 * self.timeout_s


class GrammarTooLarge(Exception):
    """A grammar exceeds a limit. The message names the limit and its setting."""


def check_size(constraint: Mapping[str, Any], limits: GrammarLimits) -> None:
    """Raises GrammarTooLarge if a grammar exceeds a limit, ValueError if its JSON text is invalid.

    `constraint` has the one field of vLLM's structured outputs that is set, by its name.
    """
    for name, value in constraint.items():
        if name in ("json", "structural_tag") and value is not None:
            deepest = limits.max_nesting + (_WRAPPER_NESTING if name == "structural_tag" else 0)
            _SchemaCounter(limits).count(_parsed(value, limits) if isinstance(value, str) else value, deepest)
        elif name in ("regex", "grammar") and isinstance(value, str):
            _check_bytes(len(value), limits)
            _check_choices(value.count("|"), limits)
        elif name == "choice" and isinstance(value, list):
            _check_choices(len(value), limits)
            _check_bytes(sum(map(len, map(str, value))), limits)


def _parsed(text: str, limits: GrammarLimits) -> Any:
    _check_bytes(len(text), limits)
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep(limits) from None


def _check_bytes(size_bytes: int, limits: GrammarLimits) -> None:
    if size_bytes > limits.max_bytes:
        raise GrammarTooLarge(f"has more than {limits.max_bytes} bytes (grammars.max_bytes)")


def _check_choices(choices: int, limits: GrammarLimits) -> None:
    if choices > limits.max_choices:
        raise GrammarTooLarge(f"has more than {limits.max_choices} alternatives (grammars.max_choices)")


def _too_deep(limits: GrammarLimits) -> GrammarTooLarge:
    return GrammarTooLarge(f"is nested deeper than {limits.max_nesting} levels (grammars.max_nesting)")


class _SchemaCounter:
    """Counts the parts of a JSON schema, level by level."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._properties = 0
        self._choices = 0

    def count(self, schema: Any, deepest: int) -> None:
        """Count the whole schema. Raises GrammarTooLarge."""
        level: list[Any] = [schema]
        for _ in range(deepest + 1):
            level = [child for node in level for child in self._count_node(node)]
            if not level:
                return
        raise _too_deep(self._limits)

    def _count_node(self, node: Any) -> list[Any]:
        """Count one node. Returns its children that are objects or lists."""
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
        _check_bytes(self._bytes, limits)
        _check_choices(self._choices, limits)
        if self._properties > limits.max_properties:
            raise GrammarTooLarge(
                f"has more than {limits.max_properties} properties or definitions (grammars.max_properties)"
            )
        return [value for value in values if isinstance(value, dict | list)]
