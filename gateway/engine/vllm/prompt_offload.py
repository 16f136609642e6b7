"""Where the work on a prompt is done: of a long one aside, of a short one on the event loop.

One loop serves every stream, so 100,000 tokens of one request must not hold up the others. vLLM tokenizes and applies
templates in a thread; three other things it does not, and each takes milliseconds (figures: 100,000 tokens, or a
thousand messages, on a 2.5 GHz Xeon). For a short prompt a thread costs more than it saves.
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
# As many short texts as these are tokenized in one turn of the loop; a request may bring thousands.
SHORT_TOGETHER = 4 * SHORT_TO_TOKENIZE
# Tokenizing so many characters takes 50 ms, and short prompts should not wait for that.
LONG_TO_TOKENIZE = 2**17
# Turning tokens into text keeps the interpreter to itself: 20 ms for so many.
LONGEST_TO_DECODE = 2**17
# Any model's tokenizer may be asked about so many characters.
LONGEST_TO_COUNT = 2**20
# Log probabilities of a prompt that vLLM writes into each choice: 0.1 s for so many.
MOST_PROMPT_LOGPROBS = 100_000
# What rendering a message costs, in characters to tokenize.
_CHARS_PER_MESSAGE = 200

Run = Callable[[Callable[[], Any], int], Awaitable[Any]]
"""Runs work aside that costs as much as so many characters."""


def install_prompt_offload(llm: Any, *, foreign_templates: bool, timeout_s: float) -> None:
    """Do it for every request of this AsyncLLM from now on, ours or of vLLM's own app. `foreign_templates`: whether
    clients may bring chat templates of their own; `timeout_s`: how long rendering one prompt may take."""
    run = make_runner(timeout_s)
    replace_decoder_priming(llm.output_processor)
    replace_message_rendering(llm.renderer, run, foreign_templates=foreign_templates)
    replace_tokenization(llm.renderer, run)
    replace_detokenization(llm.renderer, run)
    replace_token_id_check(llm)


def make_runner(timeout_s: float) -> Run:
    """Threads for prompts: whoever brings a long one does not hold up short ones, and nobody waits for ever."""
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


def replace_tokenization(renderer: Any, run: Run) -> None:
    """Tokenize short texts on the loop, some in a turn: a thread takes as long to be woken, and waits for the
    interpreter besides. Refuse those that no context could hold, also where nothing is to be generated."""
    left = SHORT_TOGETHER
    resting = False

    def rest() -> None:
        nonlocal left, resting
        left, resting = SHORT_TOGETHER, False

    async def tokenize(prompt: Any, params: Any) -> Any:
        nonlocal left, resting
        text = prompt["prompt"]
        if len(text) <= min(SHORT_TO_TOKENIZE, left):
            left -= len(text)
            if not resting:
                resting = True
                asyncio.get_running_loop().call_soon(rest)
            return renderer._tokenize_prompt(prompt, params)
        if params.max_input_tokens is None:
            longest = max(LONGEST_TO_COUNT, renderer.model_config.max_model_len * _chars_per_token(renderer.tokenizer))
            if len(text) > longest:
                raise VLLMValidationError(
                    f"The text has {len(text)} characters; the model's context holds at most {longest}.",
                    parameter="input_text",
                )
        return await run(partial(renderer._tokenize_prompt, prompt, params), len(text))

    renderer._tokenize_prompt_async = tokenize


def _chars_per_token(tokenizer: Any) -> int:
    return int(getattr(tokenizer, "max_chars_per_token", 1))


def replace_detokenization(renderer: Any, run: Run) -> None:
    """Turn token ids into text in a thread of ours, and not more of them than a context has."""

    async def decode(token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        longest = max(LONGEST_TO_DECODE, renderer.model_config.max_model_len)
        if len(token_ids) > longest:
            raise VLLMValidationError(
                f"There are {len(token_ids)} tokens; at most {longest} are turned into text at once.",
                parameter="tokens",
            )
        return await run(partial(renderer._decode, token_ids, *args, **kwargs), len(token_ids))

    renderer._async_tokenizer_decode = decode


def replace_message_rendering(renderer: Any, run: Run, *, foreign_templates: bool) -> None:
    """Go through the messages of long chats in a thread of ours, which applies the template, too: 10 ms. And
    render short ones on the loop, unless the template is somebody else's, who may take his time."""
    if not hasattr(renderer, "_render_with_timeout"):
        # One for tokenizers that are not Hugging Face's; it has ways of its own.
        return
    at_once = renderer.render_messages_async

    async def render_messages_async(messages: list[Any], params: Any) -> Any:
        if not all(map(_is_text, messages)):
            return await at_once(messages, params)
        if len(messages) <= SHORT_TO_RENDER:
            if foreign_templates or params.chat_template_kwargs.get("tools") or not _is_short(messages):
                return await at_once(messages, params)
            return renderer.render_messages(messages, params)
        work = run(partial(renderer.render_messages, messages, params), _CHARS_PER_MESSAGE * len(messages))
        return await renderer._render_with_timeout(work)

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


def replace_token_id_check(llm: Any) -> None:
    """Look for token ids that are out of the vocabulary in a thread, 2 ms, and some at a time: one look at all of them
    would keep the interpreter to itself."""
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


def check_prompt_logprobs(tokens: int, wanted: int, model_config: Any) -> None:
    """Refuse what vLLM would validate and write in one turn of the loop, in every choice anew."""
    each = model_config.get_vocab_size() if wanted < 0 else wanted + 1
    if tokens * each > MOST_PROMPT_LOGPROBS:
        raise VLLMValidationError(
            f"prompt_logprobs: {tokens} prompt tokens with {each} values each are more than {MOST_PROMPT_LOGPROBS}, "
            "the most that are given at once; ask for fewer, or send the prompt in parts.",
            parameter="prompt_logprobs",
        )


__all__ = [
    "check_prompt_logprobs",
    "install_prompt_offload",
    "make_runner",
    "replace_decoder_priming",
    "replace_detokenization",
    "replace_message_rendering",
    "replace_token_id_check",
    "replace_tokenization",
]
