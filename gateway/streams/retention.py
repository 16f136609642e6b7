"""Events of resumable streams in memory, of live and for a time of finished ones, within one number of bytes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from gateway.clock import Clock
from gateway.streams.limits import Limits
from gateway.streams.stream import Stream

# This number of ids of dropped streams is remembered, so that their readers get "expired" instead of "unknown".
_REMEMBERED = 10_000
# Where resumable streams crowd, each keeps its share of the total, but no less than this part of its own limit.
_SMALLEST_SHARE = 1 / 4


class FinishedStreams:
    """Streams in the order of their ends; the oldest are dropped first."""

    def __init__(self, *, retention_s: float, max_bytes: int, clock: Clock) -> None:
        self._retention_s = retention_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._streams: OrderedDict[str, tuple[float, Stream]] = OrderedDict()
        self._dropped: OrderedDict[str, str | None] = OrderedDict()
        self.size_bytes = 0
        """The size of their events."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def put(self, stream: Stream, live_bytes: int) -> None:
        """Keep a stream that has just ended. `live_bytes` is the size of the live streams' events."""
        self._streams[stream.id] = (self._clock.now(), stream)
        self.size_bytes += stream.log_bytes
        self.shrink(live_bytes)
        self._arm()

    def get(self, stream_id: str) -> Stream | None:
        """The stream of that id, if it is kept."""
        entry = self._streams.get(stream_id)
        return None if entry is None else entry[1]

    def was_dropped(self, stream_id: str, owner: str | None) -> bool:
        """Whether that owner's stream was kept once."""
        return stream_id in self._dropped and self._dropped[stream_id] == owner

    def owner_of_dropped(self, stream_id: str) -> str | None:
        """The owner of a stream that was kept once."""
        return self._dropped.get(stream_id)

    def shrink(self, live_bytes: int) -> bool:
        """Drop the oldest until the rest fits beside `live_bytes`. Returns whether it fits."""
        while self._streams and self.size_bytes + live_bytes > self._max_bytes:
            self._drop_oldest()
        return live_bytes <= self._max_bytes

    def _drop_oldest(self) -> None:
        stream_id, (_, stream) = self._streams.popitem(last=False)
        self.size_bytes -= stream.log_bytes
        self._dropped[stream_id] = stream.owner
        while len(self._dropped) > _REMEMBERED:
            self._dropped.popitem(last=False)

    def _arm(self) -> None:
        """One timer for all: the oldest expires first."""
        if self._timer is None and self._streams:
            ended_s, _ = next(iter(self._streams.values()))
            left_s = max(0.0, ended_s + self._retention_s - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now_s = self._clock.now()
        while self._streams and next(iter(self._streams.values()))[0] + self._retention_s <= now_s:
            self._drop_oldest()
        self._arm()


class Retention:
    """The events of all resumable streams. `live` are the streams that have not ended, by id."""

    def __init__(self, limits: Limits, clock: Clock, live: Mapping[str, Stream]) -> None:
        self.finished = FinishedStreams(retention_s=limits.retention_s, max_bytes=limits.max_total_bytes, clock=clock)
        self._limits = limits
        self._live = live
        self._share = limits.max_bytes

    @property
    def size_bytes(self) -> int:
        """The size of the events of finished and live streams."""
        return self.finished.size_bytes + self._live_bytes()

    def has_room(self) -> bool:
        """Whether another resumable stream fits: now, and when all have grown."""
        limits = self._limits
        fits = (len(self._resumable()) + 1) * limits.max_bytes * _SMALLEST_SHARE <= limits.max_total_bytes
        return self.finished.shrink(self._live_bytes() + limits.max_bytes) and fits

    def rebalance(self) -> None:
        """A resumable stream has begun or ended. Streams grow after they were admitted: where they could pass the limit
        together, each keeps its share."""
        streams, most = self._resumable(), self._limits.max_bytes
        share = min(most, self._limits.max_total_bytes // max(1, len(streams)))
        if share == self._share == most:
            return
        self._share = share
        for stream in streams:
            stream.writer.log.set_limit(share)

    def finish(self, stream: Stream) -> None:
        """Keep a resumable stream that has ended."""
        self.rebalance()
        self.finished.put(stream, self._live_bytes())

    def _resumable(self) -> list[Stream]:
        return [stream for stream in self._live.values() if stream.is_resumable]

    def _live_bytes(self) -> int:
        return sum([stream.log_bytes for stream in self._live.values()])
