"""The mock's answers without faults."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from gateway.engine import deterministic_tokens
from loadtest.mock.child import MockProcess, running_mock
from loadtest.mock.plan import MockPlan
from tests.integration.loadtest.mock.raw_client import CHAT, TEXT, begin, finish, request
from tests.support.server import Raw, poll


def gauges(mock: MockProcess) -> dict[str, float]:
    lines = httpx.get(f"{mock.url}/metrics").text.splitlines()
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_is_complete(mock: MockProcess, path: str) -> None:
    answer = request(mock.port, path, {"X-Request-Id": "my-own"})

    assert answer.complete
    assert "x-request-id: my-own" in answer.head
    assert answer.text == " 0 1 2 3 4 5 6 7"
    assert answer.finishes == ["length"]
    assert answer.documents[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert answer.events[-1] == b"[DONE]"
    assert len({document["id"] for document in answer.documents}) == 1


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_unstreamed_answer_comes_at_the_time_of_the_last_token(mock: MockProcess, path: str) -> None:
    began = time.perf_counter()
    answer = request(mock.port, path, stream=False)

    assert time.perf_counter() - began > 0.010 + 7 * 0.002
    choice = json.loads(answer.body)["choices"][0]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == " 0 1 2 3 4 5 6 7"
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 8


def test_token_ids_are_those_of_the_synthetic_engine(mock: MockProcess) -> None:
    answer = request(mock.port, return_token_ids=True)
    choices = [choice for document in answer.documents for choice in document["choices"]]

    assert [token for choice in choices for token in choice["token_ids"]] == deterministic_tokens.tokens(300, 3, 8)


def test_a_chat_with_token_ids_gets_those_of_its_prompt(mock: MockProcess) -> None:
    answer = request(mock.port, CHAT, return_token_ids=True)

    (first, *_), *_ = [one["prompt_token_ids"] for one in answer.documents if "prompt_token_ids" in one]
    tokens = [token for one in answer.documents for choice in one["choices"] for token in choice.get("token_ids") or []]
    assert tokens == deterministic_tokens.tokens(first, 3, 8)


def test_running_usage_is_sent_when_asked_for(mock: MockProcess) -> None:
    answer = request(mock.port, stream_options={"include_usage": True, "continuous_usage_stats": True})

    counts = [document["usage"]["completion_tokens"] for document in answer.documents]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_a_resumable_stream_continues_without_a_reader_and_can_be_joined(mock: MockProcess) -> None:
    raw = begin(mock.port, headers={"X-Stream-Resumable": "30"}, max_tokens=20)
    raw.read_until(b"id: 2\n")
    raw.close()
    stream = raw.seen.partition(b"x-stream-id: ")[2].partition(b"\r\n")[0].decode()
    head = f"GET /v1/streams/{stream} HTTP/1.1\r\nHost: mock\r\nConnection: close\r\nLast-Event-ID: 2\r\n\r\n"
    answer = finish(Raw(mock.port, head.encode()))

    numbers = [int(line[4:]) for line in answer.body.splitlines() if line.startswith(b"id: ")]
    assert numbers == list(range(3, 23)), "20 tokens, usage, [DONE]"
    assert answer.text == "".join(f" {position}" for position in range(2, 20))
    assert answer.complete


def test_gauges_follow_running_requests_and_disconnects(mock: MockProcess) -> None:
    before = gauges(mock)
    leaving = begin(mock.port, max_tokens=100_000)
    leaving.read_until(b'" 3"')
    during = gauges(mock)
    leaving.close()
    poll("the mock has noticed", lambda: gauges(mock)["vllm:num_requests_running"] == 0, 5)
    after = gauges(mock)

    assert during["vllm:num_requests_running"] == 1
    assert during["vllm:kv_cache_usage_perc"] >= 7 / 1_000_000
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert after["vllm:generation_tokens_total"] >= before["vllm:generation_tokens_total"] + 4
    assert after["vllm:time_to_first_token_seconds_count"] == before["vllm:time_to_first_token_seconds_count"] + 1


def test_a_connection_serves_several_requests(mock: MockProcess) -> None:
    with httpx.Client(base_url=mock.url) as client:
        for _ in range(3):
            tokens = client.post(TEXT, json={"prompt": "a b", "stream": True, "max_tokens": 2})
            assert tokens.text.endswith("data: [DONE]\n\n")
        assert client.get("/v1/models").json()["data"][0]["id"] == "mock"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": 3}, "stream_options"),
        ({"user": '{"kind": "cut", "byte": -1}'}, "user"),
    ],
)
def test_invalid_input_is_rejected_with_the_name_of_its_field(
    mock: MockProcess, change: dict[str, object], param: str
) -> None:
    answer = request(mock.port, **change)

    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == param
    assert param in json.loads(answer.body)["error"]["message"]


def test_requests_beyond_max_running_wait_for_a_slot(tmp_path: Path) -> None:
    plan = MockPlan.model_validate({"ttft_ms": 20, "itl_ms": 20, "max_running": 1})
    with running_mock(tmp_path, plan) as mock:
        first, second = begin(mock.port, headers={"X-Request-Id": "1"}), begin(mock.port, headers={"X-Request-Id": "2"})
        first.read_until(b'" 0"')
        seen = gauges(mock)
        finish(first)
        finish(second)
        records = {record.request_id: record for record in mock.end().records}

    assert (seen["vllm:num_requests_running"], seen["vllm:num_requests_waiting"]) == (1, 1)
    assert records["2"].sent_ns[0] > records["1"].sent_ns[-1]
