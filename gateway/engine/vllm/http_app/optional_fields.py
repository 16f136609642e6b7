"""Fields of a request body that have the meaning of an absent field.

Clients send every field that they know, with `null` or an empty list where their user set nothing, and vLLM's request
models agree neither with each other nor with the official servers on which of these they accept. So such fields are
removed before validation.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ClientError

_NO_CHOICE = frozenset({"none", "auto"})


def drop_empty_fields(document: dict[str, Any]) -> bool:
    """Remove the fields that mean the same as their absence from a parsed body, in place. Returns whether there were
    any.

    They are those with `null`, `tools` without a tool, and a `tool_choice` that selects no tool where there are none.
    Raises ClientError for a `tool_choice` that selects a tool where there are none.
    """
    empty = [name for name, value in document.items() if value is None]
    if document.get("tools") == []:
        empty.append("tools")
    for name in empty:
        del document[name]
    choice = document.get("tool_choice")
    if choice is None or "tools" in document:
        return bool(empty)
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not isinstance(kind, str) or kind not in _NO_CHOICE:
        raise ClientError(
            "tool_choice: there are no tools to choose from; name them in `tools`, or leave `tool_choice` out.",
            param="tool_choice",
        )
    del document["tool_choice"]
    return True
