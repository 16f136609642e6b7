"""The requests that an engine has, or that the next one will get."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from gateway.engine.poison_detector import PoisonDetector
from gateway.engine.vllm.core_client import replay
from gateway.engine.vllm.core_client.receiver import DiscardingQueue


class InFlightRequests:
    """vLLM's requests by internal id, with the tokens that vLLM's output processor has received of them."""

    def __init__(self, output_processor: Any, poison_detector: PoisonDetector) -> None:
        self._output_processor = output_processor
        self._poison_detector = poison_detector
        self._failed: Counter[str] = Counter()
        self.by_id: dict[str, Any] = {}

    def forget(self, name: str) -> None:
        """The request has ended."""
        self.by_id.pop(name, None)
        self._poison_detector.forget(name)

    def state(self, name: str) -> Any:
        """vLLM's state of the request, None if there is none."""
        return self._output_processor.request_states.get(name)

    def tokens(self, name: str) -> list[int]:
        """The tokens that have been received."""
        detokenizer = getattr(self.state(name), "detokenizer", None)
        return [] if detokenizer is None else list(detokenizer.output_token_ids)

    def token_count(self, name: str) -> int | None:
        """How many have been received; None if the request has ended."""
        return len(self.tokens(name)) if name in self.by_id else None

    def abort(self, name: str) -> None:
        """Forget a request whose caller has no handle yet to abort it with."""
        self.forget(name)
        self._output_processor.abort_requests([name], internal=True)

    def fail(self, name: str, error: Exception) -> None:
        """Fail a request; of one with several choices, all of them."""
        state = self.state(name)
        parent = state.parent_req
        state.queue.put(error)
        for one in [name] if parent is None else list(parent.child_requests):
            self.forget(one)
            if (other := self.state(one)) is not None:
                # The abort that removes it would be delivered as its ending.
                other.queue = DiscardingQueue()
        self._output_processor.abort_requests([name if parent is None else parent.request_id], internal=True)

    def fail_unreplayable(self) -> None:
        """Fail the requests that cannot go on with another engine."""
        for name, request in list(self.by_id.items()):
            if self.state(name) is None:
                self.forget(name)
            elif (reason := replay.replay_obstacle(request, len(self.tokens(name)))) is not None:
                self._failed[reason] += 1
                self.fail(name, EngineDeadError())

    def take_failures(self) -> dict[str, int]:
        """How many could not go on since the last call, by reason."""
        failed, self._failed = self._failed, Counter()
        return dict(failed)
