"""vLLM's client of the engine process, as AsyncLLM sees it, made to outlive that process.

AsyncLLM, its output processor and everything above them (detokenizers, parsers, collectors, vLLM's own app) live in
our process, so all that a dead engine takes along is its KV cache. This object stands where AsyncLLM keeps its client
and remembers the requests that are in the engine. When the engine dies, AsyncLLM only sees a pause: a new client takes
the old one's place, and every request that can go on is sent again with the tokens received so far as part of its
prompt (`continuation`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from gateway.clock import Clock
from gateway.engine.base import Revival
from gateway.engine.vllm import continuation
from gateway.engine.vllm.pull import Outputs, Pull

logger = logging.getLogger(__name__)

# The kernel frees a killed process's memory in less; what takes longer will not end by being waited for.
_GONE_WITHIN_S = 10.0


class LastingCore:
    """Forwards to the client of the day. To be used from one event loop, once `AsyncLLM` has it."""

    def __init__(self, core: Any, output_processor: Any, clock: Clock) -> None:
        self._core = core
        self._pull: Pull | None = None
        self.express: Callable[[Any], bool] | None = None
        """Does what it can of a step as soon as that arrives, and tells whether AsyncLLM need not see the rest."""
        self._receive()
        self._output_processor = output_processor
        self._clock = clock
        self._requests: dict[str, Any] = {}
        self._arrived: set[str] = set()
        """Those that came while there was no engine: they do not go on, they begin."""
        self._scheduled_before: set[str] = set()
        """Those that went on behind tokens when the engine was last replaced."""
        self._failed: Counter[str] = Counter()
        self._replaced = asyncio.Event()
        self._given_up = False
        # What `AsyncLLM.errored` looks at: a pause is not an error.
        self.resources = SimpleNamespace(engine_dead=False)
        self.lost = asyncio.Event()
        """Set while there is no engine."""
        self._heard_s: dict[int, float] = {}
        self._hear_all()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def _receive(self) -> None:
        """Have vLLM's task receive from the core in our way, unless it has begun to do so in its own."""
        if self._pull is not None:
            self._pull.close()
        resources = self._core.resources
        if resources.output_queue_task is None:
            theirs = resources.output_socket
            self._pull = resources.output_socket = Pull(theirs)
            self._core.outputs_queue = Outputs(self._take)
            self._core._ensure_output_queue_task()
            resources.output_socket = theirs

    def _take(self, outputs: Any) -> bool:
        if self.express is None or not self.express(outputs):
            return False
        self._hear(outputs)
        return True

    def _hear(self, outputs: Any) -> None:
        """The engine has said this."""
        self._heard_s[getattr(outputs, "engine_index", 0)] = self._clock.now()

    # What AsyncLLM calls for every request.

    async def get_output_async(self) -> Any:
        """The next outputs. Waits through a restart; raises EngineDeadError if there will be no other engine."""
        while True:
            core = self._core
            try:
                outputs = await core.get_output_async()
            except Exception:
                if core is self._core:
                    self.lose()
                    await self._replaced.wait()
                if self._given_up:
                    raise EngineDeadError from None
                continue
            self._hear(outputs)
            for output in outputs.outputs:
                if output.events is not None and output.request_id in self._scheduled_before:
                    output.events = _without_queueing(output.events)
                if output.finish_reason is not None:
                    if str(output.finish_reason) == "abort" and self._falls():
                        outputs.outputs = self._without_given_up(outputs.outputs)
                        self.lose()
                        break
                    self._requests.pop(output.request_id, None)
            return outputs

    def _without_given_up(self, outputs: list[Any]) -> list[Any]:
        """What an engine says that vLLM ends because another one has died, without its aborts of requests that nobody
        has aborted: those go on with the next."""
        kept = []
        for output in outputs:
            if str(output.finish_reason) == "abort" and output.request_id in self._requests:
                continue
            if output.finish_reason is not None:
                self._requests.pop(output.request_id, None)
            kept.append(output)
        return kept

    def behind(self) -> bool:
        """Whether outputs have arrived that nobody has taken yet."""
        return not self._core.outputs_queue.empty() or (self._pull is not None and self._pull.readable)

    async def add_request_async(self, request: Any) -> None:
        """Send a request to the engine, or to the next one."""
        if self._given_up:
            raise EngineDeadError
        self._requests[request.request_id] = request
        if self.lost.is_set():
            self._arrived.add(request.request_id)
        else:
            try:
                await self._core.add_request_async(request)
            except EngineDeadError:
                self.lose()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Forget requests, here and in the engine."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)
        await self._core.abort_requests_async(request_ids)

    # The engine's life.

    def lose(self) -> None:
        """The engine is dead."""
        if self.lost.is_set():
            return
        self._replaced.clear()
        self.lost.set()
        # Nobody will answer them.
        for future in list(self._core.utility_results.values()):
            if not future.done():
                future.set_exception(EngineDeadError())
        self._fail_hopeless()

    def process_died(self) -> bool:
        """Whether vLLM's own monitor has found the process dead, or is still ending the others with it: data-parallel
        engines live and die together."""
        return bool(self._core.resources.engine_dead) or self._falls()

    def _falls(self) -> bool:
        return not all(process.is_alive() for process in self._processes())

    @property
    def engines(self) -> int:
        """How many engines there are: one, or as many as are data-parallel."""
        return len(getattr(self._core, "core_engines", (0,)))

    @property
    def heard_s(self) -> float:
        """When the engine last said anything; of several the one that has been silent the longest."""
        return min(self._heard_s.values())

    def _hear_all(self) -> None:
        self._heard_s = dict.fromkeys([*self._heard_s, *range(self.engines)], self._clock.now())

    async def answers(self, within_s: float) -> bool:
        """Whether the engine's busy loop turns: a call that only it can answer comes back in time."""
        try:
            await asyncio.wait_for(self._core.is_scheduler_paused_async(), within_s)
        except (TimeoutError, EngineDeadError):
            return False
        self._hear_all()
        return True

    def kill(self) -> None:
        """End an engine that is stuck. Its processes get no chance to object: they would not take it."""
        for process in self._processes():
            process.kill()

    def _processes(self) -> list[Any]:
        """Engine processes on this machine; actors of a Ray cluster are not among them."""
        return list(getattr(self._core.resources.engine_manager, "processes", ()))

    def end(self) -> None:
        """Free what the dead engine has left: processes, sockets. Blocks until its processes are gone, because the
        next engine needs their memory."""
        self._core.shutdown(timeout=0)
        for process in self._processes():
            # Of several that are ended with one that died, each gets its time to say goodbye; nobody listens.
            process.kill()
            process.join(_GONE_WITHIN_S)

    async def replace(self, core: Any) -> Revival:
        """Go on with `core`, a client whose engine is ready."""
        # Again: what the engine had said before it died has been processed since.
        self._fail_hopeless()
        self._core = core
        self._receive()
        self._scheduled_before.clear()
        sent: set[str] = set()
        continued = 0
        while left := [request for name, request in self._requests.items() if name not in sent]:
            for request in left:
                sent.add(request.request_id)
                # It may have been aborted while others were being sent.
                if request.request_id in self._requests:
                    tokens = self._received(request.request_id)
                    if tokens:
                        self._scheduled_before.add(request.request_id)
                    await core.add_request_async(continuation.continued(request, tokens))
                    continued += request.request_id not in self._arrived
        self._arrived.clear()
        self._hear_all()
        self.lost.clear()
        self._replaced.set()
        failed, self._failed = self._failed, Counter()
        return Revival(continued=continued, failed=dict(failed))

    def give_up(self) -> None:
        """There will be no other engine: everything in flight fails, and so does everything to come."""
        self._given_up = True
        self.resources.engine_dead = True
        self._replaced.set()

    def _fail_hopeless(self) -> None:
        """Fail the requests that cannot go on, each choice of one with all the others."""
        states = self._output_processor.request_states
        for name, request in list(self._requests.items()):
            state = states.get(name)
            if state is None:
                self._requests.pop(name, None)
                continue
            reason = continuation.obstacle(request, len(self._received(name)))
            if reason is None:
                continue
            self._failed[reason] += 1
            parent = state.parent_req
            state.queue.put(EngineDeadError())
            for one in [name] if parent is None else list(parent.child_requests):
                self._requests.pop(one, None)
                if (other := states.get(one)) is not None:
                    # The abort that removes it would be taken for its ending.
                    other.queue = _Nobody()
            self._output_processor.abort_requests([name if parent is None else parent.request_id], internal=True)

    def _received(self, name: str) -> list[int]:
        """The tokens that have come of a request."""
        state = self._output_processor.request_states.get(name)
        detokenizer = None if state is None else state.detokenizer
        return [] if detokenizer is None else list(detokenizer.output_token_ids)


def _without_queueing(events: list[Any]) -> list[Any]:
    """vLLM keeps the last time of queueing and the first of scheduling: of a request that had been scheduled by an
    earlier engine, the difference would be a negative time in the queue."""
    return [event for event in events if event.type.name != "QUEUED"]


class _Nobody:
    """A queue that nobody reads."""

    def put(self, output: Any) -> None:
        """Forget it."""


__all__ = ["LastingCore"]
