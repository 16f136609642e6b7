"""What is taken out of the engine's steps, over vLLM's own output processor and the demo model's tokenizer."""

from __future__ import annotations

import asyncio
import random
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from gateway import demo
from gateway.domain import Delta, OutputPart
from gateway.errors import SluiceError
from tests.support.time import clock, in_virtual_time, settle


@pytest.fixture(scope="module")
def fast_path() -> Any:
    """The module; importing it imports vLLM, which takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gateway.engine.vllm.output import fast_path

    return fast_path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.MODEL_PATH)


@dataclass
class RecordedSink:
    """A sink that records its calls, and which of the two methods was called."""

    parts: list[tuple[str, str, int]] = field(default_factory=list)
    reason: str | None = None

    is_over_high_water = False

    def put_text(self, text: str, tokens: int, now_s: float) -> None:
        self.parts.append(("put_text", text, tokens))

    def put(self, part: OutputPart) -> None:
        assert isinstance(part, Delta)
        self.parts.append(("put", part.text, part.tokens))
        self.reason = part.finish_reason

    def finish(self) -> None:
        raise AssertionError

    def fail(self, error: SluiceError) -> None:
        raise error

    async def wait_writable(self) -> None:
        raise AssertionError

    @property
    def text(self) -> str:
        return "".join(text for _, text, _ in self.parts)


class Counts:
    """Stands for `BatchedStats`."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.steps: list[int] = []

    def observe_latencies(self, index: int, values: list[float]) -> None:
        self.gaps += values

    def add_step(self, index: int, scheduler_stats: Any, tokens: int) -> None:
        self.steps.append(tokens)


class Bench:
    """A processor whose steps are taken, and one that is vLLM's alone."""

    def __init__(self, fast_path: Any, tokenizer: Any) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.behind = False
        self.counts = Counts()
        self.processor = OutputProcessor(tokenizer, log_stats=True)
        self.untouched = OutputProcessor(tokenizer, log_stats=True)
        self.steps = fast_path.FastOutputPath(self.processor, self.counts, lambda: self.behind, clock())
        self.module = fast_path
        self.left: list[list[str]] = []
        """Of each step, the requests of which vLLM saw anything."""
        self.counted = 0
        """Generated tokens, in vLLM's own statistics."""

    def add(self, name: str, **params: Any) -> tuple[RecordedSink, RecordedSink]:
        """A request: its sink, and a sink for the output of vLLM alone."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        ours, theirs = RecordedSink(), RecordedSink()
        for processor in (self.processor, self.untouched):
            wanted = SamplingParams(output_kind=RequestOutputKind.DELTA, **params)
            processor.add_request(
                EngineCoreRequest(name, [1, 2, 3], None, wanted, None, 0.0, None, None, None, external_req_id=name),
                None,
            )
        self.steps.register(name, ours)
        self.untouched.request_states[name].queue = self.module.SinkQueue(theirs)
        return ours, theirs

    def step(
        self, tokens: dict[str, list[int]], finished: tuple[str, ...] = (), preempted: tuple[str, ...] = ()
    ) -> bool:
        """One step of the engine; whether everything was taken out of it."""
        whole = self._through(self.untouched.process_outputs, self._outputs(tokens, finished, preempted))
        outputs = self._outputs(tokens, finished, preempted)
        taken: bool = self.steps.consume(outputs)
        if taken:
            self.left.append([])
        else:
            self.left.append([output.request_id for output in outputs.outputs])
            self.counted += self._through(self.processor.process_outputs, outputs)
        assert whole == sum(map(len, tokens.values()))
        return taken

    def _through(self, process: Any, outputs: Any) -> int:
        from vllm.v1.metrics.stats import IterationStats

        iteration = IterationStats()
        process(outputs.outputs, outputs.timestamp, iteration, outputs.weight_version)
        return int(iteration.num_generation_tokens)

    def _outputs(self, tokens: dict[str, list[int]], finished: tuple[str, ...], preempted: tuple[str, ...]) -> Any:
        from vllm.v1.engine import (
            EngineCoreEvent,
            EngineCoreEventType,
            EngineCoreOutput,
            EngineCoreOutputs,
            FinishReason,
        )
        from vllm.v1.metrics.stats import PrefillStats

        def output(name: str, new: list[int]) -> Any:
            first = (
                self.untouched.request_states[name].is_prefilling if name in self.untouched.request_states else False
            )
            return EngineCoreOutput(
                name,
                new,
                finish_reason=FinishReason.LENGTH if name in finished else None,
                events=[EngineCoreEvent.new_event(EngineCoreEventType.PREEMPTED)] if name in preempted else None,
                prefill_stats=PrefillStats() if first else None,
            )

        outputs = [output(name, new) for name, new in tokens.items()]
        return EngineCoreOutputs(outputs=outputs, timestamp=clock().now(), weight_version="default")


@in_virtual_time
async def test_the_tokens_between_the_first_and_the_last_of_a_plain_request_never_reach_vllm(
    fast_path: Any, tokenizer: Any
) -> None:
    bench = Bench(fast_path, tokenizer)
    ours, theirs = bench.add("a")
    taken = [bench.step({"a": [300 + number]}) for number in range(6)]
    bench.step({"a": [310]}, finished=("a",))

    assert taken == [False, True, True, True, True, True]
    assert bench.left == [["a"], [], [], [], [], [], ["a"]]
    assert [kind for kind, _, _ in ours.parts] == ["put", *["put_text"] * 5, "put"]
    assert (ours.text, ours.reason) == (theirs.text, theirs.reason)
    assert bench.counts.steps == [1] * 5, "each step is an observation of its own"
    assert len(bench.counts.gaps) == 5
    assert bench.processor.request_states == {}


@pytest.mark.parametrize("seed", range(25))
@in_virtual_time
async def test_whatever_the_steps_hold_texts_and_counts_are_vllms(fast_path: Any, tokenizer: Any, seed: int) -> None:
    """Plain requests among others, several tokens a step, characters in pieces, preemptions, a loop that is behind."""
    chance = random.Random(seed)
    bench = Bench(fast_path, tokenizer)
    kinds: list[dict[str, Any]] = [{}, {}, {"stop": ["zzz"]}, {"logprobs": 1}]
    words = ["river", " the", " 🦀", "né", "\n", " ", "日本語", "."]
    sinks: dict[str, tuple[RecordedSink, RecordedSink]] = {}
    live: dict[str, list[int]] = {}
    total = 0
    for number in range(60):
        if number < 40 and chance.random() < 0.3:
            name = f"r{number}"
            kind = chance.choice(kinds[:3])
            sinks[name] = bench.add(name, **kind)
            text = "".join(chance.choice(words) for _ in range(12))
            live[name] = tokenizer(text, add_special_tokens=False)["input_ids"]
        bench.behind = chance.random() < 0.4
        tokens = {name: live[name][: chance.choice([1, 1, 1, 3])] for name in live if chance.random() < 0.9}
        for name, new in tokens.items():
            live[name] = live[name][len(new) :]
        finished = tuple(name for name in tokens if not live[name])
        preempted = tuple(name for name in tokens if chance.random() < 0.1)
        total += sum(map(len, tokens.values()))
        bench.step(tokens, finished, preempted)
        for name in finished:
            del live[name]
        if chance.random() < 0.5:
            # One turn: a wait for the loop to catch up looks again in each, and time stands still.
            await asyncio.sleep(0)
    bench.behind = False
    await settle()

    assert len(sinks) > 5
    for ours, theirs in sinks.values():
        assert (ours.text, ours.reason) == (theirs.text, theirs.reason)
        assert sum(tokens for *_, tokens in ours.parts) == sum(tokens for *_, tokens in theirs.parts)
    assert bench.counted + sum(bench.counts.steps) == total


@in_virtual_time
async def test_while_the_loop_is_behind_texts_are_emitted_together(fast_path: Any, tokenizer: Any) -> None:
    bench = Bench(fast_path, tokenizer)
    ours, theirs = bench.add("a")
    bench.step({"a": [300]})
    bench.behind = True
    for token in (301, 302, 303):
        bench.step({"a": [token]})

    assert len(ours.parts) == 1

    bench.behind = False
    await settle()

    assert [tokens for *_, tokens in ours.parts] == [1, 3]
    assert ours.text == theirs.text

    bench.behind = True
    bench.step({"a": [304]})
    clock().advance(1)
    bench.step({"a": [305]})

    assert [tokens for *_, tokens in ours.parts] == [1, 3, 2], "but not for long"

    bench.behind = False
    await settle()


@in_virtual_time
async def test_text_that_was_held_back_comes_before_the_end(fast_path: Any, tokenizer: Any) -> None:
    bench = Bench(fast_path, tokenizer)
    ours, theirs = bench.add("a")
    bench.step({"a": [300]})
    bench.behind = True
    bench.step({"a": [301]})
    bench.step({"a": [302]}, finished=("a",))
    bench.behind = False
    await settle()

    assert [(kind, tokens) for kind, _, tokens in ours.parts] == [("put", 1), ("put_text", 1), ("put", 1)]
    assert ours.text == theirs.text


@in_virtual_time
async def test_a_step_with_scheduler_events_reaches_vllm(fast_path: Any, tokenizer: Any) -> None:
    from vllm.v1.metrics.stats import SchedulerStats

    bench = Bench(fast_path, tokenizer)
    ours, _ = bench.add("a")
    bench.step({"a": [300]})
    outputs = bench._outputs({"a": [301]}, (), ())
    outputs.scheduler_stats = SchedulerStats(num_running_reqs=1)

    assert bench.steps.consume(outputs)

    outputs = bench._outputs({"a": [302]}, (), ())
    outputs.scheduler_stats = SchedulerStats(num_running_reqs=1)
    outputs.scheduler_stats.prefix_cache_stats.hits = 5

    assert not bench.steps.consume(outputs)
    assert outputs.outputs == []
    assert [tokens for *_, tokens in ours.parts] == [1, 1, 1]
    assert bench.counts.steps == [1, 1]


@in_virtual_time
async def test_a_request_whose_outputs_cannot_be_processed_fails_alone(fast_path: Any, tokenizer: Any) -> None:
    """vLLM's own loop would end, and with it every request of then and of later."""
    bench = Bench(fast_path, tokenizer)
    sinks = {name: bench.add(name, stop=["zzz"])[0] for name in ("a", "bad", "b", "worse", "c")}
    failures: dict[str, SluiceError] = {}
    for name in ("bad", "worse"):
        sinks[name].fail = partial(failures.setdefault, name)  # type: ignore[method-assign]
        bench.processor.request_states[name].detokenizer = None
    outputs = bench._outputs({name: [300] for name in sinks}, (), ())
    done = bench.processor.process_outputs(outputs.outputs, outputs.timestamp, None, outputs.weight_version)

    assert done.reqs_to_abort == ["bad", "worse"], "the engine aborts them"
    assert {name: error.code for name, error in failures.items()} == {"bad": "fatal_request", "worse": "fatal_request"}
    assert [len(sinks[name].parts) for name in sinks] == [1, 0, 1, 0, 1]
    assert set(bench.processor.request_states) == {"a", "b", "c"}

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    bench.steps._process = broken
    with pytest.raises(ZeroDivisionError):
        bench.processor.process_outputs([], 0.0, None)


@in_virtual_time
async def test_a_step_without_tokens_emits_nothing(fast_path: Any, tokenizer: Any) -> None:
    bench = Bench(fast_path, tokenizer)
    ours, theirs = bench.add("a")
    bench.step({"a": [300]})

    assert not bench.step({"a": []})
    assert len(ours.parts) == len(theirs.parts) == 1


@in_virtual_time
async def test_new_weights_are_noted_where_they_begin(fast_path: Any, tokenizer: Any) -> None:
    bench = Bench(fast_path, tokenizer)
    bench.add("a")
    bench.step({"a": [300]})
    for version, token in (("default", 301), ("second", 302), ("second", 303)):
        outputs = bench._outputs({"a": [token]}, (), ())
        outputs.weight_version = version
        bench.steps.consume(outputs)

    assert bench.processor.request_states["a"].weight_version_starts == [("default", 0), ("second", 2)]
