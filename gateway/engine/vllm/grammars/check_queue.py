"""The order in which grammars are checked, and their results.

A grammar is checked once for all requests that contain it, in a process of its own (a child of `fork_server`), which is
killed when its time is up or when no request waits for it any more. Clients take turns. When all processes are in use,
the longest-running check is ended, so that one client with a hundred hopeless grammars delays another client's by a
moment only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.clock import Clock
from gateway.engine.vllm.grammars.check_results import CheckResult, ResultCache
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.errors import Overloaded, SluiceError

logger = logging.getLogger(__name__)

# A check runs this long before it may be ended in favour of a waiting one.
_UNDISTURBED_S = 1.0
# Grammars of one client that may wait; each belongs to a request with its body.
_MAX_WAITING = 256
# The process may take this long until it reports ready: it imports libraries, maybe on a busy machine. A request waits
# for that no longer than the shorter time, and is then refused with a time to retry.
_READY_WITHIN_S = 120.0
_START_GRACE_S = 10.0
# The process reports the end of a check within this time after the limit.
_ANSWER_WITHIN_S = 1.0


class CheckerConnection(Protocol):
    """A running checker process."""

    def send(self, document: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """End the process."""


OnDocument = Callable[[Mapping[str, Any] | None], None]
"""Called with each document from the process, and with None when the process has ended."""


@dataclass(slots=True, eq=False)
class _Check:
    """One grammar that waits or is being checked. `waiters` are the requests that await its result."""

    id: int
    key: bytes
    constraint: Mapping[str, Any]
    client: str
    result: asyncio.Future[CheckResult]
    waiters: int = 0
    started_s: float | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


@dataclass(slots=True, eq=False)
class CheckQueue:
    """The grammars of one gateway process that are being checked, and the results.

    `start` starts a checker process; it is called for the first grammar, and again after that process has ended.
    `vocabulary` returns outlines' vocabulary; it is called when a grammar needs it.
    """

    limits: GrammarLimits
    clock: Clock
    start: Callable[[OnDocument], Awaitable[CheckerConnection]]
    vocabulary: Callable[[], Awaitable[Mapping[str, Any]]]
    results: ResultCache = field(default_factory=ResultCache, init=False)
    _process: CheckerConnection | None = field(default=None, init=False)
    _starting: asyncio.Task[None] | None = field(default=None, init=False)
    _vocabulary_sent: asyncio.Task[None] | None = field(default=None, init=False)
    _checks: dict[bytes, _Check] = field(default_factory=dict, init=False)
    _running: dict[int, _Check] = field(default_factory=dict, init=False)
    _waiting: OrderedDict[str, deque[_Check]] = field(default_factory=OrderedDict, init=False)
    _end_oldest_timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _last_id: int = field(default=0, init=False)

    async def check(self, constraint: Mapping[str, Any], client: str, key: bytes) -> CheckResult:
        """The result for the grammar with the digest `key`. Raises Overloaded if other grammars or a busy machine took
        its time."""
        known = self.results.get(key)
        if known is not None:
            return known
        check = self._checks.get(key) or self._enqueue(key, constraint, client)
        check.waiters += 1
        try:
            return await asyncio.shield(check.result)
        finally:
            check.waiters -= 1
            if not check.waiters and not check.result.done():
                self._abandon(check)

    def start_process(self) -> None:
        """Start the process, unless it runs or is starting."""
        if self._process is None and self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._run_start())

    async def close(self) -> None:
        """End the process and cancel all waits. The server's drain answers the requests."""
        for check in list(self._checks.values()):
            self._abandon(check)
        if self._end_oldest_timer is not None:
            self._end_oldest_timer.cancel()
        for task in (self._starting, self._vocabulary_sent):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._process is not None:
            self._process.close()
            self._process = None

    # Checks.

    def _enqueue(self, key: bytes, constraint: Mapping[str, Any], client: str) -> _Check:
        queue = self._waiting.setdefault(client, deque())
        if len(queue) >= _MAX_WAITING:
            raise Overloaded("Too many grammars of this client are being checked.", retry_after_s=2)
        self._last_id += 1
        loop = asyncio.get_running_loop()
        check = _Check(self._last_id, key, constraint, client, loop.create_future())
        # All waiters may have gone; asyncio would warn of an exception that is never retrieved.
        check.result.add_done_callback(lambda done: done.cancelled() or done.exception())
        starting_s = _START_GRACE_S if self._process is None else 0.0
        check.timer = loop.call_later(starting_s + self.limits.wall_s, self._on_timeout, check)
        self._checks[key] = check
        queue.append(check)
        self._start_waiting()
        return check

    def _on_timeout(self, check: _Check) -> None:
        """The time limit has passed, whether the check was waiting or running."""
        if self._process is None:
            self._fail(check, Overloaded("The grammar checker is still starting.", retry_after_s=5))
        elif check.started_s is None:
            self._fail(check, Overloaded("Other grammars took the time of this one.", retry_after_s=2))
        # Otherwise the process reports whether the grammar was slow or the machine was busy; it has the figures.
        elif check.id in self._running:
            left_s = check.started_s + self.limits.wall_s + _ANSWER_WITHIN_S - self.clock.now()
            check.timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._fail, check, _too_busy())

    def _abandon(self, check: _Check) -> None:
        """The last waiter has gone."""
        self._remove(check)
        check.result.cancel()
        self._start_waiting()

    def _fail(self, check: _Check, error: SluiceError) -> None:
        self._remove(check)
        if not check.result.done():
            check.result.set_exception(error)
        self._start_waiting()

    def _remove(self, check: _Check) -> None:
        """Remove the check from every list, and end its process."""
        if check.timer is not None:
            check.timer.cancel()
        if self._checks.get(check.key) is check:
            del self._checks[check.key]
        if self._running.pop(check.id, None) is not None:
            if self._process is not None:
                self._process.send({"cancel": check.id})
        elif (queue := self._waiting.get(check.client)) is not None and check in queue:
            queue.remove(check)
            if not queue:
                del self._waiting[check.client]

    def _start_waiting(self) -> None:
        """Start waiting checks in free processes, clients in turn."""
        if self._waiting and self._process is None:
            self.start_process()
            return
        while self._waiting and len(self._running) < self.limits.processes:
            client, queue = self._waiting.popitem(last=False)
            check = queue.popleft()
            if queue:
                self._waiting[client] = queue
            check.started_s = self.clock.now()
            self._running[check.id] = check
            assert self._process is not None
            self._process.send({"id": check.id, "constraint": dict(check.constraint)})
        if self._waiting and self._end_oldest_timer is None:
            oldest = min(self._running.values(), key=_started_s)
            wait_s = max(0.0, _started_s(oldest) + _UNDISTURBED_S - self.clock.now())
            self._end_oldest_timer = asyncio.get_running_loop().call_later(wait_s, self._end_oldest)

    def _end_oldest(self) -> None:
        """End the longest-running check if all processes are in use and a check waits."""
        self._end_oldest_timer = None
        if not self._waiting or not self._running or len(self._running) < self.limits.processes:
            return
        oldest = min(self._running.values(), key=_started_s)
        if self.clock.now() - _started_s(oldest) >= _UNDISTURBED_S:
            self._fail(
                oldest,
                Overloaded(
                    f"This grammar takes longer than {_UNDISTURBED_S:g} s to compile, and others are waiting.",
                    retry_after_s=5,
                ),
            )
        else:
            self._start_waiting()

    # The process.

    async def _run_start(self) -> None:
        try:
            self._process = await asyncio.wait_for(self.start(self._on_document), _READY_WITHIN_S)
        except Exception:
            logger.error("the process that checks grammars could not be started")
            logger.debug("the cause", exc_info=True)
            for check in list(self._checks.values()):
                self._fail(check, _unavailable())
        finally:
            self._starting = None
        self._start_waiting()

    def _on_document(self, document: Mapping[str, Any] | None) -> None:
        if document is None:
            self._on_process_end()
            return
        check = self._running.pop(int(document["id"]), None)
        if check is None:
            return
        outcome = document["outcome"]
        if outcome == "vocabulary":
            self._retry_with_vocabulary(check)
        elif outcome == "starved":
            self._fail(check, _too_busy())
        else:
            result = self._to_result(document)
            # A late check might be in time on a less busy machine, so its result is not cached.
            if outcome != "late":
                self.results.put(check.key, result)
            self._remove(check)
            if not check.result.done():
                check.result.set_result(result)
        self._start_waiting()

    def _to_result(self, document: Mapping[str, Any]) -> CheckResult:
        if document["outcome"] == "good":
            return CheckResult(str(document["backend"]))
        if document["outcome"] in ("slow", "late"):
            return CheckResult(None, f"takes longer than {self.limits.timeout_s:g} s to compile (grammars.timeout_s)")
        if document["outcome"] == "memory":
            limit_mib = self.limits.max_memory_bytes // 2**20
            return CheckResult(None, f"takes more memory than {limit_mib} MiB (grammars.max_memory_bytes)")
        return CheckResult(None, f"cannot be compiled: {document.get('message', '')}")

    def _retry_with_vocabulary(self, check: _Check) -> None:
        """The check needs outlines' vocabulary; it waits in its client's queue until that has been sent."""
        if self._vocabulary_sent is None or self._vocabulary_sent.done():
            self._vocabulary_sent = asyncio.get_running_loop().create_task(self._send_vocabulary(check))
        else:
            self._vocabulary_sent.add_done_callback(lambda _: self._requeue(check))

    async def _send_vocabulary(self, check: _Check) -> None:
        document = await self.vocabulary()
        if self._process is not None:
            self._process.send({"vocabulary": document})
        self._requeue(check)

    def _requeue(self, check: _Check) -> None:
        if self._checks.get(check.key) is check:
            check.started_s = None
            self._waiting.setdefault(check.client, deque()).append(check)
            self._start_waiting()

    def _on_process_end(self) -> None:
        """The process has ended by itself. A running check may be the cause, so those fail; the waiting ones stay."""
        self._process = None
        lost, self._running = list(self._running.values()), {}
        logger.warning("the process that checks grammars has ended and is replaced")
        for check in lost:
            self._fail(check, _unavailable())
        self._start_waiting()


def _started_s(check: _Check) -> float:
    assert check.started_s is not None
    return check.started_s


def _too_busy() -> Overloaded:
    return Overloaded("The machine was too busy to check this grammar.", retry_after_s=2)


def _unavailable() -> Overloaded:
    return Overloaded("Grammars cannot be checked at the moment.", retry_after_s=5)
