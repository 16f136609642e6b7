"""Names that are in other modules in vLLM 0.23 or 0.33 than in 0.32, the pinned one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES: dict[str, tuple[str, ...]] = {
    # 0.32 and 0.33, then 0.23.
    "build_app": ("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server"),
    "init_app_state": (
        "vllm.entrypoints.launchers.api_server.app_state",
        "vllm.entrypoints.openai.api_server",
    ),
    # 0.32, 0.33, 0.23.
    "make_arg_parser": (
        "vllm.entrypoints.launchers.cli_args",
        "vllm.entrypoints.common.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
    "propagate_flash_late_interaction": (
        "vllm.entrypoints.launchers.cli_args",
        "vllm.entrypoints.common.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
    "validate_parsed_serve_args": (
        "vllm.entrypoints.launchers.cli_args",
        "vllm.entrypoints.common.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
    "ErrorResponse": ("vllm.entrypoints.serve.engine.protocol", "vllm.entrypoints.openai.engine.protocol"),
    "create_error_response": ("vllm.entrypoints.serve", "vllm.entrypoints.serve.utils.error_response"),
    "should_include_usage": ("vllm.entrypoints.serve.utils.api_utils", "vllm.entrypoints.utils"),
}


def find(name: str) -> Any:
    """The object of that name in this vLLM. Raises ImportError if no known module has it."""
    for home in _HOMES[name]:
        try:
            return getattr(import_module(home), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this vLLM has no {name} in any of {', '.join(_HOMES[name])}")


__all__ = ["find"]
