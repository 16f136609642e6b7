"""vLLM's client of the engine process, as AsyncLLM sees it, which outlives that process.

AsyncLLM, its output processor and everything above them (detokenizers, parsers, collectors, vLLM's own app) live in
our process, so a dead engine takes only its KV cache along. This object replaces AsyncLLM's client and remembers the
requests that are in the engine. When the engine dies, AsyncLLM only sees a pause: a new client takes the old one's
place, and every request that can go on is sent again with the tokens received so far as part of its prompt (`replay`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from gateway.clock import Clock
from gateway.engine.base import RecoveryReport
from gateway.engine.poison_detector import PoisonDetector
from gateway.engine.vllm.core_client import replay
from gateway.engine.vllm.core_client.in_flight import InFlightRequests
from gateway.engine.vllm.core_client.receiver import install_receiver
from gateway.engine.vllm.core_client.trial_replay import Lock, TrialReplay
from gateway.engine.vllm.exceptions import EngineKilledByRequest

logger = logging.getLogger(__name__)

# How often to look whether the last outputs of a dead engine have been processed.
_LOOKS, _LOOK_EVERY_S = 100, 0.01
# The kernel frees a killed process's memory in less; a process that takes longer will not end by being waited for.
_GONE_WITHIN_S = 10.0


class RestartableCoreClient:
    """Delegates to the current client of vLLM. To be used from one event loop, once `AsyncLLM` has it."""

    def __init__(self, core: Any, output_processor: Any, clock: Clock) -> None:
        self._core = core
        self.consume_inline: Callable[[Any], bool] | None = None
        """Processes what it can of a step when that arrives, and returns whether AsyncLLM need not see the rest."""
        self._receiver = install_receiver(core, self._consume)
        self._output_processor = output_processor
        self._clock = clock
        self._poison_detector = PoisonDetector()
        self._in_flight = InFlightRequests(output_processor, self._poison_detector)
        self._requests = self._in_flight.by_id
        self._unsent_new: set[str] = set()
        """Requests that arrived while there was no engine; they have no tokens yet."""
        self._scheduled_before: set[str] = set()
        """Requests that were sent with tokens when the engine was last replaced."""
        # While a trial runs, new requests are held back: the request on trial is to be alone in the engine.
        self._trial: TrialReplay | None = None
        self._trial_task: asyncio.Task[None] | None = None
        self._fatal_count = 0
        self._explained_deaths = 0
        self._replaced = asyncio.Event()
        self._is_final = False
        # `AsyncLLM.errored` reads this: a pause is not an error.
        self.resources = SimpleNamespace(engine_dead=False)
        self.lost = asyncio.Event()
        """Set while there is no engine."""
        self._newest_output_s: dict[int, float] = {}
        self._mark_all_engines()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    # Outputs.

    def _consume(self, outputs: Any) -> bool:
        if self.consume_inline is None or not self.consume_inline(outputs):
            return False
        self._mark_output(outputs)
        return True

    def _mark_output(self, outputs: Any) -> None:
        self._newest_output_s[getattr(outputs, "engine_index", 0)] = self._clock.now()

    def _mark_all_engines(self) -> None:
        self._newest_output_s = dict.fromkeys([*self._newest_output_s, *range(self.engine_count)], self._clock.now())

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
            self._mark_output(outputs)
            self._take_endings(outputs)
            return outputs

    def _take_endings(self, outputs: Any) -> None:
        """Forget the requests that end with these outputs."""
        for output in outputs.outputs:
            if output.events is not None and output.request_id in self._scheduled_before:
                output.events = replay.without_queueing(output.events)
            if output.finish_reason is None:
                continue
            if str(output.finish_reason) == "abort" and self._is_dying():
                outputs.outputs = self._drop_false_aborts(outputs.outputs)
                self.mark_lost()
                return
            self._in_flight.forget(output.request_id)

    def _drop_false_aborts(self, outputs: list[Any]) -> list[Any]:
        """The outputs of an engine that vLLM ends because another one has died, without the aborts of requests that no
        client has aborted: those go on with the next engine."""
        kept = []
        for output in outputs:
            if str(output.finish_reason) == "abort" and output.request_id in self._requests:
                continue
            if output.finish_reason is not None:
                self._in_flight.forget(output.request_id)
            kept.append(output)
        return kept

    def has_backlog(self) -> bool:
        """Whether outputs have arrived that are not processed yet."""
        return not self._core.outputs_queue.empty() or (self._receiver is not None and self._receiver.has_message)

    # Requests.

    async def add_request_async(self, request: Any) -> None:
        """Send a request to the engine, or to the next one."""
        if self._is_final:
            raise EngineDeadError
        self._requests[request.request_id] = request
        if self.lost.is_set():
            self._unsent_new.add(request.request_id)
            return
        if self._trial is not None:
            self._trial.held_back[request.request_id] = None
            return
        core = self._core
        try:
            await core.add_request_async(request)
        except EngineDeadError:
            self.mark_lost()
        except asyncio.CancelledError:
            if self._is_cancelled_with(core):
                # Its caller has no handle yet to abort it with.
                self._in_flight.abort(request.request_id)
                await core.abort_requests_async([request.request_id])
                raise

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Forget requests, here and in the engine."""
        for request_id in request_ids:
            self._in_flight.forget(request_id)
        core = self._core
        try:
            await core.abort_requests_async(request_ids)
        except asyncio.CancelledError:
            if self._is_cancelled_with(core):
                raise

    def _is_cancelled_with(self, core: Any) -> bool:
        """Whether a cancelled send to `core` means that its task is to end. Otherwise the socket was closed before it
        had taken the message, because that engine has been replaced; the next one gets every request that is left."""
        task = asyncio.current_task()
        is_task_cancelled = task is not None and task.cancelling() > 0
        return is_task_cancelled or (core is self._core and not self.lost.is_set())

    # Whether the engine lives.

    def has_died(self) -> bool:
        """Whether vLLM's own monitor has found the process dead, or is still ending others with it (data parallel)."""
        return bool(self._core.resources.engine_dead) or self._is_dying()

    def _is_dying(self) -> bool:
        return not all(process.is_alive() for process in self._processes())

    @property
    def engine_count(self) -> int:
        """1, or the number of data-parallel engines."""
        return len(getattr(self._core, "core_engines", (0,)))

    @property
    def silent_engine(self) -> int:
        """The number of the engine whose newest output is the oldest."""
        return min(self._newest_output_s, key=self._newest_output_s.__getitem__)

    @property
    def last_output_s(self) -> float:
        """When the newest output came; of several engines, the time of the one that has been silent the longest."""
        return min(self._newest_output_s.values())

    async def is_paused(self) -> bool:
        """Whether an operator has paused the engine. The question goes the way of requests, to the engine's busy
        loop."""
        is_paused = bool(await self._core.is_scheduler_paused_async())
        self._mark_all_engines()
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
        """The processes on this machine, without actors of a Ray cluster."""
        return list(getattr(self._core.resources.engine_manager, "processes", ()))

    def free_dead_engine(self) -> None:
        """Free what the dead engine has left. Blocks until its processes are gone: the next one needs their memory."""
        self._core.shutdown(timeout=0)
        for process in self._processes():
            # vLLM gives each of several processes time to finish, which is of no use now.
            process.kill()
            process.join(_GONE_WITHIN_S)

    # Death and recovery.

    def mark_lost(self) -> None:
        """The engine is dead."""
        if self.lost.is_set():
            return
        self._replaced.clear()
        self.lost.set()
        # They will not be answered.
        for future in list(self._core.utility_results.values()):
            if not future.done():
                future.set_exception(EngineDeadError())
        self.cancel_trial()
        self._in_flight.fail_unreplayable()

    def cancel_trial(self) -> None:
        """Send nothing more of the requests that wait for their trial."""
        if self._trial_task is not None:
            self._trial_task.cancel()

    async def find_culprit(self) -> None:
        """Find the request that the engine has died of, if there is one, and fail it. Once, when the engine is lost."""
        for _ in range(_LOOKS):
            if not self.has_backlog():
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        held_back = {} if self._trial is None else self._trial.held_back
        self._trial = None
        in_engine = [name for name in self._requests if name not in self._unsent_new and name not in held_back]
        culprit = self._poison_detector.record_death({name: len(self._in_flight.tokens(name)) for name in in_engine})
        # No engine has had these yet, unlike the requests that waited for their trial.
        self._unsent_new.update(self._poison_detector.without_history(held_back))
        name, deaths = culprit or ("", 0)
        if (state := self._in_flight.state(name)) is None:
            return
        logger.error(
            "request %s is given up: the engine died %d times while it worked on it, the last time on it alone",
            getattr(state, "external_req_id", name),
            deaths,
        )
        self._fatal_count += 1
        self._explained_deaths += deaths
        self._in_flight.fail(name, EngineKilledByRequest())

    def take_explained_deaths(self) -> int:
        """How many deaths since the last call are attributed to requests that have failed for them."""
        deaths, self._explained_deaths = self._explained_deaths, 0
        return deaths

    async def replace(self, core: Any, *, last: bool = False) -> RecoveryReport:
        """Go on with `core`, a client whose engine is ready. `last`: it is the last engine, so each request is tried
        by itself."""
        # Again, because the last outputs of the dead engine have been processed since.
        self._in_flight.fail_unreplayable()
        self._core = core
        if self._receiver is not None:
            self._receiver.close()
        self._receiver = install_receiver(core, self._consume)
        self._scheduled_before.clear()
        resend_lock = await self._lock(exclusive=False)
        _, groups = self._poison_detector.plan_replay(self._requests, all_of_them=last)
        on_trial = dict.fromkeys(name for group in groups for name in group)
        sent: dict[str, None] = {}
        continued = len(on_trial)
        # Requests may be added and aborted while others are sent.
        while left := [name for name in self._requests if name not in sent and name not in on_trial]:
            for name in left:
                sent[name] = None
                if not (groups and name in self._unsent_new) and await self._resend(core, name):
                    continued += name not in self._unsent_new
        resent = [name for name in sent if name not in self._unsent_new]
        if groups:
            new = {name: None for name in sent if name in self._unsent_new}
            self._trial = self._new_trial(core)
            self._trial.held_back = on_trial | new
            self._trial_task = asyncio.ensure_future(self._run_trial(self._trial, resent, groups, resend_lock))
        elif not isinstance(resend_lock, nullcontext):
            # No request is on trial here, but one of another client may be.
            self._trial_task = asyncio.ensure_future(self._new_trial(core).run(resent, [], resend_lock))
        self._unsent_new.clear()
        self._mark_all_engines()
        self.lost.clear()
        self._replaced.set()
        fatal, self._fatal_count = self._fatal_count, 0
        return RecoveryReport(continued=continued, failed=self._in_flight.take_failures(), expelled=fatal)

    async def _resend(self, core: Any, name: str) -> bool:
        """Send a request with the tokens it has. False if it has been aborted meanwhile."""
        request = self._requests.get(name)
        if request is None:
            return False
        tokens = self._in_flight.tokens(name)
        if tokens:
            self._scheduled_before.add(name)
        self._poison_detector.record_send(name, len(tokens))
        await core.add_request_async(replay.continuation(request, tokens))
        return True

    def _new_trial(self, core: Any) -> TrialReplay:
        return TrialReplay(
            self._poison_detector,
            self._clock,
            tokens=self._in_flight.token_count,
            send=lambda name: self._resend(core, name),
            lock=lambda: self._lock(exclusive=True),
        )

    async def _run_trial(self, trial: TrialReplay, resent: list[str], groups: list[list[str]], lock: Lock) -> None:
        try:
            await trial.run(resent, groups, lock)
        except Exception:
            # The engine has died. After a defect, too, it is replaced: requests that are held back would wait forever.
            self.kill()
            self.mark_lost()
        else:
            self._trial = None

    async def _lock(self, *, exclusive: bool) -> Lock:
        """Keep other clients of the engine from trying requests, and with `exclusive` from sending theirs again."""
        return nullcontext()

    def fail_all(self) -> None:
        """Fail everything in flight and everything to come: no other engine will be started."""
        self._is_final = True
        self.resources.engine_dead = True
        self._replaced.set()
