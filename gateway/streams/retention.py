"""Where finished resumable streams stay readable, for a time and up to a number of bytes; the oldest go first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from gateway.clock import Clock
from gateway.streams.stream import Stream

# So many ids of streams that are gone are remembered, so that their readers hear "expired" instead of "unknown".
_REMEMBERED = 10_000


class FinishedStreams:
    """Streams in the order of their ends."""

    def __init__(self, *, retention_s: float, max_bytes: int, clock: Clock) -> None:
        self._retention_s = retention_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._streams: OrderedDict[str, tuple[float, Stream]] = OrderedDict()
        self._gone: OrderedDict[str, str | None] = OrderedDict()
        self._size_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def size_bytes(self) -> int:
        """What all of them weigh."""
        return self._size_bytes

    def put(self, stream: Stream, live_bytes: int) -> None:
        """Keep a stream that has just ended. `live_bytes` is what streams weigh that have not."""
        self._streams[stream.id] = (self._clock.now(), stream)
        self._size_bytes += stream.writer.log.size_bytes
        self.shrink(live_bytes)
        self._arm()

    def get(self, stream_id: str) -> Stream | None:
        """The stream of that id, if it is here."""
        entry = self._streams.get(stream_id)
        return None if entry is None else entry[1]

    def was_here(self, stream_id: str, owner: str | None) -> bool:
        """Whether that owner's stream was here once."""
        return stream_id in self._gone and self._gone[stream_id] == owner

    def owner_of_gone(self, stream_id: str) -> str | None:
        """Whose stream was here once; None if nobody's."""
        return self._gone.get(stream_id)

    def shrink(self, live_bytes: int) -> bool:
        """Let the oldest go until everything fits with `live_bytes`; whether it does."""
        while self._streams and self._size_bytes + live_bytes > self._max_bytes:
            self._drop_oldest()
        return live_bytes <= self._max_bytes

    def _drop_oldest(self) -> None:
        stream_id, (_, stream) = self._streams.popitem(last=False)
        self._size_bytes -= stream.writer.log.size_bytes
        self._gone[stream_id] = stream.writer.stats.caller.owner
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

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


__all__ = ["FinishedStreams"]
