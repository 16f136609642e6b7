"""Virtual time: an event loop that jumps to its next timer, so that an hour of waiting costs nothing."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gateway import offload

T = TypeVar("T")

# Longest real wait for a thread or a socket when no timer is left; only a test that hangs ever waits it out.
_PATIENCE_S = 2.0


class VirtualClock:
    """A `gateway.clock.Clock` that only moves by `advance`, or when a virtual loop has nothing else to do."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def now(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class _Jumping(selectors.DefaultSelector):
    """A selector that spends its timeout by moving the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None:
            # What a thread computes takes no virtual time.
            ready = super().select(_PATIENCE_S if timeout > 0 and offload.awaited_count() else 0)
            if not ready and timeout > 0:
                self._clock.advance(timeout)
            return ready
        ready = super().select(_PATIENCE_S)
        if not ready:
            raise RuntimeError("the test waits for something that nothing will bring about")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Jumping(clock))
        self.clock = clock

    def time(self) -> float:
        return self.clock.now()


def run(main: Coroutine[Any, Any, T], clock: VirtualClock | None = None, *, debug: bool = True) -> T:
    """Run a coroutine in virtual time. Fails if it leaves a task behind or an error that was never retrieved."""
    loop = VirtualLoop(clock or VirtualClock())
    loop.set_debug(debug)
    complaints: list[str] = []
    loop.set_exception_handler(
        lambda _, context: complaints.append(f"{context['message']}: {context.get('exception')!r}")
    )
    try:
        answer = loop.run_until_complete(main)
        loop.run_until_complete(settle())
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    assert not left, f"tasks left behind: {left}"
    assert not complaints, complaints
    return answer


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let an async test run in virtual time."""

    @functools.wraps(test)
    def runner(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return runner


def in_real_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let an async test that uses real sockets run in an event loop of its own, for 20 s at most."""

    @functools.wraps(test)
    def runner(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return runner


def clock() -> VirtualClock:
    """The clock of the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.clock


async def settle() -> None:
    """Let everything happen that can happen now. The loop only jumps to a timer once nothing else is left to do."""
    await asyncio.sleep(1e-6)


__all__ = ["VirtualClock", "VirtualLoop", "clock", "in_real_time", "in_virtual_time", "run", "settle"]
