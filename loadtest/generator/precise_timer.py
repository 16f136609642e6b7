"""Sleeping until an exact time: gevent's own sleep is late by up to a millisecond, a timer of the kernel
(`loadtest/timerfd.py`) by some tens of microseconds. Systems other than Linux use gevent's sleep.
"""

from __future__ import annotations

import os
import sys
from time import perf_counter_ns

import gevent
from gevent.hub import get_hub

from loadtest import timerfd


class PreciseTimer:
    """For one greenlet."""

    def __init__(self) -> None:
        self._fd = -1
        if sys.platform == "linux":
            self._fd = timerfd.create()
            self._watcher = get_hub().loop.io(self._fd, 1)

    def sleep_until(self, at_ns: int) -> None:
        """Return at `at_ns` on the clock of `perf_counter_ns`, at once if that is past."""
        if (left_ns := at_ns - perf_counter_ns()) <= 0:
            return
        if self._fd < 0:
            gevent.sleep(left_ns / 1e9)
            return
        timerfd.set_absolute(self._fd, at_ns)
        get_hub().wait(self._watcher)
        os.read(self._fd, 8)

    def close(self) -> None:
        if self._fd >= 0:
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1
