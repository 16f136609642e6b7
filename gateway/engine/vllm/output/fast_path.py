"""The output step: from vLLM's outputs to our sink.

vLLM gives every request a queue object of which only `put` is ever called by the output processor; the queue wakes
a task, and the task makes the chunk. Here the queue *is* the sink's front, so there is no task to wake.

A plain request's first and last outputs go that way, through everything that vLLM does with them. The tokens between
need none of that, only their text and their count: `PlainSteps` takes them out of what the engine says as it arrives,
past the tasks, objects and statistics that nobody would read.
"""

from __future__ import annotations

import os
from asyncio import get_running_loop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from gateway.clock import Clock
from gateway.domain import Delta
from gateway.engine.base import Sink
from gateway.engine.vllm.core_client.receiver import DiscardingQueue
from gateway.engine.vllm.error_mapping import from_exception, generation_error
from gateway.engine.vllm.output import isolation
from gateway.engine.vllm.output.batched_stats import BatchedStats, is_plain
from gateway.errors import EngineFailed

# The longest that a token waits for others while the loop is behind.
_MAX_COALESCING_S = 0.01
# To mend the text of a token that ends within a character, vLLM looks at the four before it.
_CONTEXT_TOKENS = 8


class SinkQueue:
    """Stands where vLLM's RequestOutputCollector stands, for a request with one text choice."""

    __slots__ = ("_constrained", "_sink")

    def __init__(self, sink: Sink, *, constrained: bool = False) -> None:
        """`constrained`: whether a grammar holds the answer."""
        self._sink = sink
        self._constrained = constrained

    def put(self, output: Any) -> None:
        """Called by vLLM for every output of the request, and with an exception when the engine dies."""
        if isinstance(output, BaseException):
            self._sink.fail(from_exception(output))
            return
        assert isinstance(output, RequestOutput)
        for choice in output.outputs:
            reason = choice.finish_reason
            if reason == "abort":
                # Our own aborts have ended the stream already; this one came from inside the engine.
                self._sink.fail(EngineFailed("The engine gave this request up.", retry_after_s=1))
            elif reason == "error":
                self._sink.fail(generation_error(constrained=self._constrained))
            elif choice.text or choice.token_ids or reason is not None:
                self._sink.put(Delta(choice.text, len(choice.token_ids), reason, choice.stop_reason))


@dataclass(slots=True)
class FastRequest:
    """What the tokens of one plain request need. vLLM's request state carries it, so that both end together."""

    detokenizer: Any
    tokenizer: Any
    token_ids: list[int]
    stats: Any
    put_text: Callable[[str, int, float], None]
    text: str = ""
    count: int = 0
    """What has been taken and not said: text and tokens."""
    version: str | None = None
    """Of the weights that made the newest token."""

    def decode(self, token_ids: list[int]) -> str:
        """The text that new tokens add."""
        text = ""
        for token_id in token_ids:
            self.token_ids.append(token_id)
            try:
                text += self.detokenizer.stream.step(self.tokenizer, token_id) or ""
            except Exception:
                # vLLM knows what to do about it, and may put another stream in the place of this one.
                text += self.detokenizer.decode_next(token_id)
        return text

    def flush(self, now_s: float) -> None:
        """Say what has been taken."""
        if self.count:
            text, count, self.text, self.count = self.text, self.count, "", 0
            self.put_text(text, count, now_s)


class FastOutputPath:
    """Takes what the steps of the engine add to plain requests, and stands where AsyncLLM calls its output processor's
    `process_outputs` for the rest.

    While further outputs of the engine have arrived already, the loop is behind, and what one of them adds to a stream
    is said together with what the next ones add: the more there is to do, the less it costs.
    """

    def __init__(
        self, output_processor: Any, statistics: BatchedStats, behind: Callable[[], bool], clock: Clock
    ) -> None:
        """`behind` tells whether further outputs wait to be processed."""
        self._processor = output_processor
        self._states = output_processor.request_states
        self._process = output_processor.process_outputs
        self._statistics = statistics
        self._has_backlog = behind
        self._clock = clock
        self._undelivered: list[FastRequest] = []
        self._undelivered_since_s = 0.0
        self._is_delivery_due = False
        # Tokens taken out of the step whose rest vLLM processes next.
        self._consumed_tokens = 0
        output_processor.process_outputs = self.process_outputs

    def register(self, request_id: str, sink: Sink, *, constrained: bool = False) -> None:
        """Take the tokens of this request, if its state is as simple as its lane promises."""
        state = self._states.get(request_id)
        if state is None:
            return
        state.queue = SinkQueue(sink, constrained=constrained)
        detokenizer = state.detokenizer
        if (
            type(detokenizer) is FastIncrementalDetokenizer
            and detokenizer.spaces_between_special_tokens
            # A stop string may begin in one token and end in another; vLLM keeps the text for that.
            and not detokenizer.stop
            and state.stream_interval == 1
            and not state.streaming_input
            and not os.environ.get("VLLM_COMPUTE_NANS_IN_LOGITS")
        ):
            state.sluice = FastRequest(
                detokenizer, detokenizer.tokenizer, detokenizer.token_ids, state.stats, sink.put_text
            )

    def consume(self, outputs: Any) -> bool:
        """Take what a step adds to plain requests; whether that was all that it says. Otherwise the rest is left in it,
        and is vLLM's to process before the next step comes here."""
        now_s = self._clock.now()
        at_once = not self._undelivered and not self._has_backlog()
        states, timestamp, version = self._states, outputs.timestamp, outputs.weight_version
        rest: list[Any] = []
        gaps: list[float] = []
        tokens = 0
        for output in outputs.outputs:
            state = states.get(output.request_id)
            slot: FastRequest | None = getattr(state, "sluice", None)
            token_ids = output.new_token_ids
            count = len(token_ids)
            if (
                slot is None
                or output.finish_reason is not None
                or output.events is not None
                or state.is_prefilling
                or not count
            ):
                rest.append(output)
                continue
            tokens += count
            stats = slot.stats
            if stats is not None:
                stats.num_generation_tokens += count
                gaps.append(timestamp - stats.last_token_ts)
                stats.last_token_ts = timestamp
            if version != slot.version:
                state.track_weight_version(version)
                slot.version = version
            text = slot.decode(token_ids)
            if at_once:
                slot.put_text(text, count, now_s)
            else:
                if not self._undelivered:
                    self._undelivered_since_s = now_s
                if not slot.count:
                    self._undelivered.append(slot)
                slot.text += text
                slot.count += count
        if not at_once:
            self._deliver(now_s)
        self._statistics.observe_latencies(outputs.engine_index, gaps)
        outputs.outputs = rest
        if rest:
            self._consumed_tokens = tokens
            return False
        # It also fills in what the scheduler does not know.
        self._processor.update_scheduler_stats(outputs.scheduler_stats)
        if is_plain(outputs.scheduler_stats):
            self._statistics.add_step(outputs.engine_index, outputs.scheduler_stats, tokens)
            return True
        self._statistics.add_step(outputs.engine_index, None, tokens)
        return False

    def process_outputs(
        self, outputs: list[Any], timestamp: float | None, iteration_stats: Any, weight_version: str | None = None
    ) -> Any:
        """As OutputProcessor.process_outputs."""
        for output in outputs:
            slot: FastRequest | None = getattr(self._states.get(output.request_id), "sluice", None)
            if slot is not None:
                # In order.
                slot.flush(self._clock.now())
        if iteration_stats is not None:
            iteration_stats.num_generation_tokens += self._consumed_tokens
        self._consumed_tokens = 0
        try:
            done = self._process(outputs, timestamp, iteration_stats, weight_version)
        except Exception as error:
            done = isolation.skip_failing(
                lambda rest: self._process(rest, timestamp, iteration_stats, weight_version),
                self._states,
                self._forget,
                error,
            )
        for output in outputs:
            if output.new_logprobs is not None:
                self._forget_logprobs(output.request_id)
        return done

    def _forget(self, request_id: str) -> None:
        """Drop a request that has been told why; the abort that vLLM makes of it would be another ending."""
        self._states[request_id].queue = DiscardingQueue()
        self._processor.abort_requests([request_id], internal=True)

    def _deliver(self, now_s: float) -> None:
        """Say what has been taken, unless more is about to come."""
        if self._has_backlog() and now_s - self._undelivered_since_s < _MAX_COALESCING_S:
            if not self._is_delivery_due:
                # What comes next may be no step that brings us here.
                self._is_delivery_due = True
                get_running_loop().call_soon(self._deliver_later)
            return
        unsaid, self._undelivered = self._undelivered, []
        for slot in unsaid:
            slot.flush(now_s)

    def _deliver_later(self) -> None:
        self._is_delivery_due = False
        self._deliver(self._clock.now())

    def _forget_logprobs(self, request_id: str) -> None:
        """vLLM keeps the log probabilities of a stream, some kilobytes a token, to its end; it looks at the newest."""
        state = self._states.get(request_id)
        if state is not None and state.output_kind is RequestOutputKind.DELTA and state.stream_interval == 1:
            held = state.logprobs_processor.logprobs
            if isinstance(held, list):
                del held[:-_CONTEXT_TOKENS]


def parse_event(framed: str) -> bytes:
    """The document in one event of vLLM's stream generators. Raises ValueError if it is not a single event."""
    if not (framed.startswith("data: ") and framed.endswith("\n\n")) or "\n" in framed[6:-2]:
        raise ValueError("vLLM yielded something that is not one event")
    return framed[6:-2].encode()


__all__ = ["FastOutputPath", "SinkQueue", "parse_event"]
