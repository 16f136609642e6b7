"""How large a grammar may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.engine.vllm.grammars.limits import GrammarLimits, GrammarTooLarge, check_size

LIMITS = GrammarLimits(max_bytes=4096, max_properties=10, max_choices=10, max_nesting=8)


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "constraint",
    [
        {"json": properties(10)},
        {"json": json.dumps(properties(10))},
        {"json": {"enum": list(range(10))}},
        {"json": nested(8)},
        {"json": True},
        {"regex": "|".join("abcdefghij")},
        {"choice": ["a"] * 10},
        {"grammar": 'root ::= "a"'},
        {"json_object": True},
        {"structural_tag": json.dumps({"structures": [{"schema": nested(8)}], "triggers": []})},
    ],
)
def test_a_grammar_within_the_limits_passes(constraint: dict[str, Any]) -> None:
    check_size(constraint, LIMITS)


@pytest.mark.parametrize(
    ("constraint", "setting"),
    [
        ({"json": properties(11)}, "max_properties"),
        ({"json": json.dumps(properties(11))}, "max_properties"),
        ({"json": {"items": {"patternProperties": properties(11)["properties"]}}}, "max_properties"),
        ({"json": {"$defs": {"a": properties(6), "b": properties(6)}}}, "max_properties"),
        ({"json": {"enum": list(range(11))}}, "max_choices"),
        ({"json": {"anyOf": [{"enum": [1, 2, 3]}] * 8}}, "max_choices"),
        ({"json": {"pattern": "|".join("abcdefghijklm")}}, "max_choices"),
        ({"json": nested(10)}, "max_nesting"),
        ({"json": "[" * 100_000}, "max_bytes"),
        ({"json": "[" * 1500 + "]" * 1500}, "max_nesting"),
        ({"json": {"const": "x" * 5000}}, "max_bytes"),
        ({"json": {"items": [0] * 2000}}, "max_bytes"),
        ({"json": {"examples": [{}] * 2000}}, "max_bytes"),
        ({"json": {"$defs": {f"d{i}": {} for i in range(11)}}}, "max_properties"),
        ({"regex": "a" * 5000}, "max_bytes"),
        ({"regex": "|".join("abcdefghijklm")}, "max_choices"),
        ({"choice": ["a"] * 11}, "max_choices"),
        ({"choice": ["a" * 5000]}, "max_bytes"),
        ({"grammar": "root ::= " + '"a" | ' * 20}, "max_choices"),
        ({"structural_tag": json.dumps({"structures": [{"schema": properties(11)}]})}, "max_properties"),
    ],
)
def test_a_grammar_past_a_limit_is_refused_with_the_settings_name(constraint: dict[str, Any], setting: str) -> None:
    with pytest.raises(GrammarTooLarge, match=setting):
        check_size(constraint, LIMITS)


def test_invalid_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        check_size({"json": "{nope"}, LIMITS)
