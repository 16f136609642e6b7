from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from loadtest.client import kernel_timestamps


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as client:
            server, _ = listening.accept()
            with server:
                yield server, client


def test_arrival_times_are_independent_of_the_time_of_reading(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    kernel_timestamps.enable(client)
    lags_ms, late_ms = [], []
    for _ in range(20):
        sent_ns = time.perf_counter_ns()
        server.sendall(b"data: {}\n\n")
        time.sleep(0.01)
        data, at_ns = kernel_timestamps.receive(client, 4096)
        assert data == b"data: {}\n\n"
        lags_ms.append((at_ns - sent_ns) / 1e6)
        late_ms.append((time.perf_counter_ns() - sent_ns) / 1e6)

    # The kernel begins to record arrival times some moments after it was enabled, so not that of the first bytes.
    assert sorted(lags_ms)[10] < 2 < 10 <= min(late_ms)
    assert min(lags_ms) > -0.1, "no effect before its cause"


def test_without_kernel_timestamps_the_time_of_reading_counts(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    server.sendall(b"x")
    time.sleep(0.01)
    began_ns = time.perf_counter_ns()
    data, at_ns = kernel_timestamps.receive(client, 4096)

    assert data == b"x"
    assert began_ns <= at_ns <= time.perf_counter_ns()


def test_end_of_stream_and_empty_socket_behave_as_with_recv(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    kernel_timestamps.enable(client)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        kernel_timestamps.receive(client, 4096)
    server.close()
    client.settimeout(5)

    assert kernel_timestamps.receive(client, 4096)[0] == b""
