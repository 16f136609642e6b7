"""Which requests take the fast path, for requests of vLLM's own models and stand-ins for its serving objects."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.domain import ChunkTemplate, Endpoint

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def eligibility() -> Any:
    """The module; importing it imports vLLM, which takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gateway.engine.vllm.output import eligibility

    return eligibility


def serving(**changes: Any) -> SimpleNamespace:
    usual = {
        "enable_prompt_tokens_details": False,
        "enable_per_request_metrics": False,
        "enable_force_include_usage": False,
        "system_fingerprint": "fp",
        "engine_client": SimpleNamespace(vllm_config=SimpleNamespace(speculative_config=None)),
    }
    return SimpleNamespace(**(usual | changes))


def chat(eligibility: Any, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "x"}]
    return eligibility.chat_protocol.ChatCompletionRequest(**({"model": "m", "messages": messages} | fields))


def completion(eligibility: Any, **fields: Any) -> Any:
    return eligibility.completion_protocol.CompletionRequest(**({"model": "m", "prompt": "x"} | fields))


@pytest.mark.parametrize("fields", [{}, {"n": 1}, {"temperature": 0.5, "seed": 3, "stop": ["a"], "stream": True}])
def test_text_alone_is_plain(eligibility: Any, fields: dict[str, Any]) -> None:
    assert eligibility._is_plain(serving(), chat(eligibility, **fields))
    assert eligibility._is_plain(serving(), completion(eligibility, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"echo": True},
        {"return_token_ids": True},
        {"use_beam_search": True},
        {"prompt_logprobs": 1},
        {"return_tokens_as_token_ids": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_chat_that_needs_more_than_text_is_not(eligibility: Any, fields: dict[str, Any]) -> None:
    assert not eligibility._is_plain(serving(), chat(eligibility, **fields))


@pytest.mark.parametrize(("logprobs", "is_plain"), [(None, True), (0, False), (3, False)])
def test_zero_log_probabilities_are_some(eligibility: Any, logprobs: int | None, is_plain: bool) -> None:
    assert eligibility._is_plain(serving(), completion(eligibility, logprobs=logprobs)) is is_plain


@pytest.mark.parametrize(
    "changes",
    [
        {"enable_prompt_tokens_details": True},
        {"enable_per_request_metrics": True},
        {"enable_log_outputs": True},
        {"engine_client": SimpleNamespace(vllm_config=SimpleNamespace(speculative_config=object()))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_server_that_adds_to_its_chunks_has_no_plain_requests(eligibility: Any, changes: dict[str, Any]) -> None:
    assert not eligibility._is_plain(serving(**changes), chat(eligibility))


def test_a_tool_parser_passes_text_through_where_no_tool_is_allowed(eligibility: Any) -> None:
    class Parser(eligibility.DelegatingParser):  # type: ignore[misc,name-defined]
        reasoning_parser_cls = None
        tool_parser_cls = SimpleNamespace(engine_based_streaming=False)

    class Own(Parser):
        def parse_delta(self, *_: Any, **__: Any) -> None: ...

    without, allowed = SimpleNamespace(tool_choice="none"), SimpleNamespace(tool_choice="auto")

    assert eligibility._is_unparsed(None, allowed)
    assert eligibility._is_unparsed(Parser, without)
    assert not eligibility._is_unparsed(Parser, allowed)
    assert not eligibility._is_unparsed(Own, without), "it has a step of its own"


def test_the_template_holds_what_all_chunks_share(eligibility: Any) -> None:
    request = chat(eligibility, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    template = eligibility._template(serving(), request, Endpoint.CHAT, "chatcmpl-1", "m", "assistant", 5)

    assert isinstance(template, ChunkTemplate)
    assert (template.id, template.model, template.role, template.created) == ("chatcmpl-1", "m", "assistant", 5)
    assert (template.include_usage, template.continuous_usage, template.fingerprint) == (True, True, "fp")
