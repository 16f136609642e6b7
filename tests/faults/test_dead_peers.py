"""A peer that vanishes without closing its connection is noticed, idle or not; a slow peer is not taken for dead.

The peers are in a network namespace of their own. They vanish when the server's side loses its route to them: packets
then go nowhere, and no interface or router reports it. Needs root and the `ip` command.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Raw, Server, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, completion

NOTICED_WITHIN_S = 21.0
# streams.stall_timeout_s, as it is by default.
STALL_TIMEOUT_S = 30.0
_NEW_NETWORK = 0x40000000
# RFC 2544 sets these addresses aside for tests of networks.
_NET = f"198.18.{os.getpid() % 256}"
HOST, PEER = f"{_NET}.1", f"{_NET}.2"
UNUSED_MAC = "02:00:00:00:00:99"


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=10)


class Elsewhere:
    """A network namespace with one cable to ours."""

    def __init__(self) -> None:
        self._name, self._near, far = f"sluice{os.getpid()}", f"sl{os.getpid()}a", f"sl{os.getpid()}b"
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", "name", far, "netns", self._name)
            _ip("addr", "add", f"{HOST}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            _ip("-n", self._name, "addr", "add", f"{PEER}/30", "dev", far)
            _ip("-n", self._name, "link", "set", far, "up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    def within(self, work: Callable[[], Any]) -> Any:
        """Do `work` in the namespace: sockets made there stay there."""
        found: list[Any] = []

        def go() -> None:
            # Threads have their own network namespace; this one ends with its work.
            handle = os.open(f"/run/netns/{self._name}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, _NEW_NETWORK):
                    raise OSError(ctypes.get_errno(), "setns")
                found.append(work())
            finally:
                os.close(handle)

        thread = threading.Thread(target=go)
        thread.start()
        thread.join(30)
        return found[0]

    def vanish(self) -> None:
        """From now on nothing that we send arrives."""
        _ip("neigh", "replace", PEER, "lladdr", UNUSED_MAC, "dev", self._near, "nud", "permanent")

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", self._near], check=False, capture_output=True, timeout=10)
        subprocess.run(["ip", "netns", "del", self._name], check=False, capture_output=True, timeout=10)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    if shutil.which("ip") is None:
        pytest.skip("the `ip` command is not installed (Debian: iproute2)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        made = Elsewhere()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    yield made
    made.close()


class Client(Raw):
    """A client at an address of its own choice; `stuck` ones have a tiny window."""

    def __init__(self, address: str, port: int, payload: bytes, *, stuck: bool = False) -> None:
        self.seen = b""
        self._thread: threading.Thread | None = None
        self.sock = socket.socket()
        if stuck:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(30)
        self.sock.connect((address, port))
        self.sock.sendall(payload)

    @property
    def stream_id(self) -> str:
        """From the response's headers."""
        head = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")[0].decode("latin-1").lower()
        return head.partition("x-stream-id: ")[2].partition("\r\n")[0]

    def swallow(self) -> None:
        """Read on in the background, until `close`."""
        self._thread = threading.Thread(target=self._swallow)
        self._thread.start()

    def _swallow(self) -> None:
        with suppress(OSError):
            while self.sock.recv(65536):
                pass

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(5)
        self.sock.close()


def live(server: Server, stream_id: str) -> bool:
    """Whether the plain stream still runs; the server drops its id with its end."""
    return server.http.get(f"/v1/streams/{stream_id}", headers={"Accept": "application/json"}).status_code == 200


@pytest.mark.full
@pytest.mark.timeout(180)
def test_a_vanished_peer_is_noticed_and_a_slow_one_is_not_taken_for_it(
    patient: Server, elsewhere: Elsewhere, full: bool, figure: Any
) -> None:
    """While tokens flow, while a whole answer is being made, and in the queue with its keep-alives. Meanwhile a reader
    whose window is shut answers the kernel's probes; it has all of streams.stall_timeout_s (waited for in full size).
    """
    server = patient

    def ask(address: str = HOST, *, stuck: bool = False, **more: Any) -> Client:
        return Client(address, server.port, request_bytes(completion(1, 30_000, **more), COMPLETIONS), stuck=stuck)

    stuck = ask("127.0.0.1", stuck=True)
    stuck_id = stuck.stream_id
    poll("the window is shut", lambda: _unsent(stuck) > 0, 30)
    shut_s = time.monotonic()

    def join() -> dict[str, Client]:
        flowing, whole = ask(), ask(stream=False)
        flowing.read_until(b"data: ")
        flowing.swallow()
        poll("both run", lambda: server.sample("sluice_streams_active") == 3, 10)
        # It asks for every slot, so it waits.
        queued = ask(n=4096, temperature=1)
        queued.read_until(b": keep-alive")
        queued.swallow()
        return {"while tokens flow": flowing, "a whole answer": whole, "in the queue": queued}

    clients: dict[str, Client] = elsewhere.within(join)
    ids = {name: clients[name].stream_id for name in ("while tokens flow", "in the queue")}
    vanished_s = time.monotonic()
    elsewhere.vanish()
    noticed_s: dict[str, float] = {}
    while len(noticed_s) < 3 and time.monotonic() < vanished_s + 60:
        now_s = time.monotonic() - vanished_s
        for name, stream_id in ids.items():
            if name not in noticed_s and not live(server, stream_id):
                noticed_s[name] = now_s
        # A whole answer has its id only at its end.
        gone = server.ended("disconnected")
        if gone > len(noticed_s) and "a whole answer" not in noticed_s:
            noticed_s["a whole answer"] = now_s
        time.sleep(0.1)
    stuck_lives, looked_s = live(server, stuck_id), time.monotonic()
    for name, after_s in noticed_s.items():
        figure("vanished peer", f"a vanished peer is noticed, {name}", f"{after_s:.1f} s", f"{NOTICED_WITHIN_S:g} s")
    figure(
        "slow reader",
        "a live reader with a shut window still has its stream after",
        f"{looked_s - shut_s:.1f} s",
        "30 s",
    )
    for client in clients.values():
        client.close()

    assert len(noticed_s) == 3
    assert max(noticed_s.values()) <= NOTICED_WITHIN_S
    assert server.ended("disconnected") == 3
    # A TCP_USER_TIMEOUT of 20 s would have ended it.
    assert looked_s - shut_s > 20 or not full
    assert stuck_lives

    if full:
        poll("the stuck reader is dropped", lambda: not live(server, stuck_id), 60, 0.1)
        dropped_s = time.monotonic()
        figure(
            "slow reader",
            "and is dropped after",
            f"{dropped_s - shut_s:.1f} s",
            "30 s and the time to fill its buffers",
        )

        assert dropped_s - shut_s >= STALL_TIMEOUT_S - 1
        assert server.ended("client_stalled") == 1
    stuck.close()
    server.wait_idle()


def _unsent(client: Client) -> int:
    """Bytes in the server's kernel for this client."""
    mine = client.sock.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, queues, *_ = line.split()
        if int(remote.rpartition(":")[2], 16) == mine:
            return int(queues.partition(":")[0], 16)
    return 0
