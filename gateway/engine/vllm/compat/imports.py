"""Modules of vLLM that are imported when they are needed, from the place where this release has them."""

from __future__ import annotations

from typing import Any


def cli_args() -> Any:
    """The module of `vllm serve`'s arguments."""
    try:
        # vLLM 0.32.
        from vllm.entrypoints.launchers import cli_args as module
    except ImportError:
        # vLLM 0.33.
        from vllm.entrypoints.common import cli_args as module
    return module
