"""The output step: from vLLM's outputs to our sink, in the call that vLLM's output handler makes.

vLLM gives every request a queue object of which only `put` is ever called by the output processor; the queue wakes
a task, and the task makes the chunk. Here the queue *is* the sink's front, so there is no task to wake.

A plain request's first and last outputs go that way, through everything that vLLM does with them. The tokens between
need none of that, only their text and their count: `PlainSteps` takes them past the objects that nobody would read.
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
from gateway.engine.base import Sink
from gateway.engine.vllm.failures import from_exception
from gateway.errors import EngineFailed
from gateway.model import Delta

# The longest that a token waits for others while the loop is behind.
_BEHIND_S = 0.01
# To mend the text of a token that ends within a character, vLLM looks at the four before it.
_CONTEXT_TOKENS = 8


class SinkQueue:
    """Stands where vLLM's RequestOutputCollector stands, for a request with one text choice."""

    __slots__ = ("_sink",)

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

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
                self._sink.fail(EngineFailed("The engine failed this request.", retry_after_s=1))
            elif choice.text or choice.token_ids or reason is not None:
                self._sink.put(Delta(choice.text, len(choice.token_ids), reason, choice.stop_reason))


@dataclass(slots=True)
class _Slot:
    """What the tokens of one plain request need. vLLM's request state carries it, so that both end together."""

    detokenizer: Any
    stream: Any
    tokenizer: Any
    token_ids: list[int]
    stats: Any
    say: Callable[[str, int], None]
    text: str = ""
    count: int = 0
    """What has been taken and not said: text and tokens."""

    def take(self, token_ids: list[int]) -> None:
        """Decode new tokens."""
        text = self.text
        for token_id in token_ids:
            self.token_ids.append(token_id)
            try:
                text += self.stream.step(self.tokenizer, token_id) or ""
            except Exception:
                # vLLM knows what to do about it, and may put another stream in the place of this one.
                text += self.detokenizer.decode_next(token_id)
                self.stream = self.detokenizer.stream
        self.text = text
        self.count += len(token_ids)

    def flush(self) -> None:
        """Say what has been taken."""
        if self.count:
            text, count, self.text, self.count = self.text, self.count, "", 0
            self.say(text, count)


class PlainSteps:
    """Stands where AsyncLLM calls its output processor's `process_outputs`.

    While further outputs of the engine have arrived already, the loop is behind, and what one of them adds to a stream
    is said together with what the next ones add: the more there is to do, the less it costs.
    """

    def __init__(
        self,
        output_processor: Any,
        observe: Callable[[Any, list[float]], None],
        behind: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`observe` counts inter-token latencies as `Statistics.latencies` does. `behind` tells whether further outputs
        wait to be processed."""
        self._states = output_processor.request_states
        self._process = output_processor.process_outputs
        self._observe = observe
        self._behind = behind
        self._clock = clock
        self._unsaid: list[_Slot] = []
        self._unsaid_since_s = 0.0
        output_processor.process_outputs = self.process_outputs

    def adopt(self, request_id: str, sink: Sink) -> None:
        """Take the tokens of this request, if its state is as simple as its lane promises."""
        state = self._states.get(request_id)
        if state is None:
            return
        state.queue = SinkQueue(sink)
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
            state.sluice = _Slot(
                detokenizer,
                detokenizer.stream,
                detokenizer.tokenizer,
                detokenizer.token_ids,
                state.stats,
                sink.say,
            )

    def process_outputs(
        self, outputs: list[Any], timestamp: float | None, iteration_stats: Any, weight_version: str | None = None
    ) -> Any:
        """As OutputProcessor.process_outputs."""
        states = self._states
        rest: list[Any] = []
        gaps: list[float] = []
        generated = 0
        unsaid = self._unsaid
        announced = bool(unsaid)
        for output in outputs:
            state = states.get(output.request_id)
            slot: _Slot | None = getattr(state, "sluice", None)
            if slot is None or output.finish_reason is not None or output.events is not None or state.is_prefilling:
                rest.append(output)
                if slot is not None:
                    # In order.
                    slot.flush()
                continue
            if weight_version is not None:
                state.track_weight_version(weight_version)
            token_ids = output.new_token_ids
            if iteration_stats is not None:
                count = len(token_ids)
                stats = slot.stats
                generated += count
                stats.num_generation_tokens += count
                gaps.append(timestamp - stats.last_token_ts)
                stats.last_token_ts = timestamp
            if not slot.count:
                unsaid.append(slot)
            slot.take(token_ids)
        if unsaid and not announced:
            self._unsaid_since_s = self._clock.now()
            get_running_loop().call_soon(self._say)
        if gaps:
            iteration_stats.num_generation_tokens += generated
            self._observe(iteration_stats, gaps)
        done = self._process(rest, timestamp, iteration_stats, weight_version)
        for output in rest:
            if output.new_logprobs is not None:
                self._forget_logprobs(output.request_id)
        return done

    def _say(self) -> None:
        if self._behind() and self._clock.now() - self._unsaid_since_s < _BEHIND_S:
            get_running_loop().call_soon(self._say)
            return
        unsaid, self._unsaid = self._unsaid, []
        for slot in unsaid:
            slot.flush()

    def _forget_logprobs(self, request_id: str) -> None:
        """vLLM keeps the log probabilities of a stream, some kilobytes a token, to its end; it looks at the newest."""
        state = self._states.get(request_id)
        if state is not None and state.output_kind is RequestOutputKind.DELTA and state.stream_interval == 1:
            held = state.logprobs_processor.logprobs
            if isinstance(held, list):
                del held[:-_CONTEXT_TOKENS]


def unframe(framed: str) -> bytes:
    """The document in one event of vLLM's stream generators. Raises ValueError if it is not a single event."""
    if not (framed.startswith("data: ") and framed.endswith("\n\n")) or "\n" in framed[6:-2]:
        raise ValueError("vLLM yielded something that is not one event")
    return framed[6:-2].encode()


__all__ = ["PlainSteps", "SinkQueue", "unframe"]
