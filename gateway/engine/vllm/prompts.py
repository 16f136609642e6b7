"""Where the work on a prompt is done: of a long one aside, of a short one on the event loop.

One loop serves every stream, so 100,000 tokens of one request must not hold up the others. vLLM tokenizes and applies
templates in a thread; three other things it does not, and each takes milliseconds (figures: 100,000 tokens, or a
thousand messages, on a 2.5 GHz Xeon). For a short prompt a thread costs more than it saves.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from vllm.utils.async_utils import make_async
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, FastIncrementalDetokenizer

# Decoding so many tokens takes 0.1 ms.
SHORT_TO_DECODE = 512
# Characters take up to four tokens, and what ends a chat template has a few that say nothing.
TAIL = 64
# Looking at so many takes 0.2 ms, twice what a thread costs.
SHORT_TO_CHECK = 8192
# So many characters take 0.1 ms, about what a thread costs.
SHORT_TO_TOKENIZE = 2048
# So many messages take 0.3 ms.
SHORT_TO_RENDER = 32


def adopt(llm: Any, *, foreign_templates: bool) -> None:
    """Do it for every request of this AsyncLLM from now on, ours or of vLLM's own app. `foreign_templates`: whether
    clients may bring chat templates of their own."""
    prime_with_tails(llm.output_processor)
    render_aside(llm.renderer, foreign_templates=foreign_templates)
    tokenize_here(llm.renderer)
    check_aside(llm)


def prime_with_tails(output_processor: Any) -> None:
    """Prime the decoders of long prompts with their last tokens.

    vLLM primes with the whole prompt: it takes 0.7 ms to hand it over, and all of it is turned into text with the
    request's first token, 20 ms in one call that keeps the interpreter to itself, so that a thread would not help. All
    that the decoder wants of it is where the new text begins; from the second piece on it remembers no more than the
    tokens of the last one.
    """
    add, states = output_processor.add_request, output_processor.request_states

    def add_request(request: Any, *args: Any, **kwargs: Any) -> None:
        prompt = request.prompt_token_ids
        # A request whose input goes on has a decoder that is in use already.
        if prompt is None or len(prompt) <= SHORT_TO_DECODE or request.request_id in states:
            add(request, *args, **kwargs)
            return
        shorter = copy.copy(request)
        shorter.prompt_token_ids = list(prompt[-TAIL:])
        add(shorter, *args, **kwargs)
        state = states[request.request_id]
        state.prompt_token_ids, state.prompt_len = prompt, len(prompt)
        if not _is_primed(state.detokenizer, shorter.prompt_token_ids):
            state.detokenizer = type(state.detokenizer).from_new_request(output_processor.tokenizer, request)

    output_processor.add_request = add_request


def _is_primed(detokenizer: Any, tail: list[int]) -> bool:
    """Whether a decoder goes on behind `tail` as it would behind the whole prompt."""
    if not isinstance(detokenizer, BaseIncrementalDetokenizer):
        # It has no text to make.
        return True
    if type(detokenizer) is not FastIncrementalDetokenizer:
        return False
    text = detokenizer.tokenizer.decode(tail, skip_special_tokens=detokenizer.skip_special_tokens)
    # Where a text begins some decoders drop a space, and half a character at its end is a case of its own.
    return bool(text) and not text.endswith("\N{REPLACEMENT CHARACTER}")


def tokenize_here(renderer: Any) -> None:
    """Tokenize short texts on the loop: a thread takes as long to be woken, and waits for the interpreter besides."""
    aside = renderer._tokenize_prompt_async

    async def tokenize(prompt: Any, params: Any) -> Any:
        if len(prompt["prompt"]) > SHORT_TO_TOKENIZE:
            return await aside(prompt, params)
        return renderer._tokenize_prompt(prompt, params)

    renderer._tokenize_prompt_async = tokenize


def render_aside(renderer: Any, *, foreign_templates: bool) -> None:
    """Go through the messages of long chats in the renderer's own thread, which applies the template anyway: 10 ms. And
    render short ones on the loop, unless the template is somebody else's, who may take his time."""
    if not hasattr(renderer, "_render_with_timeout"):
        # One for tokenizers that are not Hugging Face's; it has ways of its own.
        return
    at_once = renderer.render_messages_async
    aside = make_async(renderer.render_messages, executor=renderer._executor)

    async def render_messages_async(messages: list[Any], params: Any) -> Any:
        if not all(map(_is_text, messages)):
            return await at_once(messages, params)
        if len(messages) <= SHORT_TO_RENDER:
            if foreign_templates or params.chat_template_kwargs.get("tools") or not _is_short(messages):
                return await at_once(messages, params)
            return renderer.render_messages(messages, params)
        return await renderer._render_with_timeout(aside(messages, params))

    renderer.render_messages_async = render_messages_async


def _is_short(messages: list[Any]) -> bool:
    """Whether these messages of text have nothing else, and not much of it."""
    left = SHORT_TO_TOKENIZE
    for message in messages:
        if not isinstance(message, dict) or message.keys() - {"role", "content", "name"}:
            return False
        content = message.get("content") or ""
        for text in [content] if isinstance(content, str) else [part.get("text") for part in content]:
            if not isinstance(text, str):
                # vLLM knows how to refuse it.
                return False
            left -= len(text)
    return left >= 0


def _is_text(message: Any) -> bool:
    """Whether a message brings nothing that would have to be fetched. An iterator could, and can be read only once."""
    content = message.get("content") if isinstance(message, dict) else message
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def check_aside(llm: Any) -> None:
    """Look for token ids that are out of the vocabulary in a thread, 2 ms, and some at a time: one look at all of them
    would keep the interpreter to itself."""
    add, renderer = llm.add_request, llm.renderer
    validate = renderer.validate_token_ids
    checked: list[list[int]] = []

    async def add_request(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if not isinstance(ids, list) or len(ids) <= SHORT_TO_CHECK:
            return await add(request_id, prompt, *args, **kwargs)
        await asyncio.to_thread(validate_in_parts, ids)
        checked.append(ids)
        try:
            return await add(request_id, prompt, *args, **kwargs)
        finally:
            checked[:] = [one for one in checked if one is not ids]

    def validate_in_parts(ids: list[int]) -> None:
        for at in range(0, len(ids), SHORT_TO_CHECK):
            validate(ids[at : at + SHORT_TO_CHECK])

    def validate_token_ids(token_ids: Any, **kwargs: Any) -> None:
        if not any(one is token_ids for one in checked):
            validate(token_ids, **kwargs)

    llm.add_request = add_request
    renderer.validate_token_ids = validate_token_ids


__all__ = ["adopt", "check_aside", "prime_with_tails", "render_aside", "tokenize_here"]
