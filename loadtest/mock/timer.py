"""A timer as exact as the kernel's. uvloop's own, like epoll's timeout, count whole milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

__all__ = ["Timer"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_SECOND_NS = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    """`struct itimerspec`: no interval, one time."""

    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "s", "ns")]


class Timer:
    """Calls `wake` once at a time of `perf_counter_ns`, which may have passed. `os.timerfd_create` is Python 3.13's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._fd = _check(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop = loop
        loop.add_reader(self._fd, self._on_expired)

    def set(self, at_ns: int) -> None:
        """In place of what was set before."""
        # Zero would switch it off.
        seconds, rest = divmod(max(at_ns, 1), _SECOND_NS)
        setting = _Setting(0, 0, seconds, rest)
        _check(_libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(setting), None))

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _on_expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            # Set anew between the ring and this call.
            return
        self._wake()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
