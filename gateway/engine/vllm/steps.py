"""The output step: from vLLM's outputs to our sink, in the call that vLLM's output handler makes.

vLLM gives every request a queue object of which only `put` is ever called by the output processor; the queue wakes
a task, and the task makes the chunk. Here the queue *is* the sink's front, so there is no task to wake.
"""

from __future__ import annotations

from typing import Any

from vllm.outputs import RequestOutput

from gateway.engine.base import Sink
from gateway.engine.vllm.failures import from_exception
from gateway.errors import EngineFailed
from gateway.model import Delta


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


def unframe(framed: str) -> bytes:
    """The document in one event of vLLM's stream generators. Raises ValueError if it is not a single event."""
    if not (framed.startswith("data: ") and framed.endswith("\n\n")) or "\n" in framed[6:-2]:
        raise ValueError("vLLM yielded something that is not one event")
    return framed[6:-2].encode()


__all__ = ["SinkQueue", "unframe"]
