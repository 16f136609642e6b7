from __future__ import annotations

from typing import Any

import pytest

from gateway.engine.vllm.http_app.optional_fields import drop_empty_fields
from gateway.errors import ClientError

TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"a": 1}, {"a": 1}),
        ({"a": None, "b": 0, "c": "", "d": False, "e": [], "f": {}}, {"b": 0, "c": "", "d": False, "e": [], "f": {}}),
        ({"messages": [{"content": None}]}, {"messages": [{"content": None}]}),
        ({"tools": []}, {}),
        ({"tools": None}, {}),
        ({"tool_choice": None}, {}),
        ({"tool_choice": "none"}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": {"type": "none"}}, {}),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({"tools": [], "tool_choice": "none"}, {}),
        ({"tools": None, "tool_choice": "auto"}, {}),
        ({"tools": [], "tool_choice": None}, {}),
        ({"tools": [TOOL], "tool_choice": None}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "none"}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": "required"}),
        ({"tools": "x", "tool_choice": "required"}, {"tools": "x", "tool_choice": "required"}),
    ],
)
def test_fields_with_the_meaning_of_absence_are_removed(given: dict[str, Any], left: dict[str, Any]) -> None:
    document = dict(given)

    assert drop_empty_fields(document) == (document != given)
    assert document == left


@pytest.mark.parametrize("tools", [{}, {"tools": []}, {"tools": None}])
@pytest.mark.parametrize(
    "choice", ["required", "any", "f", {"type": "function"}, {"type": "any"}, {}, [], 5, {"type": []}]
)
def test_a_tool_choice_without_tools_is_refused(tools: dict[str, Any], choice: Any) -> None:
    with pytest.raises(ClientError, match="no tools") as refused:
        drop_empty_fields({**tools, "tool_choice": choice})

    assert refused.value.param == "tool_choice"
