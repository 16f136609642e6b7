"""Splits the last output of a stream whose reader is late.

Where vLLM's generators are slower than the engine, its queue merges outputs, and the text of seconds can end up in the
chunk with the finish reason. Many clients read only the reason of that chunk.
"""

from __future__ import annotations

import copy
from typing import Any


class FinalOutputSplitter:
    """Splits last outputs that vLLM's queue has merged, but not those that the engine has made."""

    def __init__(self, config: Any) -> None:
        """`config` is vLLM's."""
        speculative = getattr(config.speculative_config, "num_speculative_tokens", None) or 0
        interval = getattr(config.scheduler_config, "stream_interval", 1) or 1
        self._max_tokens = max(1 + speculative, interval)
        """The most tokens of one output that is not merged."""

    def split(self, output: Any) -> tuple[Any, ...]:
        """The same output, or two: its text without endings, then its endings."""
        merged = [
            choice
            for choice in output.outputs
            # Log probabilities belong to their tokens, and their streams are not merged.
            if choice.finish_reason is not None and len(choice.token_ids) > self._max_tokens and choice.logprobs is None
        ]
        if not merged:
            return (output,)
        text, ending = copy.copy(output), copy.copy(output)
        text.finished = False
        text.outputs = [_without_ending(choice) if choice in merged else choice for choice in output.outputs]
        ending.outputs = [_ending(choice) for choice in merged]
        return text, ending


def _without_ending(choice: Any) -> Any:
    one = copy.copy(choice)
    one.finish_reason = one.stop_reason = None
    return one


def _ending(choice: Any) -> Any:
    one = copy.copy(choice)
    one.text, one.token_ids = "", []
    return one
