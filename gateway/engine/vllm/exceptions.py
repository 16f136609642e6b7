"""Exceptions of ours that pass through vLLM's code."""

from __future__ import annotations

from vllm.v1.engine.exceptions import EngineDeadError


class Aborted(Exception):
    """A request ended because it was aborted, which is never a good end."""


class EngineKilledByRequest(EngineDeadError):  # type: ignore[misc,unused-ignore]
    """Engine after engine has died while it ran this request, which is not sent again."""
