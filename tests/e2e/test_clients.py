"""Clients that people have: openai-python, anthropic, the openai npm package, curl."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.support.server import ASK, MODEL, Server

NODE = Path(__file__).with_name("node")
QUESTION: list[Any] = ASK
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    word: str = Field(max_length=10)
    sure: bool
    mood: Literal["calm", "glad"]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def ask_model(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, **more})


def test_a_streamed_and_a_whole_chat_are_equal(client: openai.OpenAI) -> None:
    whole = ask_model(client)
    chunks = list(ask_model(client, stream=True, stream_options={"include_usage": True}))

    text = whole.choices[0].message.content
    assert "streaming inference server" in text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens > 10
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_a_stream_comes_in_pieces(client: openai.OpenAI) -> None:
    """The first chunk is there well before the last: nothing on the way collects them."""
    arrivals = []
    for _ in ask_model(client, stream=True, max_tokens=400, extra_body={"ignore_eos": True}):
        arrivals.append(time.monotonic())

    assert len(arrivals) > 20
    assert arrivals[len(arrivals) // 2] - arrivals[0] > 0.1 * (arrivals[-1] - arrivals[0])


def test_logprobs(client: openai.OpenAI) -> None:
    whole = ask_model(client, logprobs=True, top_logprobs=2, max_tokens=5)
    chunks = list(ask_model(client, logprobs=True, top_logprobs=2, max_tokens=5, stream=True))

    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == 5
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    assert "".join(token.token for token in tokens) == whole.choices[0].message.content
    streamed = [t for c in chunks for t in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert [token.token for token in streamed] == [token.token for token in tokens]


def test_two_choices(client: openai.OpenAI) -> None:
    whole = ask_model(client, n=2, temperature=1.0, seed=3)
    texts = {0: "", 1: ""}
    reasons = {}
    for chunk in ask_model(client, n=2, temperature=1.0, seed=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason

    assert [choice.index for choice in whole.choices] == [0, 1]
    assert all(choice.message.content for choice in whole.choices)
    assert all(texts.values())
    assert all(reasons.values())


def test_stop_ends_before_its_words(client: openai.OpenAI) -> None:
    for stream in (False, True):
        made = ask_model(client, stop=["inference"], stream=stream)
        if stream:
            chunks = list(made)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            text, reason = made.choices[0].message.content, made.choices[0].finish_reason
        assert text == "Sluice is a streaming "
        assert reason == "stop"


def test_a_seed_repeats_itself(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    first, again, other = (ask_model(client, seed=seed, **options).choices[0].message.content for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_max_completion_tokens(client: openai.OpenAI) -> None:
    whole = ask_model(client, max_completion_tokens=7)
    chunks = list(ask_model(client, max_completion_tokens=7, stream=True, stream_options={"include_usage": True}))

    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 7
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"


def _called(message: Any) -> Any:
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert call.id
    return json.loads(call.function.arguments)


def _streamed_call(chunks: Any) -> tuple[str, Any, str]:
    name, arguments, reason = "", "", ""
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    return name, json.loads(arguments), reason


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
def test_tools(client: openai.OpenAI, choice: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    options = {"messages": WEATHER, "tools": TOOLS, "tool_choice": named if choice == "named" else choice}
    whole = ask_model(client, **options)
    name, arguments, reason = _streamed_call(ask_model(client, stream=True, **options))

    assert _called(whole.choices[0].message) == arguments
    assert list(arguments) == ["city"]
    assert name == "get_weather"
    # vLLM's finish reason is "stop" when the client has chosen the tool and not the model.
    assert reason == whole.choices[0].finish_reason
    assert reason == ("tool_calls" if choice != "named" else "stop")
    if choice == "auto":
        assert arguments == {"city": "Paris"}


def test_tools_that_the_answer_does_not_need(client: openai.OpenAI) -> None:
    whole = ask_model(client, tools=TOOLS, tool_choice="auto")

    assert not whole.choices[0].message.tool_calls
    assert "streaming inference server" in whole.choices[0].message.content


def test_structured_output(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=200, response_format=Answer
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)

    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": Answer.model_json_schema(), "strict": True},
    }
    chunks = ask_model(client, response_format=schema, max_tokens=200, stream=True)
    Answer.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="What is Sluice?", temperature=0)
    happened = list(client.responses.create(model=MODEL, input="What is Sluice?", temperature=0, stream=True))

    assert "streaming inference server" in whole.output_text
    assert whole.status == "completed"
    assert "".join(one.delta for one in happened if one.type == "response.output_text.delta") == whole.output_text
    assert happened[0].type == "response.created"
    last = happened[-1]
    assert last.type == "response.completed"
    assert last.response.usage == whole.usage


def test_completions_take_text_ids_and_lists(client: openai.OpenAI, server: Server) -> None:
    def complete(prompt: Any, **more: Any) -> Any:
        return client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0, **more)

    ids = server.post("/tokenize", model=MODEL, prompt="Sluice is").json()["tokens"]
    text = complete("Sluice is").choices[0].text
    assert text
    assert complete(ids).choices[0].text == text
    assert "".join(chunk.choices[0].text for chunk in complete("Sluice is", stream=True)) == text
    several = complete(["Sluice is", "Sluice is", "Hello"])
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert [choice.text for choice in several.choices[:2]] == [text, text]
    assert [choice.text for choice in complete([ids, ids]).choices] == [text, text]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("org/none")
    assert unknown.value.param == "model"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as unknown:
            ask_model(client, model="nope", stream=stream)
        assert unknown.value.param == "model"
        with pytest.raises(openai.BadRequestError) as wrong:
            ask_model(client, max_tokens=-1, stream=stream)
        assert wrong.value.param == "max_tokens"
        assert wrong.value.code == "invalid_request"
        assert "max_tokens" in wrong.value.message


def test_the_async_client(server: Server) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0}

            async def streamed() -> str:
                stream = await client.chat.completions.create(stream=True, **asked)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            whole = (await client.chat.completions.create(**asked)).choices[0].message.content
            assert whole
            assert await asyncio.gather(*[streamed() for _ in range(8)]) == [whole] * 8
            events = [one async for one in await client.responses.create(model=MODEL, input="Hello", stream=True)]
            assert events[-1].type == "response.completed"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nope", messages=QUESTION)

    asyncio.run(run())


def test_leaving_an_async_stream_cancels_it(server: Server) -> None:
    """What an application does with `break`: the client closes the connection."""
    before = server.ended("disconnected")

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
            )
            async with stream:
                async for _ in stream:
                    break

    asyncio.run(run())
    server.wait_idle()
    assert server.ended("disconnected") == before + 1


def test_the_anthropic_client(server: Server) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the anthropic package is not installed")
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 100, "extra_body": {"temperature": 0}}
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            text = "".join(stream.text_stream)
            last = stream.get_final_message()

        assert "streaming inference server" in whole.content[0].text
        assert text == whole.content[0].text
        assert last.stop_reason == whole.stop_reason == "end_turn"
        assert last.usage.output_tokens == whole.usage.output_tokens
        counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
        assert client.models.retrieve(MODEL).display_name == MODEL
        for wrong in ({"model": "org/none"}, {"max_tokens": -1}):
            with pytest.raises(anthropic.APIStatusError) as refused:
                client.messages.create(**{**asked, **wrong})
            body = refused.value.body
            assert body["type"] == "error"
            assert body["request_id"] == refused.value.request_id
            kind = "not_found_error" if "model" in wrong else "invalid_request_error"
            assert (refused.value.status_code, body["error"]["type"]) == (404 if "model" in wrong else 400, kind)
        assert counted.input_tokens == whole.usage.input_tokens
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**{**asked, "model": "nope"})


def test_curl_shows_the_stream_as_it_comes(server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = {"model": MODEL, "messages": ASK, "stream": True, "max_tokens": 400, "ignore_eos": True, "temperature": 0}
    argv = ["curl", "-sSN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    arrivals: list[float] = []
    with subprocess.Popen([*argv, "-d", json.dumps(body)], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        lines = []
        for line in curl.stdout:
            if line.startswith(b"data: "):
                arrivals.append(time.monotonic())
                lines.append(line)
        assert curl.wait(10) == 0

    assert lines[-1] == b"data: [DONE]\n"
    assert all("choices" in json.loads(line[6:]) for line in lines[:-1])
    assert arrivals[-1] - arrivals[0] > 0.1
    assert arrivals[len(arrivals) // 2] - arrivals[0] > 0.1 * (arrivals[-1] - arrivals[0])


def _run(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # node and npm come with the virtual environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        argv, check=False, cwd=folder, capture_output=True, text=True, timeout=90, env={**os.environ, "PATH": path}
    )


def test_the_openai_npm_package(server: Server, client: openai.OpenAI, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    shutil.copytree(NODE, folder, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
    installed = _run(["npm", "ci", *quiet], folder)
    assert installed.returncode == 0, installed.stderr
    argv = ["node", "ask.mjs", f"{server.url}/v1", "What is Sluice?"]
    ran = _run(argv, folder)
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)

    ours = ask_model(client)
    assert printed["whole"] == printed["streamed"] == ours.choices[0].message.content
    assert printed["chunks"] > 10
    assert printed["usage"]["completion_tokens"] == ours.usage.completion_tokens
    assert printed["refusal"] == {"known": True, "status": 404, "code": "not_found", "param": "model"}
