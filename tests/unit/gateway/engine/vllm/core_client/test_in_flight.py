"""The requests of an engine, over a stand-in for vLLM's output processor."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.poison_detector import PoisonDetector
from tests.unit.gateway.engine.vllm.core_client.test_replay import a_request
from tests.unit.gateway.engine.vllm.stub_vllm import Died, beside_stub


class Processor:
    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.aborted: list[str] = []

    def abort_requests(self, names: list[str], internal: bool) -> None:
        assert internal
        self.aborted += names
        for name in names:
            if (state := self.request_states.pop(name, None)) is not None:
                state.queue.put("the abort's own ending")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "core_client.in_flight") as module:
        yield module


class Bench:
    def __init__(self, module: Any) -> None:
        self.processor = Processor()
        self.in_flight = module.InFlightRequests(self.processor, PoisonDetector())

    def add(self, name: str, tokens: list[int] | None, **changes: Any) -> list[Any]:
        received: list[Any] = []
        detokenizer = None if tokens is None else SimpleNamespace(output_token_ids=tokens)
        queue = SimpleNamespace(put=received.append)
        self.processor.request_states[name] = SimpleNamespace(detokenizer=detokenizer, parent_req=None, queue=queue)
        self.in_flight.by_id[name] = a_request(request_id=name, **changes)
        return received


def test_tokens_are_those_that_vllm_has_received(module: Any) -> None:
    bench = Bench(module)
    bench.add("a", [7, 8])
    bench.add("pooling", None)

    assert bench.in_flight.tokens("a") == [7, 8]
    assert bench.in_flight.tokens("pooling") == []
    assert bench.in_flight.tokens("unknown") == []
    assert [bench.in_flight.token_count(name) for name in ("a", "pooling", "unknown")] == [2, 0, None]


def test_a_failed_request_has_one_ending(module: Any) -> None:
    bench = Bench(module)
    received = bench.add("a", [7])
    bench.in_flight.fail("a", Died())

    assert [type(one) for one in received] == [Died]
    assert (bench.processor.aborted, bench.in_flight.by_id) == (["a"], {})


def test_requests_that_cannot_go_on_fail_and_are_counted_once(module: Any) -> None:
    bench = Bench(module)
    bench.add("well", [7])
    unfit = bench.add("unfit", [7], params_structured_outputs=object())
    bench.in_flight.by_id["gone"] = a_request(request_id="gone")
    bench.in_flight.fail_unreplayable()

    assert [type(one) for one in unfit] == [Died]
    assert list(bench.in_flight.by_id) == ["well"]
    assert bench.in_flight.take_failures() == {"its grammar would start anew": 1}
    assert bench.in_flight.take_failures() == {}


def test_an_aborted_request_is_forgotten_here_and_in_vllm(module: Any) -> None:
    bench = Bench(module)
    bench.add("a", [])
    bench.in_flight.abort("a")

    assert (bench.processor.aborted, bench.in_flight.by_id) == (["a"], {})
