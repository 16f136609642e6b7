"""Parsing request bodies: a short one on the event loop, a long one in a thread, until the request's deadline, the
server's own limit, or the client's disconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from gateway.engine.base import Call
from gateway.engine.bounded_json import is_cheap_to_parse
from gateway.errors import DeadlineExceeded
from gateway.offload import Offload
from gateway.streams.stream import deadline_error
from gateway.streams.tick_limiter import TickLimiter

# The number of requests that are parsed, and of those that are prepared, in one turn of the event loop. Each takes it
# about a millisecond.
BEGIN_PER_TURN = 8
# Bodies with no more lists and objects are parsed on the event loop, in up to a millisecond. A thread costs 0.1 ms.
_LIGHT_CONTAINERS = 128


class BodyParser:
    """Runs an engine's `parse`. `timeout_s` is the limit for one body."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._offload = Offload("sluice-parse")
        self._turn = TickLimiter(BEGIN_PER_TURN)

    async def wait_turn(self) -> None:
        """Wait for this request's turn."""
        await self._turn.wait_turn()

    @staticmethod
    def is_light(body: bytes) -> bool:
        """Whether a body needs no thread."""
        return is_cheap_to_parse(body, _LIGHT_CONTAINERS)

    async def parse(
        self,
        work: Callable[[], Call],
        *,
        size: int,
        tenant: str | None,
        deadline: tuple[float, float],
        waiting: AbstractAsyncContextManager[object] | None,
    ) -> Call:
        """The result of `work`, which parses `size` bytes. `deadline`: the request's deadline in seconds, and the
        seconds left. `waiting` is a scope that may end the wait. Raises DeadlineExceeded."""
        timeout_s, left_s = deadline
        try:
            async with waiting or nullcontext(), asyncio.timeout(min(left_s, self._timeout_s)):
                return await self._offload.run(work, size=size, tenant=tenant)
        except TimeoutError:
            if left_s <= self._timeout_s:
                raise deadline_error(timeout_s, 0, is_queued=True) from None
            raise DeadlineExceeded(
                f"Checking the request body took longer than {self._timeout_s:g} s (server.prepare_timeout_s)."
            ) from None
