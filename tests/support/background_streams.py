"""Healthy clients beside an attack: streams that are read all the time, each checked to the last token.

They run in a thread with an event loop of its own, so that a test can attack from where it stands.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.server import poll
from tests.support.stream_client import Connection, completion


@dataclass
class Lap:
    """The streams of the healthy clients since the last lap. Gaps are between two reads of one stream, in seconds."""

    complete: int = 0
    wrong: list[str] = field(default_factory=list)
    longest_gap_s: float = 0.0
    longest_ttft_s: float = 0.0


class BackgroundStreams:
    """Clients that each request a stream, read it, check it, and repeat."""

    def __init__(self, port: int, streams: int, tokens: int, headers: dict[str, str] | None = None) -> None:
        self._port = port
        self._streams = streams
        self._tokens = tokens
        self._headers = headers
        self._lap = Lap()
        self._stopping = False
        self._reading: dict[int, float] = {}
        """When each running stream last had a token."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        poll("all streams run", lambda: len(self._reading) == self._streams, 60)
        self.lap()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._stopping = True
        self._thread.join(120)
        assert not self._thread.is_alive(), "a healthy stream has no end"

    def lap(self) -> Lap:
        """The streams since the last lap; a silence that goes on counts with its length so far."""
        lap, self._lap = self._lap, Lap()
        now_s = time.monotonic()
        silences = [now_s - last_s for last_s in list(self._reading.values())]
        lap.longest_gap_s = max([lap.longest_gap_s, *silences])
        return lap

    async def _run(self) -> None:
        await asyncio.gather(*(self._live(number) for number in range(self._streams)))

    async def _live(self, number: int) -> None:
        while not self._stopping:
            try:
                await self._ask(number)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._lap.wrong.append(f"stream {number}: {type(error).__name__}")
                await asyncio.sleep(0.2)

    async def _ask(self, number: int) -> None:
        body = completion(number, self._tokens)
        connection = await Connection.open(self._port, body, headers=self._headers)
        try:
            answer = await connection.head()
            if answer.status != 200:
                await connection.rest()
                self._lap.wrong.append(f"stream {number}: status {answer.status} {answer.body[:200]!r}")
                await asyncio.sleep(0.2)
                return
            while await connection.chunk():
                now_s = time.monotonic()
                last_s = self._reading.get(number)
                if last_s is not None:
                    self._lap.longest_gap_s = max(self._lap.longest_gap_s, now_s - last_s)
                else:
                    self._lap.longest_ttft_s = max(self._lap.longest_ttft_s, now_s - answer.sent_s)
                self._reading[number] = now_s
        finally:
            self._reading.pop(number, None)
            connection.writer.close()
        if answer.exact(number, self._tokens):
            self._lap.complete += 1
        else:
            self._lap.wrong.append(f"stream {number}: not exact, finish {answer.finish}, error {answer.error}")


__all__ = ["BackgroundStreams", "Lap"]
