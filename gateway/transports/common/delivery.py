"""Sends one stream over one connection of any transport: keep-alives, stalled clients, the time of the first token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol

from gateway.clock import Clock
from gateway.protocols.base import Framing
from gateway.streamlog.base import Batch
from gateway.streams.reader import DirectSink, StreamReader
from gateway.streams.stream import Stream
from gateway.transports.common.timers import DeadlineTimer


@dataclass(slots=True, eq=False)
class DeliveryTimers:
    """The timer of all deliveries, and its limits: seconds of silence before a keep-alive, and seconds for one send."""

    keepalive_s: float
    stall_timeout_s: float
    clock: Clock
    timer: DeadlineTimer = field(init=False)

    def __post_init__(self) -> None:
        self.timer = DeadlineTimer(self.clock)


class Connection(Protocol):
    """One connection, for a delivery."""

    async def write_events(self, batch: Batch) -> None:
        """Send a batch; `batch.ended` is set on the last one."""

    async def write_keepalive(self) -> None:
        """Send a sign of life."""


@dataclass(slots=True, eq=False)
class Delivery:
    """Takes batches from a reader and sends them; while the connection keeps up, events pass it by through `sink`.
    `is_first`: whether this is the connection of the request itself. `on_stalled` is called when one send has taken
    longer than the limit."""

    stream: Stream
    reader: StreamReader
    timers: DeliveryTimers
    _: KW_ONLY
    is_first: bool
    sink: DirectSink | None
    frame: Framing
    on_stalled: Callable[[], object]
    _silent_since_s: float = field(init=False)
    _sending_since_s: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._silent_since_s = self.timers.clock.now()

    async def run(self, connection: Connection) -> None:
        """Send everything up to the end of the stream."""
        timers, clock = self.timers, self.timers.clock
        first_s = self._silent_since_s + min(timers.keepalive_s, timers.stall_timeout_s)
        number = timers.timer.add(self._check, first_s)
        try:
            ended = None
            while ended is None:
                batch = await self.reader.next_batch()
                self._sending_since_s = clock.now()
                if batch is None:
                    await connection.write_keepalive()
                else:
                    await connection.write_events(batch)
                    ended = batch.ended
                self._sending_since_s, self._silent_since_s = None, clock.now()
                self._on_sent()
        finally:
            timers.timer.remove(number)

    def _on_sent(self) -> None:
        stats = self.stream.stats
        if stats.first_token_s is None:
            return
        # The head of the response and the first token are out; only more of the same is to be sent.
        if self.sink is not None:
            self.reader.deliver_to(self.sink, self.frame)
        if self.is_first and not stats.is_first_token_sent:
            stats.is_first_token_sent = True
            stats.instrumentation.first_token(self._silent_since_s - stats.caller.arrival_s)

    def _check(self, now_s: float) -> float:
        """Send a keep-alive if one is due, or give up a stalled client. Returns when to check again."""
        keepalive_s, stall_timeout_s = self.timers.keepalive_s, self.timers.stall_timeout_s
        if self._sending_since_s is not None:
            stalled_s = self._sending_since_s + stall_timeout_s
            if now_s < stalled_s:
                return stalled_s
            self.on_stalled()
            return math.inf
        # Compared as the sum that is returned below: a difference can be rounded to the other side of the limit, and
        # the timer would check again at the same moment, for ever.
        due_s = max(self._silent_since_s, self.reader.delivered_s) + keepalive_s
        if now_s >= due_s:
            self.reader.request_keepalive()
            return now_s + min(keepalive_s, stall_timeout_s)
        # A send that begins right now must be found when its time is up.
        return min(due_s, now_s + stall_timeout_s)
