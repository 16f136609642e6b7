"""The demo model's files: small, loadable, and right about what it was taught. No engine here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gateway.demo import MODEL_PATH, SERVED_NAME
from gateway.demo.corpus import Corpus, Dialogue, tool
from gateway.demo.encoding import Encoder
from gateway.demo.train import are_right, question_and_answer

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
MAX_MODEL_BYTES = 8_000_000
WEATHER = tool("get_weather", "city", "Get the current weather in a given location")
CANONICAL = ["What is Sluice?", "How do I cancel a stream?", "Are you a real model?", "Say hello in Japanese"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_PATH)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def test_the_model_folder_is_complete_and_small() -> None:
    """Everything that an engine loads is there, and the folder stays small enough to ship."""
    found = {file.name: file.stat().st_size for file in MODEL_PATH.iterdir()}

    assert set(found) == FILES
    assert sum(found.values()) < MAX_MODEL_BYTES
    assert SERVED_NAME == "sluice-demo"


def test_the_model_has_fewer_than_a_million_parameters(model: Any) -> None:
    """It answers that it has fewer than a million parameters."""
    assert model.num_parameters() < 1_000_000


def test_default_sampling_is_nearly_greedy() -> None:
    """A request that names no temperature is answered well, and stops."""
    defaults = json.loads((MODEL_PATH / "generation_config.json").read_text(encoding="utf-8"))

    assert 0 < defaults["temperature"] <= 0.2
    assert defaults["eos_token_id"] == 2


def test_there_are_enough_questions(corpus: Corpus) -> None:
    """No phrasing has two answers, and there are plenty of both."""
    phrasings = [text.lower() for topic in corpus.topics for text in topic.questions]

    assert len(corpus.topics) >= 60
    assert len(corpus.off_topic.questions) >= 30
    assert len(phrasings) == len(set(phrasings))


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "γειά σου, κόσμε",  # noqa: RUF001
        "こんにちは、世界！",  # noqa: RUF001
        "🌊🚪👍",
        "a\tb\r\n\n  c   d",
        "1234567",
        "\x00\x7f",
        "Ж\u0301\u200b",
        "",
    ],
)
def test_every_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    """Encoded and decoded it is the same text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert text == tokenizer.decode(ids)


def test_every_byte_is_a_token(tokenizer: Any) -> None:
    """All 256 bytes are in the vocabulary, so no character can be unknown."""
    alphabet = {token for token in tokenizer.get_vocab() if len(token) == 1}

    assert len(alphabet) == 256


def test_a_rare_character_takes_several_tokens(tokenizer: Any) -> None:
    """So streams of the demo model show what happens to half a character."""
    assert len(tokenizer("🌊", add_special_tokens=False)["input_ids"]) >= 3


def test_the_marks_for_parsers_are_single_tokens(tokenizer: Any) -> None:
    """Tool and thought marks are single tokens which stay in the text when special tokens are skipped."""
    for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        ids = tokenizer(mark, add_special_tokens=False)["input_ids"]

        assert len(ids) == 1
        assert mark == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_conversation_is_rendered_block_by_block(tokenizer: Any) -> None:
    """Roles become marks, and the prompt ends where the assistant begins."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>A greeting.</think>Hello!"},
        {"role": "user", "content": "Bye"},
    ]

    assert render(tokenizer, messages, add_generation_prompt=True) == (
        "<|bos|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|><|assistant|>"
    )


def test_a_long_conversation_is_cut_to_its_last_three_questions(tokenizer: Any) -> None:
    """The toy was taught no more; the system message stays."""
    turns = [{"role": role, "content": f"{role}{at}"} for at in range(5) for role in ("user", "assistant")]
    text = render(tokenizer, [{"role": "system", "content": "Be brief."}, *turns])

    assert "Be brief." in text
    assert "assistant1" not in text
    assert "user2" in text


def test_thinking_is_asked_for_with_a_mark(tokenizer: Any) -> None:
    """The template's `enable_thinking` adds one token, and only when true."""
    messages = [{"role": "user", "content": "Hi"}]
    prompts = [
        render(tokenizer, messages, add_generation_prompt=True, enable_thinking=wanted) for wanted in (True, False)
    ]

    assert prompts[0].endswith("<|think|><|assistant|>")
    assert prompts[1].endswith("<|end|><|assistant|>")


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
def test_tools_calls_and_results_are_rendered(tokenizer: Any, corpus: Corpus, arguments: Any) -> None:
    """A call in the history reads exactly as the model writes it, however the client gave its arguments."""
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather in Paris"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    called = corpus.call("get_weather", "city", "Paris")

    assert (
        f"<|bos|><|system|>Tools:\n{json.dumps(WEATHER['function'])}<|end|><|user|>Weather in Paris<|end|>"
        f"<|assistant|>{called}<|end|><|tool|>sunny<|end|>"
    ) == render(tokenizer, messages, tools=[WEATHER])


def test_an_unknown_role_is_refused(tokenizer: Any) -> None:
    """The template raises, which a server turns into a 400."""
    with pytest.raises(Exception, match="Unknown role: wizard"):
        render(tokenizer, [{"role": "wizard", "content": "Hi"}])


def test_only_the_assistants_tokens_have_labels(tokenizer: Any) -> None:
    """Training counts the assistant's tokens with their end mark, and no other."""
    dialogue = Dialogue([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])

    ids, labels = Encoder(tokenizer).row(dialogue)

    assert tokenizer.decode([label for label in labels if label >= 0]) == "Hello!<|end|>"
    assert len(ids) == len(labels)


def test_greedy_decoding_gives_the_trained_answers(model: Any, tokenizer: Any, corpus: Corpus) -> None:
    """Greedy decoding gives canonical answers, tool calls and thoughts word for word."""
    by_question = {topic.questions[0]: topic for topic in corpus.topics}
    dialogues = [question_and_answer(question, by_question[question].answer) for question in CANONICAL]
    topic = by_question["What is a token?"]
    dialogues += [
        question_and_answer("What is the capital of France?", corpus.off_topic.answer),
        question_and_answer("What is a token?", f"<think>{topic.think}</think>{topic.answer}", thinking=True),
        question_and_answer(
            "What is the weather in Paris?", corpus.call("get_weather", "city", "Paris"), tools=[WEATHER]
        ),
        question_and_answer("What is Sluice?", by_question["What is Sluice?"].answer, tools=[WEATHER]),
    ]

    assert are_right(model, Encoder(tokenizer), dialogues) == [True] * len(dialogues)
