from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.server import listen
from gateway.settings_sections import Server
from gateway.transports.common.listeners import bind, bind_many, bind_unix, url_of


def test_a_free_port_is_bound_and_listens() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        assert listening.getsockname()[1] > 0


def test_a_port_in_use_is_a_start_that_failed_with_a_hint() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}.*--port") as caught:
            bind("127.0.0.1", port)

    assert caught.value.exit_code == 1


def test_a_host_that_is_no_address_is_a_setting_to_mend() -> None:
    with pytest.raises(SettingsError, match=r"server\.host: 'not an address'"):
        bind("not an address", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"Cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_several_sockets_share_one_address() -> None:
    socks = bind_many("127.0.0.1", 0, 3)
    try:
        (address,) = {sock.getsockname() for sock in socks}
        clients = [socket.create_connection(address) for _ in range(60)]
        accepted = []
        for sock in socks:
            sock.setblocking(False)
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.accept()[0].close()
                    count += 1
            accepted.append(count)
        for client in clients:
            client.close()
    finally:
        for sock in socks:
            sock.close()

    assert sum(accepted) == 60
    assert all(accepted), "the kernel shares them out"


def test_an_address_is_not_shared_with_another_server() -> None:
    """Two servers of several workers would otherwise divide the clients between them, without a sign of it."""
    socks = bind_many("127.0.0.1", 0, 2)
    port = socks[0].getsockname()[1]
    try:
        for count in (1, 2):
            with pytest.raises(SettingsError, match=f"127.0.0.1:{port}"):
                bind_many("127.0.0.1", port, count)
    finally:
        for sock in socks:
            sock.close()


def test_the_management_port_is_named_where_it_is_taken() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(SettingsError, match=r"choose another with server\.management_port"):
            listen(Server(port=0, management_port=port))


@pytest.mark.parametrize(("access", "mode"), [("owner", 0o600), ("group", 0o660), ("everyone", 0o666)])
def test_a_unix_socket_has_the_permissions_that_were_asked_for_and_goes_at_the_end(
    tmp_path: Path, access: str, mode: int
) -> None:
    path = tmp_path / "sluice.sock"
    before = os.umask(0o022)
    try:
        listeners = listen(Server(uds=path, uds_access=access))  # type: ignore[arg-type]
    finally:
        assert os.umask(before) == 0o022, "the process's own mask is as it was"

    assert path.stat().st_mode & 0o777 == mode
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))

    listeners.close()

    assert not path.exists()


def test_workers_take_from_one_unix_socket(tmp_path: Path) -> None:
    listeners = listen(Server(uds=tmp_path / "s", workers=3))

    assert len(listeners.main) == 3
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        listeners.main[2].accept()[0].close()
    listeners.close()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead, _ = bind_unix(path, "group")
    dead.close()

    assert path.exists()

    sock, _ = bind_unix(path, "group")
    with sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sock, _ = bind_unix(path, "group")
    with sock, pytest.raises(SettingsError, match="another program listens on") as caught:
        bind_unix(path, "group")

    assert caught.value.exit_code == 1
    assert path.exists()


def test_no_other_file_is_ever_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SettingsError, match=r"server\.uds: .* is not a socket"):
        bind_unix(path, "group")

    assert path.read_text() == "precious"


def test_at_the_end_another_servers_file_is_left_alone(tmp_path: Path) -> None:
    """A new server may have taken the path over while the old one was ending."""
    path = tmp_path / "s"
    old, old_file = bind_unix(path, "group")
    old.close()
    new, _ = bind_unix(path, "group")
    old_file.remove()

    assert path.exists()

    new.close()


@pytest.mark.parametrize("path", ["/no/such/folder/s", "/tmp/" + "x" * 200])
def test_a_path_that_cannot_be_a_socket_is_a_sentence(path: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.uds: cannot listen on"):
        bind_unix(Path(path), "group")


def test_the_url_of_a_socket_can_be_typed(tmp_path: Path) -> None:
    with bind("0.0.0.0", 0) as sock:
        assert url_of("0.0.0.0", sock, tls=True) == f"https://127.0.0.1:{sock.getsockname()[1]}"
    sock, _ = bind_unix(tmp_path / "s", "group")
    with sock:
        assert url_of("", sock) == f"unix:{tmp_path}/s"
