"""vLLM's structs are stood in for: importing it takes ten seconds, and the rules only look at attributes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.vllm.core_client.replay import continuation, replay_obstacle


class Params(SimpleNamespace):
    """vLLM's SamplingParams, with its defaults."""

    def clone(self) -> Params:
        return copy.deepcopy(self)


def a_request(**changes: Any) -> Any:
    """A plain text request, as the engine gets it; `params_` changes go into its sampling parameters."""
    params = Params(
        temperature=0.0,
        seed=None,
        max_tokens=100,
        min_tokens=0,
        n=1,
        stop=[],
        logprobs=None,
        prompt_logprobs=None,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        structured_outputs=None,
        bad_words=None,
        logit_bias=None,
        thinking_token_budget=None,
        repetition_detection=None,
        extra_args=None,
    )
    usual: dict[str, Any] = {
        "request_id": "r1",
        "prompt_token_ids": [1, 2, 3],
        "prompt_embeds": None,
        "mm_features": None,
        "resumable": False,
        "sampling_params": params,
    }
    for name, value in changes.items():
        if name.startswith("params_"):
            setattr(params, name.removeprefix("params_"), value)
        else:
            usual[name] = value
    return SimpleNamespace(**usual)


@pytest.mark.parametrize("tokens", [0, 1, 50])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"params_temperature": 1.0},
        {"params_seed": 7},
        {"params_repetition_penalty": 1.2},
        {"params_logit_bias": {5: 1.0}},
        {"params_logprobs": 5},
        {"params_stop": ["END"]},
        {"params_extra_args": {"other": 1}},
        {"params_extra_args": {}},
        {"mm_features": []},
        {"sampling_params": None},
    ],
)
def test_a_request_that_depends_on_prompt_and_tokens_alone_goes_on(changes: dict[str, Any], tokens: int) -> None:
    """Greedy sampling ignores a seed; repetition_penalty counts the prompt in, so tokens may move there; pooling
    answers in one piece."""
    assert replay_obstacle(a_request(**changes), tokens) is None


LATER = [
    ({"params_presence_penalty": 0.5}, "presence_penalty"),
    ({"params_frequency_penalty": -0.5}, "frequency_penalty"),
    ({"params_structured_outputs": SimpleNamespace(json="{}")}, "grammar"),
    ({"params_bad_words": ["no"]}, "bad_words"),
    ({"params_thinking_token_budget": 10}, "thinking budget"),
    ({"params_repetition_detection": SimpleNamespace()}, "repetition_detection"),
    ({"params_watermarking": SimpleNamespace()}, "watermark"),
    ({"params_seed": 0, "params_temperature": 0.7}, "seeded"),
    ({"params_extra_args": {"kv_transfer_params": {"do_remote_prefill": True}}}, "another engine"),
]


@pytest.mark.parametrize(("changes", "words"), LATER)
def test_a_request_that_depends_on_the_output_or_a_state_cannot_go_on_once_it_has_begun(
    changes: dict[str, Any], words: str
) -> None:
    assert words in (replay_obstacle(a_request(**changes), 1) or "")


@pytest.mark.parametrize(("changes", "_"), LATER)
def test_before_its_first_token_it_is_sent_again_as_it_was(changes: dict[str, Any], _: str) -> None:
    assert replay_obstacle(a_request(**changes), 0) is None


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_features": [object()]}, "images or audio"),
        ({"resumable": True}, "streamed"),
        ({"prompt_token_ids": None}, "tokens alone"),
        ({"prompt_embeds": object()}, "tokens alone"),
    ],
)
def test_an_incomplete_request_can_never_be_sent_again(changes: dict[str, Any], words: str, tokens: int) -> None:
    assert words in (replay_obstacle(a_request(**changes), tokens) or "")


def test_it_goes_on_behind_its_tokens_with_the_rest_of_its_limits() -> None:
    request = a_request(params_max_tokens=100, params_min_tokens=10, params_prompt_logprobs=3, params_stop=["END"])
    before = copy.deepcopy(request)
    again = continuation(request, [7, 8, 9])

    assert again.request_id == "r1", "the output processor has it under this name"
    assert again.prompt_token_ids == [1, 2, 3, 7, 8, 9]
    params = again.sampling_params
    assert (params.max_tokens, params.min_tokens, params.prompt_logprobs, params.stop) == (97, 7, None, ["END"])
    assert request == before, "it may have to be sent again once more"


@pytest.mark.parametrize(("min_tokens", "left"), [(0, 0), (2, 0), (5, 2)])
def test_min_tokens_is_never_below_zero(min_tokens: int, left: int) -> None:
    again = continuation(a_request(params_min_tokens=min_tokens), [7, 8, 9])

    assert again.sampling_params.min_tokens == left


def test_without_a_limit_there_is_none_afterwards() -> None:
    assert continuation(a_request(params_max_tokens=None), [7]).sampling_params.max_tokens is None


def test_without_tokens_it_is_a_copy() -> None:
    request = a_request(params_prompt_logprobs=3)
    again = continuation(request, [])

    assert again is not request
    assert again == request


def test_a_second_death_counts_all_tokens_from_the_first_prompt() -> None:
    """The request that is remembered is the first one, and the detokenizer has the tokens of all engines."""
    request = a_request(params_max_tokens=10)
    continuation(request, [7])
    again = continuation(request, [7, 8, 9])

    assert (again.prompt_token_ids, again.sampling_params.max_tokens) == ([1, 2, 3, 7, 8, 9], 7)
