"""What a request body may say in two ways: by a value that means nothing, or by leaving the field out.

Clients write every field they know, with `null` or an empty list where their user gave nothing, and vLLM's request
models agree neither with each other nor with the official servers on which of that they take. So it is left out before
they look.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ClientError

_NO_CHOICE = frozenset({"none", "auto"})


def drop_empty_fields(document: dict[str, Any]) -> bool:
    """Remove what means as much as nothing from a parsed body, in place; whether there was any.

    That is `null`, `tools` without a tool, and a `tool_choice` that asks for no tool where there are none. Raises
    ClientError for one that asks for a tool all the same.
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


__all__ = ["drop_empty_fields"]
