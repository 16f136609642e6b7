"""A timer of asyncio's loop as precise as the kernel's (`loadtest/timerfd.py`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from loadtest import timerfd


class Timer:
    """Calls `wake` once at a time of `perf_counter_ns`, which may have passed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._fd = timerfd.create()
        self._loop = loop
        loop.add_reader(self._fd, self._on_expired)

    def set(self, at_ns: int) -> None:
        """Replaces the time that was set before."""
        timerfd.set_absolute(self._fd, at_ns)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _on_expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            # `set` was called between the expiry and this callback.
            return
        self._wake()
