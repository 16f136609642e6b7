"""Which requests can go on with another engine after the death of the first one, and in which form. Pure.

A dead engine takes its KV cache along, not the tokens that we have received. Prompt and tokens together are a prompt
whose continuation is the one that the dead engine would have generated, unless the rest depends on where the output
began, or on a state that only the engine had. The text needs no care: vLLM's detokenizer lives in our process and keeps
its state, also in the middle of a UTF-8 character or of a stop string.
"""

from __future__ import annotations

import copy
from typing import Any


def replay_obstacle(request: Any, tokens: int) -> str | None:
    """Why this EngineCoreRequest, of which `tokens` tokens have been received, cannot go on faithfully; None if it can.

    Before its first token a request can be sent again as it was, if all of it is still here.
    """
    if request.mm_features:
        return "its images or audio were held by the dead engine"
    if request.resumable:
        return "its input is streamed"
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "its prompt is not made of tokens alone"
    params = request.sampling_params
    if params is None or not tokens:
        # A pooling request is answered in one piece.
        return None
    if (params.extra_args or {}).get("kv_transfer_params"):
        return "its KV cache comes from another engine"
    for field, reason in _OBSTACLES.items():
        if getattr(params, field, None):
            return reason
    if params.seed is not None and params.temperature > 0:
        return "a seeded random generator would start anew"
    return None


# Sampling parameters that depend on the output alone, or have a state in the engine.
_OBSTACLES = {
    "presence_penalty": "presence_penalty counts output tokens only",
    "frequency_penalty": "frequency_penalty counts output tokens only",
    "structured_outputs": "its grammar would start anew",
    "bad_words": "bad_words looks at output tokens only",
    "thinking_token_budget": "its thinking budget counts output tokens only",
    "repetition_detection": "repetition_detection looks at output tokens only",
    "watermarking": "its watermark has a state",
}


def continuation(request: Any, tokens: list[int]) -> Any:
    """A copy of the EngineCoreRequest that goes on behind `tokens`."""
    again = copy.copy(request)
    if not tokens:
        return again
    again.prompt_token_ids = [*request.prompt_token_ids, *tokens]
    params = request.sampling_params.clone()
    if params.max_tokens is not None:
        params.max_tokens -= len(tokens)
    params.min_tokens = max(0, params.min_tokens - len(tokens))
    # They came with the first token.
    params.prompt_logprobs = None
    again.sampling_params = params
    return again


def without_queueing(events: list[Any]) -> list[Any]:
    """The events without those of queueing. vLLM uses the last time of queueing and the first of scheduling: for a
    request that an earlier engine has scheduled, the difference would be a negative time in the queue."""
    return [event for event in events if event.type.name != "QUEUED"]
