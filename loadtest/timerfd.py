"""Linux's timerfd through ctypes: `os.timerfd_create` came with Python 3.13.

The timers of event loops (gevent's, uvloop's, epoll's timeout) count whole milliseconds; a timer of the kernel that a
loop watches as a file is late by some tens of microseconds.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_CLOCK_MONOTONIC = 1  # the clock that perf_counter_ns reads on Linux
_ABSOLUTE = 1
_SECOND_NS = 1_000_000_000
_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


def create() -> int:
    """The file descriptor of a new timer. Raises OSError."""
    return _check(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))


def set_absolute(fd: int, at_ns: int) -> None:
    """Have the timer expire once at `at_ns` of `perf_counter_ns`, at once if that is past. Raises OSError."""
    # Zero would switch it off.
    at = _Itimerspec(0, 0, *divmod(max(at_ns, 1), _SECOND_NS))
    _check(_libc.timerfd_settime(fd, _ABSOLUTE, ctypes.byref(at), None))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
