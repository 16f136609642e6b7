from __future__ import annotations

import signal
import socket

from gateway.multiprocess.parent.worker_handle import spawn


def report_mask(to: socket.socket) -> None:
    to.sendall(" ".join(sorted(one.name for one in signal.pthread_sigmask(signal.SIG_BLOCK, []))).encode())


def test_a_spawned_process_has_the_terminals_signals_blocked() -> None:
    ours, theirs = socket.socketpair()
    process = spawn(report_mask, (theirs,), "masked")
    theirs.close()

    assert ours.recv(100) == b"SIGINT SIGTERM"

    process.join()
    ours.close()
