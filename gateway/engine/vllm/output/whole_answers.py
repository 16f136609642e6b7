"""Makes whole answers with log probabilities some tokens at a time, beside the event loop.

vLLM makes an object for every candidate of every token of every choice, and one document of all of them, in one turn of
the loop: for 16 choices of 1,000 tokens with 20 candidates each that takes seconds and half a gigabyte. Here its own
functions make the same objects for a few tokens at a time, in a thread, and only their JSON is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import orjson
from pydantic import PrivateAttr
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionLogProbs
from vllm.entrypoints.openai.completion.protocol import CompletionLogProbs

from gateway.offload import Offload, checkpoint

IS_WHOLE_ANSWER: ContextVar[bool] = ContextVar("sluice_whole", default=False)
"""Whether the running task makes a whole answer of which `document` will be made."""

# This many candidates take a few milliseconds.
_FEW = 512
# This many tokens are processed in one call, which holds the interpreter's lock.
_TOKENS = 16

Make = Callable[..., Any]
"""vLLM's function that makes the objects, of token ids, their candidates, and further arguments by name."""


class LaterChatLogProbs(ChatCompletionLogProbs):  # type: ignore[misc,unused-ignore]
    """Replaces log probabilities, which are made with the document instead."""

    _parts: Any = PrivateAttr()

    def json_document(self) -> bytes:
        parts = [orjson.dumps(part.model_dump(mode="json")["content"])[1:-1] for part in self._parts()]
        return b'{"content":[' + b",".join(parts) + b"]}"


class LaterCompletionLogProbs(CompletionLogProbs):  # type: ignore[misc,unused-ignore]
    """The same for text completions, whose log probabilities are four lists."""

    _parts: Any = PrivateAttr()

    def json_document(self) -> bytes:
        lists: dict[str, list[bytes]] = {}
        for part in self._parts():
            for name, value in part.model_dump(mode="json").items():
                lists.setdefault(name, []).append(orjson.dumps(value)[1:-1])
        fields = [b'"%s":[%s]' % (name.encode(), b",".join(parts)) for name, parts in lists.items()]
        return b"{" + b",".join(fields) + b"}"


def _is_large(token_ids: Any, candidates: Any) -> bool:
    return IS_WHOLE_ANSWER.get() and len(token_ids) > _TOKENS and len(token_ids) * len(candidates[-1] or ()) > _FEW


def chat_logprobs(make: Make, token_ids: Any, candidates: Any, **options: Any) -> Any:
    """The log probabilities, or their replacement where they are many."""
    if not _is_large(token_ids, candidates):
        return make(token_ids, candidates, **options)

    def parts() -> Any:
        for at in range(0, len(token_ids), _TOKENS):
            checkpoint()
            yield make(token_ids[at : at + _TOKENS], candidates[at : at + _TOKENS], **options)

    later = LaterChatLogProbs()
    later._parts = parts
    return later


def completion_logprobs(make: Make, token_ids: Any, candidates: Any, **options: Any) -> Any:
    """The log probabilities, or their replacement where they are many."""
    if not _is_large(token_ids, candidates):
        return make(token_ids, candidates, **options)

    def parts() -> Any:
        offset = options.pop("initial_text_offset", 0)
        for at in range(0, len(token_ids), _TOKENS):
            checkpoint()
            end = at + _TOKENS
            part = make(token_ids[at:end], candidates[at:end], **options, initial_text_offset=offset)
            offset = part.text_offset[-1] + len(part.tokens[-1])
            yield part

    later = LaterCompletionLogProbs()
    later._parts = parts
    return later


async def document(made: Any, offload: Offload, tenant: str | None) -> bytes:
    """The answer as JSON."""
    later = [
        (number, choice.logprobs)
        for number, choice in enumerate(made.choices)
        if isinstance(choice.logprobs, LaterChatLogProbs | LaterCompletionLogProbs)
    ]
    if not later:
        return orjson.dumps(made.model_dump(mode="json"))

    def dump() -> bytes:
        whole = made.model_dump(mode="json")
        for number, logprobs in later:
            whole["choices"][number]["logprobs"] = orjson.Fragment(logprobs.json_document())
        return orjson.dumps(whole)

    return await offload.run(dump, size=0, tenant=tenant)
