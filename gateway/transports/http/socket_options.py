"""Options and state of a client's socket: limits on the memory for a client that stops reading, and whether the peer is
still there. For Linux; elsewhere the kernel's defaults stay.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

# The kernel buffers at most this much that it cannot send yet. By default it takes megabytes for a reader that has
# stopped, which hides the stall. Bytes in flight to a live reader are not limited by it.
UNSENT_BYTES = 16 * 2**10
# Above this size of the transport's own buffer, the writer waits.
HIGH_WATER_BYTES = 16 * 2**10
# A peer that vanished without a FIN or RST (power, cable, NAT) is found after 10 + 2 * 5 s if no bytes are in flight.
# Otherwise `unacked_s` finds it: TCP_USER_TIMEOUT would, too, but it also ends a live peer with a full window.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}

# struct tcp_info of linux/tcp.h begins with eight bytes; the third counts retransmissions since the last progress, the
# fourth unanswered probes, of a closed window or of an idle connection. Of the numbers that follow, the thirteenth is
# how many milliseconds ago the peer last acknowledged anything.
_INFO = struct.Struct("=2x2B4x48xI")


def set_options(sock: Any) -> None:
    """Set the options of an accepted TCP socket."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_KEEPALIVE.items(), ("TCP_NOTSENT_LOWAT", UNSENT_BYTES)):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def set_reset_on_close(sock: Any) -> None:
    """Make the socket's close a reset. Otherwise the kernel keeps unsent bytes for minutes if the client does not
    read."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def unacked_s(sock: Any) -> float:
    """Seconds since the peer's last acknowledgement while retransmissions or probes are unanswered; otherwise 0.

    A retransmission of this moment counts, too, so that one value proves nothing: compare two, a second apart.
    """
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return 0.0
    try:
        retransmissions, probes, silent_ms = _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, option, _INFO.size))
    except (OSError, struct.error):
        return 0.0
    return silent_ms / 1000 if retransmissions or probes else 0.0


def has_peer_closed(sock: Any) -> bool:
    """Whether the peer has closed its end. Does not read from the socket."""
    asked = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
    poll = select.poll()
    try:
        poll.register(sock.fileno(), asked)
    except (OSError, ValueError):
        return False
    return bool(poll.poll(0))
