"""When bytes arrived: by the kernel's account where it keeps one, so that a moment in which the generator is busy with
other streams does not count as the server's.

When an engine answers five hundred streams in one instant, they arrive within some milliseconds and are read one after
the other for longer than that. Linux notes for each segment when it came (`SO_TIMESTAMPNS`); of what is read at once,
the last one's time is given. Its clock is that of the day, so it is the age that counts.
"""

from __future__ import annotations

import socket
import struct
import sys
from time import perf_counter_ns, time_ns

__all__ = ["enable", "receive"]

# From asm-generic/socket.h (x86 and Arm); the payload is a `struct timespec`.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
# Older than this, somebody has set the clock.
_LARGEST_AGE_NS = 60_000_000_000
_SAME_MOMENT_NS = 5_000


def enable(sock: socket.socket) -> None:
    """Ask the kernel to keep account of this socket."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def receive(sock: socket.socket, max_bytes: int) -> tuple[bytes, int]:
    """Up to `most` bytes, and when the last of them arrived, as `perf_counter_ns` tells it. Raises as `recv` does."""
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
    """Both clocks at one moment. Who is interrupted between looking at the one and the other looks again."""
    while True:
        now_ns, today_ns = perf_counter_ns(), time_ns()
        if perf_counter_ns() - now_ns < _SAME_MOMENT_NS:
            return now_ns, today_ns
