"""Replaces where vLLM processes prompts: long prompts in a thread, short ones on the event loop.

One loop serves every stream, so a request with 100,000 tokens must not delay the others. vLLM tokenizes and applies
templates in a thread, but runs three other steps on the loop, each of which takes milliseconds (figures: 100,000
tokens, or a thousand messages, on a 2.5 GHz Xeon). For a short prompt a thread costs more than it saves.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, FastIncrementalDetokenizer

from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm.daemon_threads import RENDER_THREADS
from gateway.offload import Offload

# Decoding this many tokens takes 0.1 ms.
SHORT_TO_DECODE = 512
# A character takes up to four tokens, and the end of a chat template has a few tokens without text.
TAIL = 64
# Checking this many token ids takes 0.2 ms, twice the cost of a thread.
SHORT_TO_CHECK = 8192
# This many characters take 0.1 ms, about the cost of a thread.
SHORT_TO_TOKENIZE = 2048
# This many messages take 0.3 ms.
SHORT_TO_RENDER = 32
# Characters of short texts that are tokenized in one iteration of the loop; a request may have thousands of texts.
SHORT_TOGETHER = 4 * SHORT_TO_TOKENIZE
# Tokenizing this many characters takes 50 ms, for which short prompts should not wait.
LONG_TO_TOKENIZE = 2**17
# Decoding tokens holds the interpreter's lock: 20 ms for this many.
LONGEST_TO_DECODE = 2**17
# This many characters may be tokenized whatever the model's context is.
LONGEST_TO_COUNT = 2**20
# Log probabilities of a prompt, which vLLM writes into each choice: 0.1 s for this many.
MOST_PROMPT_LOGPROBS = 100_000
# The cost of rendering a message, in characters to tokenize.
_CHARS_PER_MESSAGE = 200

Run = Callable[[Callable[[], Any], int], Awaitable[Any]]
"""Runs work in a thread, given its cost in characters to tokenize."""


def install_prompt_offload(llm: Any, *, foreign_templates: bool, timeout_s: float) -> None:
    """Replace the steps for all requests of this AsyncLLM, also those of vLLM's own app. `foreign_templates`: whether
    clients may send chat templates; `timeout_s`: the limit for rendering one prompt."""
    run = make_runner(timeout_s)
    replace_decoder_priming(llm.output_processor)
    replace_message_rendering(llm.renderer, run, foreign_templates=foreign_templates)
    replace_tokenization(llm.renderer, run)
    replace_detokenization(llm.renderer, run)
    replace_token_id_check(llm)


def make_runner(timeout_s: float) -> Run:
    """Threads for prompts, where a long one does not delay short ones, and each wait is bounded."""
    offload = Offload("sluice-render", RENDER_THREADS, LONG_TO_TOKENIZE)

    async def run(work: Callable[[], Any], size: int) -> Any:
        stats = CURRENT_STATS.get()
        try:
            async with asyncio.timeout(timeout_s):
                return await offload.run(work, size=size, tenant=None if stats is None else stats.caller.owner)
        except TimeoutError:
            raise VLLMValidationError(
                f"Rendering this prompt took longer than {timeout_s:g} s (server.prepare_timeout_s).",
                parameter="input_text",
            ) from None

    return run


def replace_decoder_priming(output_processor: Any) -> None:
    """Replaces `OutputProcessor.add_request`, to prime the decoders of long prompts with their last tokens only.

    vLLM primes with the whole prompt: that takes 0.7 ms to pass, and is decoded with the request's first token, 20 ms
    in one call that holds the interpreter's lock, so that a thread would not help. The decoder needs the prompt only to
    find where the new text begins; from the second piece on it keeps only the tokens of the last one.
    """
    add, states = output_processor.add_request, output_processor.request_states

    def add_request(request: Any, *args: Any, **kwargs: Any) -> None:
        prompt = request.prompt_token_ids
        # A request whose input continues has a decoder in use already.
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
    """Whether a decoder continues after `tail` as it would after the whole prompt."""
    if not isinstance(detokenizer, BaseIncrementalDetokenizer):
        # This decoder makes no text.
        return True
    if type(detokenizer) is not FastIncrementalDetokenizer:
        return False
    text = detokenizer.tokenizer.decode(tail, skip_special_tokens=detokenizer.skip_special_tokens)
    # Some decoders drop a space at the start of a text, and a tail may end within a character.
    return bool(text) and not text.endswith("\N{REPLACEMENT CHARACTER}")


def replace_tokenization(renderer: Any, run: Run) -> None:
    """Replaces `_tokenize_prompt_async`, to tokenize short texts on the loop, a few in each iteration: waking a thread
    takes as long, and the thread waits for the interpreter's lock. Refuses texts longer than any context, also where
    nothing is generated."""
    left = SHORT_TOGETHER
    is_reset_due = False

    def reset() -> None:
        nonlocal left, is_reset_due
        left, is_reset_due = SHORT_TOGETHER, False

    async def tokenize(prompt: Any, params: Any) -> Any:
        nonlocal left, is_reset_due
        text = prompt["prompt"]
        if len(text) <= min(SHORT_TO_TOKENIZE, left):
            left -= len(text)
            if not is_reset_due:
                is_reset_due = True
                asyncio.get_running_loop().call_soon(reset)
            return renderer._tokenize_prompt(prompt, params)
        if params.max_input_tokens is None:
            chars_per_token = int(getattr(renderer.tokenizer, "max_chars_per_token", 1))
            longest = max(LONGEST_TO_COUNT, renderer.model_config.max_model_len * chars_per_token)
            if len(text) > longest:
                raise VLLMValidationError(
                    f"The text has {len(text)} characters; the model's context holds at most {longest}.",
                    parameter="input_text",
                )
        return await run(partial(renderer._tokenize_prompt, prompt, params), len(text))

    renderer._tokenize_prompt_async = tokenize


def replace_detokenization(renderer: Any, run: Run) -> None:
    """Replaces `_async_tokenizer_decode`, to decode in a thread of ours, and no more tokens than a context has."""

    async def decode(token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        longest = max(LONGEST_TO_DECODE, renderer.model_config.max_model_len)
        if len(token_ids) > longest:
            raise VLLMValidationError(
                f"There are {len(token_ids)} tokens; at most {longest} can be decoded at once.",
                parameter="tokens",
            )
        return await run(partial(renderer._decode, token_ids, *args, **kwargs), len(token_ids))

    renderer._async_tokenizer_decode = decode


def replace_message_rendering(renderer: Any, run: Run, *, foreign_templates: bool) -> None:
    """Replaces `render_messages_async`, to parse the messages of long chats in the thread that applies the template,
    which takes 10 ms, and to render short chats on the loop, unless the template is a client's and may be slow."""
    if not hasattr(renderer, "_render_with_timeout"):
        # Renderers for tokenizers that are not Hugging Face's work differently.
        return
    original = renderer.render_messages_async

    async def render_messages_async(messages: list[Any], params: Any) -> Any:
        if not all(map(_is_text, messages)):
            return await original(messages, params)
        if len(messages) <= SHORT_TO_RENDER:
            if foreign_templates or params.chat_template_kwargs.get("tools") or not _is_short(messages):
                return await original(messages, params)
            return renderer.render_messages(messages, params)
        work = run(partial(renderer.render_messages, messages, params), _CHARS_PER_MESSAGE * len(messages))
        return await renderer._render_with_timeout(work)

    renderer.render_messages_async = render_messages_async


def _is_short(messages: list[Any]) -> bool:
    """Whether these messages have nothing but text, and little of it."""
    left = SHORT_TO_TOKENIZE
    for message in messages:
        if not isinstance(message, dict) or message.keys() - {"role", "content", "name"}:
            return False
        content = message.get("content") or ""
        for text in [content] if isinstance(content, str) else [part.get("text") for part in content]:
            if not isinstance(text, str):
                # vLLM refuses this content.
                return False
            left -= len(text)
    return left >= 0


def _is_text(message: Any) -> bool:
    """Whether a message has nothing to fetch. An iterator may have, and can be read only once."""
    content = message.get("content") if isinstance(message, dict) else message
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def replace_token_id_check(llm: Any) -> None:
    """Replaces `add_request` and `validate_token_ids`, to check that token ids are in the vocabulary in a thread, which
    takes 2 ms, and in parts: one check of all ids would hold the interpreter's lock."""
    add, renderer = llm.add_request, llm.renderer
    validate = renderer.validate_token_ids
    checked: list[list[int]] = []

    async def add_request(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if isinstance(ids, list) and args and getattr(args[0], "prompt_logprobs", None):
            check_prompt_logprobs(len(ids), args[0].prompt_logprobs, renderer.model_config)
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


def check_prompt_logprobs(tokens: int, requested: int, model_config: Any) -> None:
    """Refuse more log probabilities than the loop has time for: vLLM validates and writes them in one iteration, for
    every choice again."""
    each = model_config.get_vocab_size() if requested < 0 else requested + 1
    if tokens * each > MOST_PROMPT_LOGPROBS:
        raise VLLMValidationError(
            f"prompt_logprobs: {tokens} prompt tokens with {each} values each exceed the limit of "
            f"{MOST_PROMPT_LOGPROBS} values; request fewer, or send the prompt in parts.",
            parameter="prompt_logprobs",
        )
