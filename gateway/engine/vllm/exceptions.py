"""Exceptions of ours that pass through vLLM's code, so they are subclasses of the classes that it handles."""

from __future__ import annotations

from vllm.v1.engine.exceptions import EngineDeadError


class EngineKilledByRequest(EngineDeadError):  # type: ignore[misc,unused-ignore]
    """Engine after engine has died while it ran this request, which is not sent again."""


__all__ = ["EngineKilledByRequest"]
