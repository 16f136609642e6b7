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
from gateway.engine.vllm.grammars.check_results import Verdict, Verdicts
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.errors import Overloaded, SluiceError

logger = logging.getLogger(__name__)

# A grammar that others wait for may run this long undisturbed.
_FAIR_S = 1.0
# So many of one client may wait; each is a request with its body.
_MAX_WAITING = 256
# The process may take this long from its start to its first word: it imports libraries, maybe on a busy machine. Who
# waits for that is told to come back after the shorter time.
_READY_WITHIN_S = 120.0
_START_S = 10.0
# It answers within so long of the end of a grammar's time.
_ANSWER_S = 1.0


class Link(Protocol):
    """A running checker process."""

    def send(self, document: Mapping[str, Any]) -> None:
        """Send it a document."""

    def close(self) -> None:
        """End it."""


OnDocument = Callable[[Mapping[str, Any] | None], None]
"""Takes what the process sends, and None when it has ended."""


@dataclass(slots=True, eq=False)
class _Job:
    """One grammar that is waiting or being compiled."""

    name: int
    key: bytes
    constraint: Mapping[str, Any]
    client: str
    result: asyncio.Future[Verdict]
    readers: int = 0
    began_s: float | None = None
    late: asyncio.TimerHandle | None = field(default=None, repr=False)


class Checker:
    """The grammars of one gateway process."""

    def __init__(
        self,
        limits: GrammarLimits,
        clock: Clock,
        *,
        start: Callable[[OnDocument], Awaitable[Link]],
        vocabulary: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        """`start` starts a checker process; it is called with the first grammar, and again when that process has ended.
        `vocabulary` gives what outlines compiles for; it is asked for when a grammar needs it."""
        self._limits = limits
        self._clock = clock
        self._start = start
        self._vocabulary = vocabulary
        self._link: Link | None = None
        self._starting: asyncio.Task[None] | None = None
        self._vocabulary_sent: asyncio.Task[None] | None = None
        self._jobs: dict[bytes, _Job] = {}
        self._running: dict[int, _Job] = {}
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._look: asyncio.TimerHandle | None = None
        self._names = 0
        self.verdicts = Verdicts()

    @property
    def busy(self) -> int:
        """How many grammars are waiting or being compiled."""
        return len(self._jobs)

    async def check(self, constraint: Mapping[str, Any], client: str, key: bytes) -> Verdict:
        """What becomes of the grammar, whose digest is `key`. Raises Overloaded if it had no chance to be compiled in
        time."""
        known = self.verdicts.get(key)
        if known is not None:
            return known
        job = self._jobs.get(key) or self._add(key, constraint, client)
        job.readers += 1
        try:
            return await asyncio.shield(job.result)
        finally:
            job.readers -= 1
            if not job.readers and not job.result.done():
                self._drop(job)

    def warm(self) -> None:
        """Start the process before the first grammar comes."""
        if self._link is None:
            self._ensure_started()

    async def close(self) -> None:
        """End the process. Who still waits is told that the server is stopping, by its own means."""
        for job in list(self._jobs.values()):
            self._drop(job)
        if self._look is not None:
            self._look.cancel()
        for task in (self._starting, self._vocabulary_sent):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._link is not None:
            self._link.close()
            self._link = None

    # A job's life.

    def _add(self, key: bytes, constraint: Mapping[str, Any], client: str) -> _Job:
        line = self._waiting.setdefault(client, deque())
        if len(line) >= _MAX_WAITING:
            raise Overloaded("Too many grammars of this client are being checked.", retry_after_s=2)
        self._names += 1
        loop = asyncio.get_running_loop()
        job = _Job(self._names, key, constraint, client, loop.create_future())
        # Whoever waits may have left; a failure that nobody reads is not worth a warning.
        job.result.add_done_callback(lambda done: done.cancelled() or done.exception())
        starting_s = _START_S if self._link is None else 0.0
        job.late = loop.call_later(starting_s + self._limits.wall_s, self._too_late, job)
        self._jobs[key] = job
        line.append(job)
        self._fill()
        return job

    def _too_late(self, job: _Job) -> None:
        """Its time is up, wherever it was spent."""
        if self._link is None:
            self._fail(job, Overloaded("The grammar checker is still starting.", retry_after_s=5))
        elif job.began_s is None:
            self._fail(job, Overloaded("Other grammars took the time of this one.", retry_after_s=2))
        # Else the process says whether the grammar was slow or the machine was busy; it has the figures.
        elif job.name in self._running:
            left_s = job.began_s + self._limits.wall_s + _ANSWER_S - self._clock.now()
            error = Overloaded("The machine was too busy to check this grammar.", retry_after_s=2)
            job.late = asyncio.get_running_loop().call_later(max(0.0, left_s), self._fail, job, error)

    def _drop(self, job: _Job) -> None:
        """Nobody waits for it any more."""
        self._leave(job)
        job.result.cancel()
        self._fill()

    def _fail(self, job: _Job, error: SluiceError) -> None:
        self._leave(job)
        if not job.result.done():
            job.result.set_exception(error)
        self._fill()

    def _leave(self, job: _Job) -> None:
        """Take it out of every list, and end its process."""
        if job.late is not None:
            job.late.cancel()
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        if self._running.pop(job.name, None) is not None:
            if self._link is not None:
                self._link.send({"cancel": job.name})
        elif (line := self._waiting.get(job.client)) is not None and job in line:
            line.remove(job)
            if not line:
                del self._waiting[job.client]

    def _fill(self) -> None:
        """Give free processes to those who wait, a client at a time."""
        if self._waiting and self._link is None:
            self._ensure_started()
            return
        while self._waiting and len(self._running) < self._limits.processes:
            client, line = self._waiting.popitem(last=False)
            job = line.popleft()
            if line:
                self._waiting[client] = line
            job.began_s = self._clock.now()
            self._running[job.name] = job
            assert self._link is not None
            self._link.send({"id": job.name, "constraint": dict(job.constraint)})
        if self._waiting and self._look is None:
            oldest = min(self._running.values(), key=_began)
            wait_s = max(0.0, _began(oldest) + _FAIR_S - self._clock.now())
            self._look = asyncio.get_running_loop().call_later(wait_s, self._make_place)

    def _make_place(self) -> None:
        """All processes are taken and somebody waits: the one that has run longest goes."""
        self._look = None
        if not self._waiting or not self._running or len(self._running) < self._limits.processes:
            return
        oldest = min(self._running.values(), key=_began)
        if self._clock.now() - _began(oldest) >= _FAIR_S:
            self._fail(
                oldest,
                Overloaded(
                    f"This grammar takes longer than {_FAIR_S:g} s to compile, and others are waiting.", retry_after_s=5
                ),
            )
        else:
            self._fill()

    # The process.

    def _ensure_started(self) -> None:
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._run_start())

    async def _run_start(self) -> None:
        try:
            self._link = await asyncio.wait_for(self._start(self._hear), _READY_WITHIN_S)
        except Exception:
            logger.error("the process that checks grammars could not be started")
            logger.debug("the cause", exc_info=True)
            for job in list(self._jobs.values()):
                self._fail_quietly(job)
        finally:
            self._starting = None
        self._fill()

    def _fail_quietly(self, job: _Job) -> None:
        self._leave(job)
        if not job.result.done():
            job.result.set_exception(Overloaded("Grammars cannot be checked at the moment.", retry_after_s=5))

    def _hear(self, document: Mapping[str, Any] | None) -> None:
        if document is None:
            self._ended()
            return
        job = self._running.pop(int(document["id"]), None)
        if job is None:
            return
        outcome = document["outcome"]
        if outcome == "vocabulary":
            self._again(job)
        elif outcome == "starved":
            self._fail(job, Overloaded("The machine was too busy to check this grammar.", retry_after_s=2))
        else:
            # On a machine that is less busy it might have been done in time.
            self._settle(job, self._verdict(document), keep=outcome != "late")
        self._fill()

    def _verdict(self, document: Mapping[str, Any]) -> Verdict:
        cpu_s = float(document.get("cpu_s", 0.0))
        if document["outcome"] == "good":
            return Verdict(str(document["backend"]), cpu_s=cpu_s)
        if document["outcome"] in ("slow", "late"):
            message = f"takes longer than {self._limits.timeout_s:g} s to compile (grammars.timeout_s)"
            return Verdict(None, message, cpu_s)
        if document["outcome"] == "memory":
            limit_mib = self._limits.max_memory_bytes // 2**20
            return Verdict(None, f"takes more memory than {limit_mib} MiB (grammars.max_memory_bytes)", cpu_s)
        return Verdict(None, f"cannot be compiled: {document.get('message', '')}", cpu_s)

    def _settle(self, job: _Job, verdict: Verdict, *, keep: bool) -> None:
        if keep:
            self.verdicts.put(job.key, verdict)
        self._leave(job)
        if not job.result.done():
            job.result.set_result(verdict)

    def _again(self, job: _Job) -> None:
        """It needs the vocabulary of outlines; it waits in its client's line until that has been sent."""
        if self._vocabulary_sent is None or self._vocabulary_sent.done():
            self._vocabulary_sent = asyncio.get_running_loop().create_task(self._send_vocabulary([job]))
        else:
            self._vocabulary_sent.add_done_callback(lambda _: self._requeue(job))

    async def _send_vocabulary(self, jobs: list[_Job]) -> None:
        document = await self._vocabulary()
        if self._link is not None:
            self._link.send({"vocabulary": document})
        for job in jobs:
            self._requeue(job)

    def _requeue(self, job: _Job) -> None:
        if self._jobs.get(job.key) is job:
            job.began_s = None
            self._waiting.setdefault(job.client, deque()).append(job)
            self._fill()

    def _ended(self) -> None:
        """The process has ended by itself. What it was working on may be the cause, so that fails; the rest goes on."""
        self._link = None
        lost, self._running = list(self._running.values()), {}
        logger.warning("the process that checks grammars has ended; another one takes its place")
        for job in lost:
            self._fail_quietly(job)
        self._fill()


def _began(job: _Job) -> float:
    assert job.began_s is not None
    return job.began_s


__all__ = ["Checker", "Link", "OnDocument"]
