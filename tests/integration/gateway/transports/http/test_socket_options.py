from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest

from gateway.transports.http import socket_options
from tests.support.transport import Socket

LINUX = pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="options of Linux")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a real connection on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as ours, listening.accept()[0] as theirs:
            yield ours, theirs


def fill(one: socket.socket) -> int:
    """Write as an event loop does, while the socket is writable; returns the number of bytes written."""
    one.setblocking(False)
    poll = select.poll()
    poll.register(one, select.POLLOUT)
    total = 0
    while poll.poll(0) and total < 2**27:
        total += one.send(b"x" * 4096)
    return total


@LINUX
def test_an_accepted_socket_gets_its_options(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    socket_options.set_options(ours)

    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    found = {
        name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_NOTSENT_LOWAT")
    }
    assert found == {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_NOTSENT_LOWAT": 16384}


@LINUX
def test_an_idle_peer_that_vanished_is_found_within_21_seconds() -> None:
    """By the kernel's arithmetic: idle time, then every probe unanswered."""
    options = socket_options._KEEPALIVE

    assert options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"] <= 21


@LINUX
def test_a_healthy_peer_owes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    socket_options.set_options(ours)

    assert not socket_options.unacked_s(ours)

    ours.sendall(b"x" * 1000)

    assert theirs.recv(1000)
    assert not socket_options.unacked_s(ours)


@LINUX
def test_a_peer_that_does_not_read_is_still_there(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    fill(ours)

    assert not socket_options.unacked_s(ours)


@LINUX
def test_a_reader_that_stops_costs_the_kernel_no_more_than_its_window_and_our_limit(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Without the limit this end alone takes megabytes."""
    tuned, plain = pair

    socket_options.set_options(tuned)

    assert fill(tuned) < fill(plain)


@pytest.mark.parametrize(("retransmits", "probes", "owes"), [(0, 0, False), (1, 0, True), (0, 1, True), (3, 2, True)])
def test_a_peer_that_did_not_answer_a_retransmission_owes_an_acknowledgement(
    retransmits: int, probes: int, owes: bool
) -> None:
    one = Socket()
    one.retransmits, one.probes, one.silent_ms = retransmits, probes, 4500

    assert socket_options.unacked_s(one) == (4.5 if owes else 0)


@LINUX
def test_the_kernel_reports_the_time_since_a_peers_last_packet(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(b"x")

    assert theirs.recv(1)

    time.sleep(0.2)
    *_, silent_ms = socket_options._INFO.unpack(
        ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, socket_options._INFO.size)
    )

    assert 150 <= silent_ms < 10_000


def test_a_closed_socket_owes_nothing() -> None:
    one = Socket()
    one.closed = True

    assert not socket_options.unacked_s(one)


def test_where_the_kernel_has_no_such_options_its_defaults_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_INFO", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_NOTSENT_LOWAT"):
        monkeypatch.delattr(socket, name, raising=False)
    one = Socket()
    socket_options.set_options(one)
    one.retransmits, one.silent_ms = 5, 60_000

    assert one.options == {(socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1}
    assert not socket_options.unacked_s(one)
