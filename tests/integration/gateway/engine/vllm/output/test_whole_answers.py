"""Whole answers with log probabilities: byte for byte as from vLLM's objects, and the loop is free meanwhile."""

from __future__ import annotations

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gateway.offload import Offload


@pytest.fixture(scope="module")
def whole_answers() -> Any:
    """The module; importing it imports vLLM, which takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gateway.engine.vllm.output import whole_answers

    return whole_answers


def candidates(tokens: int, width: int) -> tuple[list[int], list[Any]]:
    """Token ids, and for each its candidates; one token has none, and one has half a character."""
    from vllm.logprobs import Logprob

    ids = [number % 50 for number in range(tokens)]
    steps: list[Any] = [
        {(one + other) % 60: Logprob(-0.1 * other - 1e-7, other + 1, f"é{one}_{other}") for other in range(width)}
        for one in ids
    ]
    steps[3] = None
    steps[5][ids[5]].decoded_token = "\ufffd"
    return ids, steps


def made(whole_answers: Any, endpoint: str, tokens: int, choices: int) -> Any:
    """The response that vLLM's serving object would return."""
    from vllm.entrypoints.generate.base.protocol import UsageInfo
    from vllm.entrypoints.openai.chat_completion import protocol as chat
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion import protocol as text
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    tokenizer = SimpleNamespace(decode=lambda token_id: f"<{token_id}>")
    chatting = OpenAIServingChat.__new__(OpenAIServingChat)
    completing = OpenAIServingCompletion.__new__(OpenAIServingCompletion)
    chatting.return_tokens_as_token_ids = completing.return_tokens_as_token_ids = False
    all_choices: list[Any] = []
    for index in range(choices):
        ids, steps = candidates(tokens, 20)
        if endpoint == "chat":
            logprobs = whole_answers.chat_logprobs(
                chatting._create_chat_logprobs, ids, steps, num_output_top_logprobs=20, tokenizer=tokenizer
            )
            message = chat.ChatMessage(role="assistant", content="x")
            all_choices.append(chat.ChatCompletionResponseChoice(index=index, message=message, logprobs=logprobs))
        else:
            logprobs = whole_answers.completion_logprobs(
                completing._create_completion_logprobs, ids, steps, num_output_top_logprobs=5, tokenizer=tokenizer
            )
            all_choices.append(text.CompletionResponseChoice(index=index, text="x", logprobs=logprobs))
    kind = chat.ChatCompletionResponse if endpoint == "chat" else text.CompletionResponse
    usage = UsageInfo(prompt_tokens=1, completion_tokens=tokens, total_tokens=tokens + 1)
    return kind(id="an-id", created=1, model="m", choices=all_choices, usage=usage)


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
@pytest.mark.parametrize("tokens", [8, 16, 200])
def test_the_document_is_the_same_in_pieces(whole_answers: Any, endpoint: str, tokens: int) -> None:
    expected = orjson.dumps(made(whole_answers, endpoint, tokens, 2).model_dump(mode="json"))
    token = whole_answers.IS_WHOLE_ANSWER.set(True)
    try:
        later = made(whole_answers, endpoint, tokens, 2)
    finally:
        whole_answers.IS_WHOLE_ANSWER.reset(token)
    assert (type(later.choices[0].logprobs).__name__.startswith("Later")) == (tokens > 16)

    assert asyncio.run(whole_answers.document(later, Offload("test"), None)) == expected


def test_a_large_answer_leaves_the_loop_free(whole_answers: Any) -> None:
    async def held_s() -> float:
        whole_answers.IS_WHOLE_ANSWER.set(True)
        loop = asyncio.get_running_loop()
        response = made(whole_answers, "chat", 300, 8)
        writing = asyncio.create_task(whole_answers.document(response, Offload("test"), None))
        longest_s = 0.0
        while not writing.done():
            before_s = loop.time()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, loop.time() - before_s)
        assert len(writing.result()) > 10**6
        return longest_s

    assert min(asyncio.run(held_s()) for _ in range(3)) < 0.1
