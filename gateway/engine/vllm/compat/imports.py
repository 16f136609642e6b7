"""Functions of vLLM that are imported when they are needed, from the module in which this release has them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# vLLM 0.32, then 0.33.
_CLI_ARGS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args")
_HOMES: dict[str, tuple[str, ...]] = {
    "build_app": ("vllm.entrypoints.launchers.app",),
    "init_app_state": ("vllm.entrypoints.launchers.api_server.app_state",),
    "make_arg_parser": _CLI_ARGS,
    "propagate_flash_late_interaction": _CLI_ARGS,
    "validate_parsed_serve_args": _CLI_ARGS,
    "ErrorResponse": ("vllm.entrypoints.serve.engine.protocol",),
    "create_error_response": ("vllm.entrypoints.serve",),
    "should_include_usage": ("vllm.entrypoints.serve.utils.api_utils",),
}


def find(name: str) -> Any:
    """The object of that name in this vLLM. Raises ImportError if no known module has it."""
    for home in _HOMES[name]:
        try:
            return getattr(import_module(home), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this vLLM has no {name} in any of {', '.join(_HOMES[name])}")
