"""Generated requests: their lengths, the same for the same seed and number, with their history."""

from __future__ import annotations

from collections import Counter
from statistics import mean, median
from typing import Any

import orjson
import pytest

from gateway.engine import deterministic_tokens
from loadtest.measure.record import ReadMode
from loadtest.scenario.loader import parse
from loadtest.scenario.traces import Arrival
from loadtest.scenario.workload import PreparedRequest, RequestFactory, ServerInfo

NOW = Arrival(0.0)


def make_factory(
    server_info: ServerInfo | None = None, keys: dict[str, str] | None = None, **changes: Any
) -> RequestFactory:
    """The factory of one workload (`w`), or of the workloads in `changes`."""
    factory = {"name": "w", **changes.pop("workload", {})}
    document = {"name": "x", "load": {"kind": "poisson", "rate": 1}, "workloads": [factory], **changes}
    return RequestFactory(parse(document, "here"), server_info or ServerInfo("m"), keys or {})


def first_requests(factory: RequestFactory, count: int, arrival: Arrival = NOW) -> list[PreparedRequest]:
    """The first request of each arrival."""
    requests = [factory.conversation(arrival, number).next_request() for number in range(count)]
    assert all(requests)
    return [request for request in requests if request is not None]


def body(request: PreparedRequest) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(request.body)
    return document


def word_count(request: PreparedRequest) -> int:
    return len(body(request)["messages"][-1]["content"].split())


def test_an_arrival_number_gives_the_same_request_in_any_order() -> None:
    long = {"prompt_tokens": {"kind": "lognormal", "median": 50, "sigma": 1}}
    once, again = first_requests(make_factory(workload=long), 20), make_factory(workload=long)

    assert [again.conversation(NOW, number).next_request() for number in reversed(range(20))] == once[::-1]
    assert first_requests(make_factory(workload=long, seed=2), 20) != once


@pytest.mark.parametrize(
    ("amount", "middle", "most"),
    [
        (40, 40, 40),
        ({"kind": "uniform", "min": 10, "max": 90}, 50, 90),
        ({"kind": "normal", "mean": 50, "sd": 10, "max": 70}, 50, 70),
        ({"kind": "lognormal", "median": 50, "sigma": 1, "max": 400}, 50, 400),
        ({"kind": "choice", "values": [10, 50, 90], "weights": [1, 2, 1]}, 50, 90),
    ],
)
def test_lengths_follow_their_distribution(amount: Any, middle: float, most: float) -> None:
    requests = first_requests(make_factory(workload={"prompt_tokens": amount, "output_tokens": amount}), 800)
    for lengths in ([word_count(request) for request in requests], [request.max_tokens for request in requests]):
        assert median(lengths) == pytest.approx(middle, rel=0.15)
        assert max(lengths) <= most


def test_words_of_several_tokens_make_shorter_prompts() -> None:
    assert (
        word_count(
            first_requests(make_factory(ServerInfo("m", tokens_per_word=2.0), workload={"prompt_tokens": 100}), 1)[0]
        )
        == 50
    )


def test_shares_are_kept() -> None:
    factory = make_factory(
        workloads=[{"name": "a", "share": 3}, {"name": "b"}],
        tenants=[{"name": "t", "share": 1, "key": "k1"}, {"name": "u", "share": 4}],
        keys={"t": "k1"},
    )
    requests = first_requests(factory, 2000)

    assert Counter(request.workload for request in requests)["a"] == pytest.approx(1500, rel=0.06)
    assert Counter(request.tenant for request in requests)["u"] == pytest.approx(1600, rel=0.06)
    assert {request.headers.get("Authorization") for request in requests if request.tenant == "t"} == {"Bearer k1"}
    assert {request.headers.get("Authorization") for request in requests if request.tenant == "u"} == {None}


def test_models_by_weight() -> None:
    requests = first_requests(make_factory(workload={"models": [{"name": "a", "share": 9}, {"name": "b"}]}), 1000)

    assert Counter(body(request)["model"] for request in requests)["a"] == pytest.approx(900, rel=0.05)


def test_prefixes_are_shared_within_their_group_and_differ_between_groups() -> None:
    requests = first_requests(make_factory(workload={"prefix": {"tokens": 30, "groups": 4}}), 200)
    prefixes = Counter(body(request)["messages"][0]["content"] for request in requests)

    assert len(prefixes) == 4
    assert {body(request)["messages"][0]["role"] for request in requests} == {"system"}
    assert min(prefixes.values()) > 20


def test_a_conversation_grows_by_the_real_answers() -> None:
    conversation = make_factory(workload={"turns": 3, "prefix": {"tokens": 5}}).conversation(NOW, 0)
    first, second, third = conversation.next_request(), conversation.next_request("One."), conversation.next_request("")
    assert first is not None
    assert second is not None
    assert third is not None

    assert [m["role"] for m in body(third)["messages"]] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert body(third)["messages"][2]["content"] == "One."
    assert body(third)["messages"][:2] == body(first)["messages"]
    assert (first.keeps_text, second.keeps_text, third.keeps_text) == (True, True, False)
    assert conversation.next_request("Three.") is None


def test_a_conversation_ends_before_the_context_does() -> None:
    conversation = make_factory(ServerInfo("m", context=1000), workload={"turns": 9}).conversation(NOW, 0)
    conversation.next_request()

    assert conversation.next_request("x", 300) is not None
    assert conversation.next_request("x", 600) is None, "300 more, and as many for chance, would not fit"


def test_vllms_own_fields_are_sent_to_vllm_only() -> None:
    plain, ours = (
        body(first_requests(make_factory(), 1)[0]),
        body(first_requests(make_factory(ServerInfo("m", is_vllm=True)), 1)[0]),
    )

    assert plain["stream_options"] == {"include_usage": True}
    assert "ignore_eos" not in plain
    assert ours["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert ours["ignore_eos"] is True


def test_body_fields_of_the_scenario_take_precedence() -> None:
    assert (
        body(first_requests(make_factory(workload={"body": {"temperature": 0.5, "max_tokens": 3}}), 1)[0])["max_tokens"]
        == 3
    )


def test_token_ids_are_known_to_the_checker() -> None:
    requests = first_requests(
        make_factory(
            verify="synthetic", workload={"endpoint": "completions", "prompt": "token_ids", "prompt_tokens": 9}
        ),
        50,
    )
    for request in requests:
        prompt = body(request)["prompt"]
        assert request.prompt_start == (prompt[0], 9)
        assert len(prompt) == 9
        assert all(0 < token <= deterministic_tokens.LARGEST for token in prompt)
        assert request.counts_by_ids
        assert request.is_verified
        assert body(request)["return_token_ids"] is True
    assert len({body(request)["prompt"][0] for request in requests}) > 40, "streams can be distinguished"


def test_behaviours_by_share() -> None:
    behaviours = [
        {"kind": "cancel", "share": 0.2, "before_first_token": True},
        {"kind": "cancel", "share": 0.1, "after_tokens": {"kind": "uniform", "min": 1, "max": 9}},
        {"kind": "slow", "share": 0.1, "bytes_per_s": 100},
        {"kind": "stall", "share": 0.1, "pause_s": 3},
        {"kind": "resume", "share": 0.1, "times": 2, "grace_s": 20},
    ]
    requests = first_requests(make_factory(workload={"behaviours": behaviours}), 3000)
    modes = Counter(request.read_plan.read_mode for request in requests)

    assert modes[ReadMode.PLAIN] == pytest.approx(1200, rel=0.1)
    assert modes[ReadMode.CANCEL] == pytest.approx(900, rel=0.1)
    for mode in (ReadMode.SLOW, ReadMode.STALL, ReadMode.RESUME):
        assert modes[mode] == pytest.approx(300, rel=0.2)
    early = [request.read_plan.abort_after_s for request in requests if request.read_plan.abort_after_s is not None]
    assert mean(early) == pytest.approx(0.01, rel=0.1)
    resuming = next(request for request in requests if request.read_plan.read_mode is ReadMode.RESUME)
    assert (resuming.read_plan.times, resuming.headers["X-Stream-Resumable"]) == (2, "20")


def test_recorded_lengths_and_blocks_take_precedence() -> None:
    factory = make_factory(workload={"prompt_tokens": 5, "output_tokens": 5})
    long, short = (first_requests(factory, 1, Arrival(0.0, tokens, 7, (3, 4)))[0] for tokens in (1024, 600))
    other = first_requests(factory, 1, Arrival(0.0, 1024, 7, (3, 5)))[0]
    texts = [body(request)["messages"][0]["content"].split() for request in (long, short, other)]

    assert [len(text) for text in texts] == [1024, 600, 1024]
    assert long.max_tokens == 7
    assert texts[0][:600] == texts[1], "the same blocks are the same text"
    assert texts[0][:512] == texts[2][:512]
    assert texts[0][512:] != texts[2][512:]
