"""One failing request among others, over a loop that is named as vLLM's and has its variables."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.gateway.engine.vllm.stub_vllm import Failed, beside_stub


@pytest.fixture
def isolation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "output.isolation") as module:
        yield module


class Processor:
    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.processed: list[str] = []
        self.received: dict[str, list[Any]] = {}
        self.states: dict[str, Any] = {}

    def outputs(self, *names: str) -> list[Any]:
        for name in names:
            self.received[name] = []
            self.states[name] = SimpleNamespace(queue=SimpleNamespace(put=self.received[name].append))
        return [SimpleNamespace(request_id=name) for name in names]

    def process_outputs(self, engine_core_outputs: list[Any]) -> Any:
        reqs_to_abort: list[str] = []
        for engine_core_output in engine_core_outputs:
            if engine_core_output.request_id in self.failing:
                raise ValueError(engine_core_output.request_id)
            self.processed.append(engine_core_output.request_id)
            if engine_core_output.request_id.startswith("stop"):
                reqs_to_abort.append(engine_core_output.request_id)
        return SimpleNamespace(reqs_to_abort=reqs_to_abort)

    def run(self, isolation: Any, *names: str) -> Any:
        outputs = self.outputs(*names)
        try:
            return self.process_outputs(outputs)
        except ValueError as error:
            return isolation.skip_failing(self.process_outputs, self.states, self.states.pop, error)


def test_the_others_are_processed_and_the_failing_one_is_aborted(isolation: Any) -> None:
    processor = Processor("bad")
    done = processor.run(isolation, "stop1", "bad", "stop2", "a")

    assert processor.processed == ["stop1", "stop2", "a"]
    assert done.reqs_to_abort == ["stop1", "bad", "stop2"]
    assert [type(one) for one in processor.received["bad"]] == [Failed]
    assert "bad" not in processor.states


def test_several_may_fail(isolation: Any) -> None:
    processor = Processor("bad", "worse")
    done = processor.run(isolation, "bad", "a", "worse")

    assert processor.processed == ["a"]
    assert done.reqs_to_abort == ["bad", "worse"]


def test_an_error_from_elsewhere_is_raised(isolation: Any) -> None:
    try:
        raise OSError("elsewhere")
    except OSError as caught:
        error = caught

    with pytest.raises(OSError, match="elsewhere"):
        isolation.skip_failing(Processor().process_outputs, {}, lambda _: None, error)


@pytest.mark.parametrize(("is_done", "is_dead", "failed"), [(True, False, ["a"]), (False, False, []), (True, True, [])])
def test_a_loop_that_has_ended_is_started_again_unless_the_engine_is_dead(
    isolation: Any, is_done: bool, is_dead: bool, failed: list[str]
) -> None:
    started: list[bool] = []
    llm = SimpleNamespace(
        output_handler=SimpleNamespace(done=lambda: is_done),
        engine_core=SimpleNamespace(resources=SimpleNamespace(engine_dead=is_dead)),
        output_processor=SimpleNamespace(request_states={"a": None}),
        _run_output_handler=lambda: started.append(True),
    )

    assert isolation.restart_output_handler(llm) == failed
    assert started == [True] * len(failed)
