"""Waking up on time. gevent's own sleep is late by up to a millisecond, because its loop waits in whole ones; a timer
of the kernel that the loop watches as a file is late by some tens of microseconds. Where there is none (not Linux),
gevent's sleep has to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
from time import perf_counter_ns
from typing import Any

import gevent
from gevent.hub import get_hub

__all__ = ["PreciseTimer"]

_CLOCK_MONOTONIC = 1  # what perf_counter_ns reads on Linux
_ABSOLUTE = 1
_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class _Spec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class PreciseTimer:
    """One timer; of one greenlet."""

    def __init__(self) -> None:
        self._libc: Any = None
        self._file = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._file >= 0:
            self._watcher = get_hub().loop.io(self._file, 1)

    def sleep_until(self, at_ns: int) -> None:
        """Return at `at_ns` on the clock of `perf_counter_ns`, at once if that is past."""
        if (left_ns := at_ns - perf_counter_ns()) <= 0:
            return
        if self._file < 0:
            gevent.sleep(left_ns / 1e9)
            return
        at = _Spec(0, 0, *divmod(at_ns, 1_000_000_000))
        if self._libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(at), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        get_hub().wait(self._watcher)
        os.read(self._file, 8)

    def close(self) -> None:
        """Give the timer back."""
        if self._file >= 0:
            self._watcher.close()
            os.close(self._file)
            self._file = -1
