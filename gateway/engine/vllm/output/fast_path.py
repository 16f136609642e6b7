"""From the engine's outputs to our sinks.

vLLM gives every request a queue. Its output processor only calls `put`, the queue wakes a task, and the task makes the
chunk. Here the queue passes outputs to the sink, so there is no task to wake.

The first and last outputs of a plain request go that way, through all of vLLM's processing. The tokens between need
only their text and their count: `FastOutputPath` takes them out of the engine's outputs as these arrive, without the
tasks, objects and statistics that vLLM makes of them.
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

# The longest that a token waits for others while outputs are queued.
_MAX_COALESCING_S = 0.01
# To correct the text of a token that ends within a character, vLLM reads the four before it.
_CONTEXT_TOKENS = 8


class SinkQueue:
    """Replaces vLLM's RequestOutputCollector for a request with one text choice, because that wakes a task."""

    __slots__ = ("_constrained", "_sink")

    def __init__(self, sink: Sink, *, constrained: bool = False) -> None:
        """`constrained`: whether the answer has to follow a grammar."""
        self._sink = sink
        self._constrained = constrained

    def put(self, output: Any) -> None:
        """Take an output of the request, or the exception that ends it."""
        if isinstance(output, BaseException):
            self._sink.fail(from_exception(output))
            return
        assert isinstance(output, RequestOutput)
        for choice in output.outputs:
            reason = choice.finish_reason
            if reason == "abort":
                # Our own aborts have ended the stream already; this one comes from inside the engine.
                self._sink.fail(EngineFailed("The engine gave this request up.", retry_after_s=1))
            elif reason == "error":
                self._sink.fail(generation_error(constrained=self._constrained))
            elif choice.text or choice.token_ids or reason is not None:
                self._sink.put(Delta(choice.text, len(choice.token_ids), reason, choice.stop_reason))


@dataclass(slots=True)
class FastRequest:
    """One plain request on the fast path. An attribute of vLLM's request state, so that both end together."""

    detokenizer: Any
    tokenizer: Any
    token_ids: list[int]
    stats: Any
    put_text: Callable[[str, int, float], None]
    text: str = ""
    """Text that has been decoded and not delivered, of `count` tokens."""
    count: int = 0
    version: str | None = None
    """The version of the weights that made the newest token."""

    def decode(self, token_ids: list[int]) -> str:
        """The text that new tokens add."""
        text = ""
        for token_id in token_ids:
            self.token_ids.append(token_id)
            try:
                text += self.detokenizer.stream.step(self.tokenizer, token_id) or ""
            except Exception:
                # vLLM handles the error, and may replace the stream.
                text += self.detokenizer.decode_next(token_id)
        return text

    def flush(self, now_s: float) -> None:
        """Deliver the text that has been decoded."""
        if self.count:
            text, count, self.text, self.count = self.text, self.count, "", 0
            self.put_text(text, count, now_s)


class FastOutputPath:
    """Delivers the tokens that steps of the engine add to plain requests. Replaces the output processor's
    `process_outputs`, because AsyncLLM calls that for the rest.

    While further outputs of the engine are queued, the loop is late, and the tokens of several steps are delivered
    together: the more there is to do, the less each token costs.
    """

    def __init__(
        self, output_processor: Any, statistics: BatchedStats, has_backlog: Callable[[], bool], clock: Clock
    ) -> None:
        """`has_backlog` returns whether further outputs wait to be processed."""
        self._processor = output_processor
        self._states = output_processor.request_states
        self._process = output_processor.process_outputs
        self._statistics = statistics
        self._has_backlog = has_backlog
        self._clock = clock
        self._undelivered: list[FastRequest] = []
        self._undelivered_since_s = 0.0
        self._is_delivery_due = False
        # Tokens that were consumed from the step whose rest vLLM processes next.
        self._consumed_tokens = 0
        output_processor.process_outputs = self.process_outputs

    def register(self, request_id: str, sink: Sink, *, constrained: bool = False) -> None:
        """Deliver the outputs of this request to `sink`, on the fast path if vLLM's state of it is plain."""
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
        """Deliver the tokens that a step adds to plain requests. False if there is more in the step: the rest is left
        in it, and vLLM has to process it before the next step comes here."""
        now_s = self._clock.now()
        at_once = not self._undelivered and not self._has_backlog()
        states, timestamp, version = self._states, outputs.timestamp, outputs.weight_version
        rest: list[Any] = []
        gaps: list[float] = []
        tokens = 0
        for output in outputs.outputs:
            state = states.get(output.request_id)
            request: FastRequest | None = getattr(state, "sluice", None)
            token_ids = output.new_token_ids
            count = len(token_ids)
            if (
                request is None
                or output.finish_reason is not None
                or output.events is not None
                or state.is_prefilling
                or not count
            ):
                rest.append(output)
                continue
            tokens += count
            stats = request.stats
            if stats is not None:
                stats.num_generation_tokens += count
                gaps.append(timestamp - stats.last_token_ts)
                stats.last_token_ts = timestamp
            if version != request.version:
                state.track_weight_version(version)
                request.version = version
            text = request.decode(token_ids)
            if at_once:
                request.put_text(text, count, now_s)
            else:
                if not self._undelivered:
                    self._undelivered_since_s = now_s
                if not request.count:
                    self._undelivered.append(request)
                request.text += text
                request.count += count
        if not at_once:
            self._deliver(now_s)
        self._statistics.observe_latencies(outputs.engine_index, gaps)
        outputs.outputs = rest
        if rest:
            self._consumed_tokens = tokens
            return False
        # This also fills in numbers that the scheduler does not have.
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
            request: FastRequest | None = getattr(self._states.get(output.request_id), "sluice", None)
            if request is not None:
                # Its earlier tokens first.
                request.flush(self._clock.now())
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
        """Drop a request that has its error; the abort that vLLM makes of that would be a second ending."""
        self._states[request_id].queue = DiscardingQueue()
        self._processor.abort_requests([request_id], internal=True)

    def _deliver(self, now_s: float) -> None:
        """Deliver the decoded text, unless more outputs are queued."""
        if self._has_backlog() and now_s - self._undelivered_since_s < _MAX_COALESCING_S:
            if not self._is_delivery_due:
                # The next output may be none that calls this method.
                self._is_delivery_due = True
                get_running_loop().call_soon(self._deliver_later)
            return
        requests, self._undelivered = self._undelivered, []
        for request in requests:
            request.flush(now_s)

    def _deliver_later(self) -> None:
        self._is_delivery_due = False
        self._deliver(self._clock.now())

    def _forget_logprobs(self, request_id: str) -> None:
        """Drop the log probabilities that are not read again: vLLM keeps those of a stream, some kilobytes a token, to
        its end, and reads the newest."""
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
