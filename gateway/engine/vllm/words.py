"""Why an engine could not start, in one sentence."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError


def why(error: Exception, words: Path, model: str) -> str:
    """One sentence for a failed start: the engine process's own last error where it left one."""
    cause = str(error).strip().splitlines()
    text = cause[0] if cause else type(error).__name__
    if isinstance(error, ValidationError):
        # Its own first line only counts.
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
    if words.exists():
        lines = [line for line in words.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if ": " in line and line.split(":", 1)[0].endswith(("Error", "Exception"))]
        if named:
            text = named[-1].split(": ", 1)[1]
    if "is not a local folder and is not a valid model identifier" in text or "Repo id must" in text:
        text = f"{model} is neither a local folder nor a model that the hub knows."
    if "No module named 'ray'" in text:
        text = "Ray is asked for, but not installed in this environment (`pip install ray`)."
    if "cache blocks" in text or "KV cache" in text:
        text = (
            "there is not enough memory for the KV cache. Give it more with kv_cache_memory_bytes or "
            f"gpu_memory_utilization, or lower max_model_len. vLLM says: {text}"
        )
    return f"The engine could not start: {text}"


__all__ = ["why"]
