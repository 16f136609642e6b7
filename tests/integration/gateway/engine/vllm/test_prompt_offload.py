"""The replaced steps, with the demo model's tokenizer and fakes of vLLM's renderer and engine."""

from __future__ import annotations

import asyncio
import random
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import demo


@pytest.fixture(scope="module")
def prompt_offload() -> Any:
    """The module; importing it imports vLLM, which takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gateway.engine.vllm import prompt_offload

    return prompt_offload


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.MODEL_PATH)


def a_processor(tokenizer: Any) -> Any:
    from vllm.v1.engine.output_processor import OutputProcessor

    return OutputProcessor(tokenizer, log_stats=True)


def a_request(prompt: list[int], **params: Any) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        "r1", prompt, None, SamplingParams(**params), None, 0.0, None, None, None, external_req_id="r1"
    )


def pieces(processor: Any, prompt: list[int], output_ids: list[int]) -> list[str]:
    request = a_request(prompt)
    processor.add_request(request, None)
    state = processor.request_states["r1"]

    assert request.prompt_token_ids is state.prompt_token_ids is prompt
    assert state.prompt_len == len(prompt)

    return [state.detokenizer.decode_next(token) for token in output_ids]


@pytest.mark.parametrize("seed", range(40))
def test_a_decoder_with_only_the_tail_gives_the_same_text(prompt_offload: Any, tokenizer: Any, seed: int) -> None:
    """Token by token, also if the prompt ends or its tail begins within a character."""
    chance = random.Random(seed)
    words = ["river", " the", " 🦀", "né", "\n", " ", "日本語", " <|end|>", "<|user|>", "."]
    ids = tokenizer("".join(chance.choice(words) for _ in range(900)))["input_ids"]
    cut = chance.randrange(prompt_offload.SHORT_TO_DECODE + 1, len(ids) - 60)
    prompt, output_ids = ids[:cut], ids[cut : cut + 60]
    whole, tail = a_processor(tokenizer), a_processor(tokenizer)
    prompt_offload.replace_decoder_priming(tail)

    assert pieces(tail, prompt, output_ids) == pieces(whole, prompt, output_ids)


@pytest.mark.parametrize(
    ("length", "last", "primed"),
    [(512, 300, [512]), (513, 300, [64]), (513, "<|end|>", [64]), (513, "half a crab", [64, 513])],
)
def test_only_long_prompts_that_end_in_a_whole_character_are_cut(
    prompt_offload: Any,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    last: int | str,
    primed: list[int],
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("tokenizers.decoders.DecodeStream", lambda ids, skip_special_tokens: seen.append(len(ids)))
    processor = a_processor(tokenizer)
    prompt_offload.replace_decoder_priming(processor)
    if last == "half a crab":
        last = tokenizer("🦀", add_special_tokens=False)["input_ids"][0]
    elif isinstance(last, str):
        last = tokenizer.convert_tokens_to_ids(last)
    processor.add_request(a_request([300] * (length - 1) + [last]), None)

    assert seen == primed


def test_a_request_without_text_needs_no_decoder(
    prompt_offload: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenizers.decoders.DecodeStream", None)
    processor = a_processor(tokenizer)
    prompt_offload.replace_decoder_priming(processor)
    prompt = [300] * 600
    processor.add_request(a_request(prompt, detokenize=False), None)

    assert processor.request_states["r1"].prompt_token_ids is prompt
    assert processor.request_states["r1"].prompt_len == 600


def test_decoders_of_another_kind_get_the_whole_prompt(
    prompt_offload: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine import detokenizer

    made: list[int] = []

    class Slow(detokenizer.BaseIncrementalDetokenizer):
        def __init__(self, tokenizer: Any, request: Any) -> None:
            super().__init__(request)
            made.append(len(request.prompt_token_ids))

        @classmethod
        def from_new_request(cls, tokenizer: Any, request: Any) -> Any:
            return cls(tokenizer, request)

        def decode_next(self, next_token_id: int) -> str:
            raise NotImplementedError

    monkeypatch.setattr("vllm.v1.engine.output_processor.IncrementalDetokenizer", Slow)
    processor = a_processor(tokenizer)
    prompt_offload.replace_decoder_priming(processor)
    processor.add_request(a_request([300] * 600), None)

    assert made == [64, 600]


def test_a_request_whose_input_continues_keeps_its_decoder(prompt_offload: Any, tokenizer: Any) -> None:
    processor = a_processor(tokenizer)
    prompt_offload.replace_decoder_priming(processor)
    processor.add_request(a_request([300] * 600), None)
    decoder = processor.request_states["r1"].detokenizer
    longer = a_request([300] * 700)
    longer.resumable = True
    processor.add_request(longer, None)

    assert processor.request_states["r1"].detokenizer is decoder


def a_renderer() -> Any:
    where: list[str] = []

    def render_messages(messages: list[Any], params: Any) -> str:
        where.append("loop" if threading.current_thread() is threading.main_thread() else "thread")
        return "rendered"

    async def render_messages_async(messages: list[Any], params: Any) -> str:
        return render_messages(messages, params)

    async def in_time(work: Any) -> Any:
        return await work

    return SimpleNamespace(
        where=where,
        render_messages=render_messages,
        render_messages_async=render_messages_async,
        _render_with_timeout=in_time,
    )


TEXT = {"role": "user", "content": "Hello"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
PLAIN = SimpleNamespace(chat_template_kwargs={})
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://there/"}}]}
CALL = {"role": "assistant", "content": None, "tool_calls": []}


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([TEXT], "loop"),
        ([TEXT, PARTS, CALL] * 20, "thread"),
        ([TEXT] * 59 + [IMAGE], "loop"),
        ([TEXT] * 59 + [{"role": "user", "content": iter(())}], "loop"),
    ],
)
def test_long_chats_of_text_are_rendered_in_a_thread(prompt_offload: Any, messages: list[Any], where: str) -> None:
    """Chats with media to fetch stay on the loop, as in vLLM."""
    renderer = a_renderer()
    prompt_offload.replace_message_rendering(renderer, prompt_offload.make_runner(5), foreign_templates=True)

    assert asyncio.run(renderer.render_messages_async(messages, PLAIN)) == "rendered"
    assert renderer.where == [where]


@pytest.mark.parametrize(
    ("messages", "params", "foreign", "there"),
    [
        ([TEXT, PARTS], {}, False, True),
        ([{"role": "user", "content": "x" * 2048}], {}, False, True),
        ([{"role": "user", "content": None, "name": "ann"}], {}, False, True),
        ([{"role": "user", "content": "x" * 2049}], {}, False, False),
        ([{"role": "user", "content": [{"type": "text", "text": "x" * 2049}]}], {}, False, False),
        ([{"role": "assistant", "content": None, "tool_calls": []}], {}, False, False),
        ([TEXT], {"tools": ["one"]}, False, False),
        ([TEXT], {}, True, False),
        ([IMAGE], {}, False, False),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, False, False),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], {}, False, False),
    ],
)
def test_short_chats_are_rendered_on_the_loop_unless_the_template_is_a_clients(
    prompt_offload: Any, messages: list[Any], params: dict[str, Any], foreign: bool, there: bool
) -> None:
    renderer = a_renderer()
    theirs = []

    async def vllms(messages: list[Any], params: Any) -> str:
        theirs.append(messages)
        return "rendered"

    renderer.render_messages_async = vllms
    prompt_offload.replace_message_rendering(renderer, prompt_offload.make_runner(5), foreign_templates=foreign)
    wanted = SimpleNamespace(chat_template_kwargs=params)

    assert asyncio.run(renderer.render_messages_async(messages, wanted)) == "rendered"
    assert (renderer.where, theirs) == ((["loop"], []) if there else ([], [messages]))


def a_tokenizing_renderer(prompt_offload: Any, timeout_s: float = 5, work: Callable[[], None] = lambda: None) -> Any:
    """A renderer that returns the thread in which it tokenizes, for a context of 100 tokens."""

    def tokenize(prompt: Any, params: Any) -> str:
        work()
        return "here" if threading.current_thread() is threading.main_thread() else "aside"

    renderer = SimpleNamespace(
        _tokenize_prompt=tokenize,
        _decode=lambda token_ids: "text",
        tokenizer=SimpleNamespace(max_chars_per_token=10),
        model_config=SimpleNamespace(max_model_len=100),
    )
    run = prompt_offload.make_runner(timeout_s)
    prompt_offload.replace_tokenization(renderer, run)
    prompt_offload.replace_detokenization(renderer, run)
    return renderer


BOUNDED = SimpleNamespace(max_input_tokens=100)
UNBOUNDED = SimpleNamespace(max_input_tokens=None)


@pytest.mark.parametrize(("length", "where"), [(2048, "here"), (2049, "aside")])
def test_short_texts_are_tokenized_on_the_loop(prompt_offload: Any, length: int, where: str) -> None:
    renderer = a_tokenizing_renderer(prompt_offload)

    assert asyncio.run(renderer._tokenize_prompt_async({"prompt": "x" * length}, BOUNDED)) == where


def test_many_short_texts_are_tokenized_in_several_iterations_of_the_loop(prompt_offload: Any) -> None:
    renderer = a_tokenizing_renderer(prompt_offload)

    async def ask() -> list[str]:
        first = await asyncio.gather(*[renderer._tokenize_prompt_async({"prompt": "x" * 2000}, BOUNDED)] * 1)
        many = [renderer._tokenize_prompt_async({"prompt": "x" * 2000}, BOUNDED) for _ in range(20)]
        return [*first, *await asyncio.gather(*many)]

    done = asyncio.run(ask())

    assert done[0] == "here"
    assert 1 <= done[1:].count("here") <= 4


def test_texts_and_tokens_past_any_context_are_refused(prompt_offload: Any) -> None:
    renderer = a_tokenizing_renderer(prompt_offload)
    with pytest.raises(prompt_offload.VLLMValidationError, match="context holds at most"):
        asyncio.run(renderer._tokenize_prompt_async({"prompt": "x" * (2**20 + 1)}, UNBOUNDED))
    with pytest.raises(prompt_offload.VLLMValidationError, match="at most 131072"):
        asyncio.run(renderer._async_tokenizer_decode([1] * (2**17 + 1)))

    assert asyncio.run(renderer._async_tokenizer_decode([1] * 10)) == "text"


def test_rendering_has_a_limit_and_a_long_prompt_does_not_delay_others(prompt_offload: Any) -> None:
    go_on = threading.Event()
    renderer = a_tokenizing_renderer(prompt_offload, 0.2, lambda: go_on.wait(5) and None)

    async def ask() -> str:
        long = [
            asyncio.create_task(renderer._tokenize_prompt_async({"prompt": "x" * 200_000}, BOUNDED)) for _ in range(3)
        ]
        with pytest.raises(prompt_offload.VLLMValidationError, match="prepare_timeout_s"):
            await long[0]
        go_on.set()
        for one in long[1:]:
            one.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        return str(await renderer._tokenize_prompt_async({"prompt": "x" * 3000}, BOUNDED))

    assert asyncio.run(ask()) == "aside"


def test_other_renderers_stay_unchanged(prompt_offload: Any) -> None:
    renderer = SimpleNamespace(render_messages_async=None)
    prompt_offload.replace_message_rendering(renderer, prompt_offload.make_runner(5), foreign_templates=False)

    assert renderer.render_messages_async is None


class Llm:
    """The part of AsyncLLM that checks a prompt's tokens."""

    def __init__(self) -> None:
        self.looked: list[tuple[int, bool]] = []
        self.added: list[str] = []
        self.renderer = SimpleNamespace(validate_token_ids=self._validate)

    def _validate(self, token_ids: list[int], *, parameter: str | None = None) -> None:
        self.looked.append((len(token_ids), threading.current_thread() is threading.main_thread()))
        if max(token_ids) > 100:
            raise ValueError("out of vocabulary")

    async def add_request(self, request_id: str, prompt: Any, params: Any, **options: Any) -> str:
        if isinstance(prompt, dict):
            self.renderer.validate_token_ids(prompt["prompt_token_ids"])
        self.added.append(request_id)
        return request_id


def test_the_tokens_of_long_prompts_are_checked_once_and_in_a_thread(prompt_offload: Any) -> None:
    llm = Llm()
    prompt_offload.replace_token_id_check(llm)
    long = prompt_offload.SHORT_TO_CHECK + 1

    async def main() -> None:
        for number, prompt in enumerate(([1], [1] * long, [1] * long)):
            name = await llm.add_request(f"r{number}", {"type": "token", "prompt_token_ids": prompt}, None, priority=0)
            assert name == f"r{number}"
        await llm.add_request("raw", "a text", None)

    asyncio.run(main())

    parts = [(long - 1, False), (1, False)]

    assert llm.looked == [(1, True), *parts, *parts]
    assert llm.added == ["r0", "r1", "r2", "raw"]


def test_log_probabilities_of_a_long_prompt_are_refused(prompt_offload: Any) -> None:
    llm = Llm()
    llm.renderer.model_config = SimpleNamespace(get_vocab_size=lambda: 1000)
    prompt_offload.replace_token_id_check(llm)
    ids = {"prompt_token_ids": [1] * 6000}

    async def main() -> None:
        await llm.add_request("few", ids, SimpleNamespace(prompt_logprobs=1))
        for wanted in (20, -1):
            with pytest.raises(prompt_offload.VLLMValidationError, match="6000 prompt tokens"):
                await llm.add_request("many", ids, SimpleNamespace(prompt_logprobs=wanted))

    asyncio.run(main())

    assert llm.added == ["few"]


def test_a_token_out_of_the_vocabulary_is_still_refused(prompt_offload: Any) -> None:
    llm = Llm()
    prompt_offload.replace_token_id_check(llm)
    wrong = {"type": "token", "prompt_token_ids": [1] * prompt_offload.SHORT_TO_CHECK + [101]}

    for _ in range(2):
        with pytest.raises(ValueError, match="out of vocabulary"):
            asyncio.run(llm.add_request("r", wrong, None))

    assert llm.added == []
