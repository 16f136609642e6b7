"""Arrival times of bytes from the kernel, where it records them. A delay because the generator is busy with other
streams is then not counted as the server's.

When an engine answers five hundred streams in one instant, their bytes arrive within some milliseconds, and reading
them one after the other takes longer. Linux records the arrival of each segment (`SO_TIMESTAMPNS`); for bytes read at
once, this is the arrival of the last one. Its clock is the wall clock, so the age is what is used.
"""

from __future__ import annotations

import socket
import struct
import sys
from time import perf_counter_ns, time_ns

# From asm-generic/socket.h (x86 and Arm); the payload is a `struct timespec`.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
# A larger age means that the wall clock was set.
_LARGEST_AGE_NS = 60_000_000_000
_SAME_MOMENT_NS = 5_000


def enable(sock: socket.socket) -> None:
    """Have the kernel record arrival times for this socket."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def receive(sock: socket.socket, max_bytes: int) -> tuple[bytes, int]:
    """At most `max_bytes`, and the arrival of the last of them in `perf_counter_ns`. Raises as `recv` does."""
    data, ancillary, _, _ = sock.recvmsg(max_bytes, _ANCILLARY_BYTES)
    for _, kind, payload in ancillary:
        if kind == _SO_TIMESTAMPNS and len(payload) == _TIMESPEC.size:
            seconds, rest_ns = _TIMESPEC.unpack(payload)
            now_ns, today_ns = _read_clocks()
            age_ns = today_ns - (seconds * 1_000_000_000 + rest_ns)
            if 0 < age_ns < _LARGEST_AGE_NS:
                return data, now_ns - age_ns
    return data, perf_counter_ns()


def _read_clocks() -> tuple[int, int]:
    """Both clocks at one moment; read again if the process was interrupted between the two."""
    while True:
        now_ns, today_ns = perf_counter_ns(), time_ns()
        if perf_counter_ns() - now_ns < _SAME_MOMENT_NS:
            return now_ns, today_ns
