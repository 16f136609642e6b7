"""A late reader's last output, in two.

Where vLLM's generators fall behind, its queue merges what the engine says, and the text of seconds can end up in the
chunk with the finish reason. Many clients look only at the reason of that one.
"""

from __future__ import annotations

import copy
from typing import Any


class FinalOutputSplitter:
    """Tells merged endings from those that the engine has made so."""

    def __init__(self, config: Any) -> None:
        """`config` is vLLM's."""
        speculative = getattr(config.speculative_config, "num_speculative_tokens", None) or 0
        interval = getattr(config.scheduler_config, "stream_interval", 1) or 1
        self._at_once = max(1 + speculative, interval)
        """Tokens that one output has at the most, if it is not merged."""

    def split(self, output: Any) -> tuple[Any, ...]:
        """The same output, or what it says without its endings, and these."""
        merged = [
            choice
            for choice in output.outputs
            # Log probabilities belong to their tokens, and their streams are not merged.
            if choice.finish_reason is not None and len(choice.token_ids) > self._at_once and choice.logprobs is None
        ]
        if not merged:
            return (output,)
        said, ending = copy.copy(output), copy.copy(output)
        said.finished = False
        said.outputs = [_without_ending(choice) if choice in merged else choice for choice in output.outputs]
        ending.outputs = [_ending(choice) for choice in merged]
        return said, ending


def _without_ending(choice: Any) -> Any:
    one = copy.copy(choice)
    one.finish_reason = one.stop_reason = None
    return one


def _ending(choice: Any) -> Any:
    one = copy.copy(choice)
    one.text, one.token_ids = "", []
    return one


__all__ = ["FinalOutputSplitter"]
