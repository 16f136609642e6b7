"""The listening sockets. They are bound before anything slow starts, and failures become sentences."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.errors import SettingsError

_BACKLOG = 1024
_MODES = {"owner": 0o600, "group": 0o660, "everyone": 0o666}
SocketAccess = Literal["owner", "group", "everyone"]


@dataclass(slots=True)
class Listeners:
    """The sockets of a server. `main` holds one for each worker."""

    main: list[socket.socket]
    management: socket.socket | None = None
    file: UnixFile | None = None

    def close(self) -> None:
        """Close the sockets and remove the Unix socket's file."""
        for sock in (*self.main, *([self.management] if self.management else [])):
            sock.close()
        if self.file is not None:
            self.file.remove()


@dataclass(frozen=True, slots=True)
class UnixFile:
    """The file of a Unix socket that this process has created."""

    path: Path
    identity: tuple[int, int, int]

    def remove(self) -> None:
        """Remove the file, unless another program has replaced it."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if _identity(found) == self.identity:
                self.path.unlink()


def bind(host: str, port: int, setting: str = "server") -> socket.socket:
    """The listening socket. Raises SettingsError if the address cannot be used; `setting` is the prefix of the keys for
    host and port in its message."""
    return bind_many(host, port, 1, setting)[0]


def bind_many(host: str, port: int, count: int, setting: str = "server") -> list[socket.socket]:
    """`count` sockets that listen on one address; the kernel distributes the connections. Raises as `bind`."""
    socks: list[socket.socket] = []
    prefix = "server." if setting == "server" else setting + "_"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        for number in range(count):
            sock = socket.socket(family, kind, proto)
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number > 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            address = sock.getsockname()
            if count > 1:
                # The first is bound without it, so that another program on the same address is detected.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for sock in socks:
            sock.listen(_BACKLOG)
    except socket.gaierror:
        raise SettingsError(f"{prefix}host: {host!r} is not an address of this machine.") from None
    except OSError as error:
        for sock in socks:
            sock.close()
        other = "--port" if setting == "server" else f"{prefix}port"
        taken = (
            f" Another program listens there; choose another with {other}." if error.errno == errno.EADDRINUSE else ""
        )
        raise SettingsError(f"Cannot listen on {host}:{port}: {error.strerror}.{taken}", exit_code=1) from None
    return socks


def bind_unix(path: Path, access: SocketAccess) -> tuple[socket.socket, UnixFile]:
    """The listening Unix socket at `path`, and its file. Replaces the file of a dead server. Raises SettingsError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale_file(path)
        with _file_mode(_MODES[access]):
            sock.bind(str(path))
        sock.listen(_BACKLOG)
        found = path.lstat()
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise SettingsError(f"server.uds: cannot listen on {path}: {reason}.", exit_code=1) from None
    except SettingsError:
        sock.close()
        raise
    return sock, UnixFile(path, _identity(found))


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    # With the time, because a file system may reuse an inode number at once.
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _remove_stale_file(path: Path) -> None:
    """Remove the socket file of a dead server. Raises SettingsError for any other file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"server.uds: {path} exists and is not a socket; choose another path, or remove it.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            # Its queue is full, so a server listens.
            pass
    raise SettingsError(f"server.uds: another program listens on {path}.", exit_code=1)


@contextlib.contextmanager
def _file_mode(mode: int) -> Iterator[None]:
    # Set before the file exists: between `bind` and a `chmod` other users could connect.
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def url_of(host: str, sock: socket.socket, *, tls: bool = False) -> str:
    """The URL at which a listening socket can be reached."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - shown, not bound
    shown = everywhere.get(host, f"[{host}]" if ":" in host else host)
    return f"http{'s' if tls else ''}://{shown}:{sock.getsockname()[1]}"
