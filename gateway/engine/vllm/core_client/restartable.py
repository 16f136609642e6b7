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
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from gateway.clock import Clock
from gateway.engine.base import RecoveryReport
from gateway.engine.poison_detector import PoisonDetector
from gateway.engine.vllm.core_client import replay
from gateway.engine.vllm.core_client.receiver import DiscardingQueue, InlineOutputQueue, ZmqReceiver
from gateway.engine.vllm.core_client.trial_replay import Lock, TrialReplay
from gateway.engine.vllm.exceptions import EngineKilledByRequest

logger = logging.getLogger(__name__)

# So often, until the last words of a dead engine have been processed.
_LOOKS, _LOOK_EVERY_S = 100, 0.01
# The kernel frees a killed process's memory in less; what takes longer will not end by being waited for.
_GONE_WITHIN_S = 10.0


class RestartableCoreClient:
    """Forwards to the client of the day. To be used from one event loop, once `AsyncLLM` has it."""

    def __init__(self, core: Any, output_processor: Any, clock: Clock) -> None:
        self._core = core
        self._receiver: ZmqReceiver | None = None
        self.consume_inline: Callable[[Any], bool] | None = None
        """Does what it can of a step as soon as that arrives, and tells whether AsyncLLM need not see the rest."""
        self._install_receiver()
        self._output_processor = output_processor
        self._clock = clock
        self._requests: dict[str, Any] = {}
        self._unsent_new: set[str] = set()
        """Those that came while there was no engine: they do not go on, they begin."""
        self._scheduled_before: set[str] = set()
        """Those that went on behind tokens when the engine was last replaced."""
        self._failed: Counter[str] = Counter()
        self._poison_detector = PoisonDetector()
        # While there is one, what arrives is held back: the request on trial is to be alone.
        self._trial: TrialReplay | None = None
        self._trial_task: asyncio.Task[None] | None = None
        self._fatal_count = 0
        self._explained_deaths = 0
        self._replaced = asyncio.Event()
        self._is_final = False
        # What `AsyncLLM.errored` looks at: a pause is not an error.
        self.resources = SimpleNamespace(engine_dead=False)
        self.lost = asyncio.Event()
        """Set while there is no engine."""
        self._heard_s: dict[int, float] = {}
        self._mark_all_heard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def _install_receiver(self) -> None:
        """Have vLLM's task receive from the core in our way, unless it has begun to do so in its own."""
        if self._receiver is not None:
            self._receiver.close()
        resources = self._core.resources
        if resources.output_queue_task is None:
            theirs = resources.output_socket
            self._receiver = resources.output_socket = ZmqReceiver(theirs)
            self._core.outputs_queue = InlineOutputQueue(self._consume)
            self._core._ensure_output_queue_task()
            resources.output_socket = theirs

    def _consume(self, outputs: Any) -> bool:
        if self.consume_inline is None or not self.consume_inline(outputs):
            return False
        self._mark_heard(outputs)
        return True

    def _mark_heard(self, outputs: Any) -> None:
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
                    self.mark_lost()
                    await self._replaced.wait()
                if self._is_final:
                    raise EngineDeadError from None
                continue
            self._mark_heard(outputs)
            for output in outputs.outputs:
                if output.events is not None and output.request_id in self._scheduled_before:
                    output.events = replay.without_queueing(output.events)
                if output.finish_reason is not None:
                    if str(output.finish_reason) == "abort" and self._is_dying():
                        outputs.outputs = self._drop_false_aborts(outputs.outputs)
                        self.mark_lost()
                        break
                    self._forget(output.request_id)
            return outputs

    def _drop_false_aborts(self, outputs: list[Any]) -> list[Any]:
        """What an engine says that vLLM ends because another one has died, without its aborts of requests that nobody
        has aborted: those go on with the next."""
        kept = []
        for output in outputs:
            if str(output.finish_reason) == "abort" and output.request_id in self._requests:
                continue
            if output.finish_reason is not None:
                self._forget(output.request_id)
            kept.append(output)
        return kept

    def _forget(self, name: str) -> None:
        self._requests.pop(name, None)
        self._poison_detector.forget(name)

    def has_backlog(self) -> bool:
        """Whether outputs have arrived that nobody has taken yet."""
        return not self._core.outputs_queue.empty() or (self._receiver is not None and self._receiver.has_message)

    async def add_request_async(self, request: Any) -> None:
        """Send a request to the engine, or to the next one."""
        if self._is_final:
            raise EngineDeadError
        self._requests[request.request_id] = request
        if self.lost.is_set():
            self._unsent_new.add(request.request_id)
        elif self._trial is not None:
            self._trial.held_back[request.request_id] = None
        else:
            core = self._core
            try:
                await core.add_request_async(request)
            except EngineDeadError:
                self.mark_lost()
            except asyncio.CancelledError:
                if self._is_cancelled_with(core):
                    # Its caller has nothing yet to abort it by.
                    self._forget(request.request_id)
                    self._output_processor.abort_requests([request.request_id], internal=True)
                    await core.abort_requests_async([request.request_id])
                    raise

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Forget requests, here and in the engine."""
        for request_id in request_ids:
            self._forget(request_id)
        core = self._core
        try:
            await core.abort_requests_async(request_ids)
        except asyncio.CancelledError:
            if self._is_cancelled_with(core):
                raise

    def _is_cancelled_with(self, core: Any) -> bool:
        """Whether a cancelled send to `core` means that its task is to end. Otherwise the socket was closed before it
        had taken the message: an engine that is not reached any more has been replaced, and the next one gets what is
        still wanted."""
        task = asyncio.current_task()
        is_wanted = task is not None and task.cancelling() > 0
        return is_wanted or (core is self._core and not self.lost.is_set())

    # The engine's life.

    def mark_lost(self) -> None:
        """The engine is dead."""
        if self.lost.is_set():
            return
        self._replaced.clear()
        self.lost.set()
        # Nobody will answer them.
        for future in list(self._core.utility_results.values()):
            if not future.done():
                future.set_exception(EngineDeadError())
        self.cancel_trial()
        self._fail_unreplayable()

    def cancel_trial(self) -> None:
        """Send nothing more of what waits for its trial."""
        if self._trial_task is not None:
            self._trial_task.cancel()

    async def find_culprit(self) -> None:
        """Find out whether the engine has died of a request, which then fails. Once, when it is lost."""
        for _ in range(_LOOKS):
            if not self.has_backlog():
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        unsent = {} if self._trial is None else self._trial.held_back
        self._trial = None
        was_in_it = [name for name in self._requests if name not in self._unsent_new and name not in unsent]
        culprit = self._poison_detector.record_death({name: len(self._received_tokens(name)) for name in was_in_it})
        # Sent to no engine yet, unlike what waited for its trial.
        self._unsent_new.update(self._poison_detector.without_history(unsent))
        name, deaths = culprit or ("", 0)
        if (state := self._output_processor.request_states.get(name)) is None:
            return
        logger.error(
            "request %s is given up: the engine died %d times while it worked on it, the last time on it alone",
            getattr(state, "external_req_id", name),
            deaths,
        )
        self._fatal_count += 1
        self._explained_deaths += deaths
        self._fail(name, state, EngineKilledByRequest())

    def take_explained_deaths(self) -> int:
        """How many deaths, since this was last asked, are put down to requests that have failed for them."""
        explained, self._explained_deaths = self._explained_deaths, 0
        return explained

    def has_died(self) -> bool:
        """Whether vLLM's own monitor has found the process dead, or still ends others with it (data parallel)."""
        return bool(self._core.resources.engine_dead) or self._is_dying()

    def _is_dying(self) -> bool:
        return not all(process.is_alive() for process in self._processes())

    @property
    def engine_count(self) -> int:
        """How many there are: one, or as many as are data-parallel."""
        return len(getattr(self._core, "core_engines", (0,)))

    @property
    def silent_engine(self) -> int:
        """The number of the one that has been silent the longest."""
        return min(self._heard_s, key=self._heard_s.__getitem__)

    @property
    def last_output_s(self) -> float:
        """When the engine last said anything; of several the one that has been silent the longest."""
        return min(self._heard_s.values())

    def _mark_all_heard(self) -> None:
        self._heard_s = dict.fromkeys([*self._heard_s, *range(self.engine_count)], self._clock.now())

    async def is_paused(self) -> bool:
        """Whether the engine has been paused: a question for its busy loop, which goes the way of requests."""
        is_paused = bool(await self._core.is_scheduler_paused_async())
        self._mark_all_heard()
        return is_paused

    @property
    def pids(self) -> list[int]:
        """The engine processes on this machine."""
        return [process.pid for process in self._processes()]

    def kill(self) -> None:
        """End an engine that is stuck."""
        for process in self._processes():
            process.kill()

    def _processes(self) -> list[Any]:
        """Those on this machine; actors of a Ray cluster are not among them."""
        return list(getattr(self._core.resources.engine_manager, "processes", ()))

    def free_dead_engine(self) -> None:
        """Free what the dead engine has left. Blocks until its processes are gone: the next one needs their memory."""
        self._core.shutdown(timeout=0)
        for process in self._processes():
            # Of several each gets its time to say goodbye; nobody listens.
            process.kill()
            process.join(_GONE_WITHIN_S)

    async def replace(self, core: Any, *, last: bool = False) -> RecoveryReport:
        """Go on with `core`, a client whose engine is ready. `last`: there will be no other, so each request is tried
        by itself."""
        self._fail_unreplayable()  # Again: the engine's last words have been processed since.
        self._core = core
        self._install_receiver()
        self._scheduled_before.clear()
        together = await self._lock(exclusive=False)
        _, groups = self._poison_detector.plan_replay(self._requests, all_of_them=last)
        tried = dict.fromkeys(name for group in groups for name in group)
        sent: dict[str, None] = {}
        continued = len(tried)
        while left := [name for name in self._requests if name not in sent and name not in tried]:
            for name in left:
                sent[name] = None
                if groups and name in self._unsent_new:
                    continue
                if await self._resend(core, name):
                    continued += name not in self._unsent_new
        at_once = [name for name in sent if name not in self._unsent_new]
        if groups:
            arrived = {name: None for name in sent if name in self._unsent_new}
            self._trial = self._new_trial(core)
            self._trial.held_back = tried | arrived
            self._trial_task = asyncio.ensure_future(self._run_trial(self._trial, at_once, groups, together))
        elif not isinstance(together, nullcontext):
            # Nothing is on trial here; it may be elsewhere.
            self._trial_task = asyncio.ensure_future(self._new_trial(core).run(at_once, [], together))
        self._unsent_new.clear()
        self._mark_all_heard()
        self.lost.clear()
        self._replaced.set()
        failed, self._failed = self._failed, Counter()
        expelled, self._fatal_count = self._fatal_count, 0
        return RecoveryReport(continued=continued, failed=dict(failed), expelled=expelled)

    async def _resend(self, core: Any, name: str) -> bool:
        """Send a request with the tokens it has; whether it is still wanted."""
        request = self._requests.get(name)
        if request is None:
            # Aborted while others were being sent.
            return False
        tokens = self._received_tokens(name)
        if tokens:
            self._scheduled_before.add(name)
        self._poison_detector.record_send(name, len(tokens))
        await core.add_request_async(replay.continuation(request, tokens))
        return True

    def _new_trial(self, core: Any) -> TrialReplay:
        return TrialReplay(
            self._poison_detector,
            self._clock,
            tokens=lambda name: len(self._received_tokens(name)) if name in self._requests else None,
            send=lambda name: self._resend(core, name),
            alone=lambda: self._lock(exclusive=True),
        )

    async def _run_trial(self, trial: TrialReplay, at_once: list[str], groups: list[list[str]], together: Lock) -> None:
        try:
            await trial.run(at_once, groups, together)
        except Exception:  # It has died. After a defect, what was held back would wait for ever: the next one gets it.
            self.kill()
            self.mark_lost()
        else:
            self._trial = None

    async def _lock(self, *, exclusive: bool) -> Lock:
        """Keep other clients from trying requests, and with `exclusive` from sending theirs again."""
        return nullcontext()

    def fail_all(self) -> None:
        """There will be no other engine: everything in flight fails, and so does everything to come."""
        self._is_final = True
        self.resources.engine_dead = True
        self._replaced.set()

    def _fail_unreplayable(self) -> None:
        """Fail the requests that cannot go on, each choice of one with all the others."""
        states = self._output_processor.request_states
        for name, request in list(self._requests.items()):
            state = states.get(name)
            if state is None:
                self._forget(name)
                continue
            reason = replay.replay_obstacle(request, len(self._received_tokens(name)))
            if reason is None:
                continue
            self._failed[reason] += 1
            self._fail(name, state, EngineDeadError())

    def _fail(self, name: str, state: Any, error: Exception) -> None:
        """Fail a request; of one with several choices, all of them."""
        parent = state.parent_req
        state.queue.put(error)
        for one in [name] if parent is None else list(parent.child_requests):
            self._forget(one)
            if (other := self._output_processor.request_states.get(one)) is not None:
                # The abort that removes it would be taken for its ending.
                other.queue = DiscardingQueue()
        self._output_processor.abort_requests([name if parent is None else parent.request_id], internal=True)

    def _received_tokens(self, name: str) -> list[int]:
        """The tokens that have come of a request."""
        state = self._output_processor.request_states.get(name)
        detokenizer = None if state is None else state.detokenizer
        return [] if detokenizer is None else list(detokenizer.output_token_ids)


__all__ = ["RestartableCoreClient"]
