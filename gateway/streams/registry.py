"""Who lives here: opens requests, finds them by id, cancels them.

This is the one place that walks a request from its body to a running generation: parse, gate, prepare, submit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from gateway.admission.gate import Gate
from gateway.clock import Clock
from gateway.engine.base import CURRENT_TALLY, Engine, Route
from gateway.errors import Cancelled, MethodNotAllowed, NotFound
from gateway.model import Caller, Cause, Endpoint, Facts, Frame, Tally
from gateway.streamlog.base import StreamLog
from gateway.streams.follower import Follower
from gateway.streams.producer import Producer


@dataclass(frozen=True, slots=True)
class Stream:
    """A request that runs. `frame` is None if its pieces are ready-made documents."""

    streaming: bool
    frame: Frame | None
    producer: Producer
    follower: Follower


@dataclass(frozen=True, slots=True)
class Status:
    """What `DELETE` and `GET` tell about a request."""

    id: str
    status: str
    prompt_tokens: int
    completion_tokens: int


class Registry:
    """All requests of this process that have passed, or stand at, the gate."""

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        gate: Gate,
        log: Callable[[], StreamLog],
        clock: Clock,
        facts: Facts,
    ) -> None:
        """`engine` gives the running engine or raises why there is none; `log` makes a fresh log."""
        self._engine = engine
        self._gate = gate
        self._log = log
        self._clock = clock
        self._facts = facts
        self._live: dict[str, Producer] = {}

    @property
    def active(self) -> int:
        """Requests of our own endpoints that the engine works on."""
        return len(self._live)

    @asynccontextmanager
    async def open(self, endpoint: Endpoint, body: bytes, tally: Tally) -> AsyncIterator[Stream]:
        """Take a request in and start it; leaving the context without its end is a disconnect.

        Raises what `Engine.parse`, `Gate.enter`, `Engine.prepare` and `Engine.submit` raise; then nothing is left
        behind.
        """
        engine = self._engine()
        call = engine.parse(endpoint, body)
        arrived_s = self._clock.now()
        permit = await self._gate.enter(call.seats)
        tally.queued_s = self._clock.now() - arrived_s
        log = self._log()
        producer: Producer | None = None
        try:
            # The engine that is running now, which need not be the one that was when the wait began.
            engine = self._engine()
            prepared = await engine.prepare(call, tally)
            assert tally.id is not None
            key = tally.id
            producer = Producer(
                tally=tally,
                log=log,
                permit=permit,
                clock=self._clock,
                on_end=partial(self._live.pop, key, None),
            )
            self._live[key] = producer
            producer.start()
            self._facts.overhead(self._clock.now() - tally.caller.arrival_s - tally.queued_s)
            producer.attach(await engine.submit(prepared, producer))
            yield Stream(call.stream, prepared.frame, producer, Follower(log, self._facts))
        finally:
            if producer is not None:
                producer.cancel(Cause.DISCONNECTED, Cancelled("The client left."))
            permit.release()

    @asynccontextmanager
    async def mounted(self, method: str, path: str, tally: Tally) -> AsyncIterator[Engine]:
        """Admit a request that vLLM's own app will answer; its tokens are counted in `tally`."""
        engine = self._engine()
        route = engine.route(method, path)
        if route is Route.UNKNOWN:
            raise NotFound(f"There is nothing at {path}.")
        if route is Route.WRONG_METHOD:
            raise MethodNotAllowed(f"{path} does not take {method}.")
        tally.endpoint = engine.template(path)
        tally.works = route is Route.WORKS
        permit = None
        if tally.works:
            arrived_s = self._clock.now()
            permit = await self._gate.enter()
            tally.queued_s = self._clock.now() - arrived_s
        token = CURRENT_TALLY.set(tally)
        try:
            yield engine
        finally:
            CURRENT_TALLY.reset(token)
            if permit is not None:
                permit.release()

    def cancel(self, request_id: str, caller: Caller) -> Status:
        """Cancel a live request. Raises NotFound if the caller has none of that id."""
        producer = self._live.get(request_id)
        if producer is not None and producer.tally.caller.owner == caller.owner:
            producer.cancel(Cause.CANCELLED, Cancelled("The request was cancelled by its id."))
            tally = producer.tally
        elif (mounted := self._engine().cancel(request_id, caller.owner)) is not None:
            tally = mounted
        else:
            raise NotFound(f"There is no live request with the id {request_id!r}.", param="id")
        return Status(request_id, Cause.CANCELLED, tally.prompt_tokens, tally.completion_tokens)


__all__ = ["Registry", "Status", "Stream"]
