"""Static API keys: a file of `name:sha256` lines, read again when it changes.

Only hashes are stored. Keys have 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a
slow hash would protect. A key is looked up by its digest in a dictionary, so that a request costs one hash however many
keys there are. How long the look-up takes tells nothing: it depends on the digest of what was sent, and nobody can
choose a digest, let alone go from one to a key.

The file is read in a thread of its own. Whatever stands in its place (a pipe, a device, a network that hangs, 300,000
keys), the event loop never waits for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import SettingsError

logger = logging.getLogger(__name__)

_LINE = re.compile(rb"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64})(:operator)?")
_LOOK_EVERY_S = 1.0
# Some 400,000 keys with names of usual length.
_LARGEST_BYTES = 64 * 2**20

Stamp = tuple[int, ...]


def new_key(name: str, *, operator: bool = False) -> tuple[str, str]:
    """Make a key: what the client gets, and the line for the file. Raises SettingsError for a bad name."""
    key = "sk-sluice-" + secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" + (":operator" if operator else "")
    if not _LINE.fullmatch(line.encode()):
        raise SettingsError("A key's name is 1 to 64 letters, digits, dots, dashes or underscores.")
    return key, line


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a file holds: names by the digests of their keys, and which of them are operators'."""

    names: Mapping[bytes, str]
    operators: frozenset[str]
    all_names: frozenset[str]


class ApiKeys:
    """The keys of one file."""

    def __init__(self, file: Path) -> None:
        """Raises SettingsError if the file cannot be read now; later failures keep the last good keys."""
        self._file = file
        self._stamp, self._keys = _read(file)
        self._checked_stamp = self._stamp
        """Of the file that was looked at last, so that a bad one is read once."""
        self._failure = ""
        self._stop = threading.Event()

    def owner(self, key: bytes) -> str | None:
        """The name of that key, None if it is not one of ours."""
        return self._keys.names.get(hashlib.sha256(key).digest())

    def is_operator(self, name: str) -> bool:
        """Whether the key of that name may use operator endpoints."""
        return name in self._keys.operators

    def has_name(self, name: str) -> bool:
        """Whether there is a key of that name."""
        return name in self._keys.all_names

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Look once a second whether the file has changed, in a thread that does not keep the process alive."""
        threading.Thread(target=self._watch, name="sluice-keys", daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self.refresh()

    def refresh(self) -> None:
        """Read the file if it has changed. The last good keys stay where that fails, also where the file is gone: a
        mistake must neither open the server nor lock everybody out. Each failure is logged once."""
        try:
            stamp = _stamp(os.stat(self._file))
            if stamp == self._checked_stamp:
                return
            self._checked_stamp = stamp
            if stamp != self._stamp:
                self._stamp, self._keys = _read(self._file)
        except OSError as error:
            self._checked_stamp = ()
            self._fail(f"server.api_keys_file: {self._file} cannot be read ({error.strerror}).")
        except SettingsError as error:
            self._fail(str(error))
        except Exception:
            # This thread has no other end, and without it no key would ever be revoked.
            logger.exception("the API keys file could not be looked at")
        else:
            self._failure = ""
            logger.info("API keys read again: %d", len(self._keys.names))

    def _fail(self, message: str) -> None:
        if message != self._failure:
            self._failure = message
            logger.error("the API keys file cannot be read, the last good keys stay: %s", message)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> tuple[Stamp, KeySet]:
    """The file's stamp and its keys. Raises SettingsError that names what is wrong."""
    try:
        # Opening a pipe waits for whoever writes into it, and opening a device may do anything.
        _check(file, os.stat(file))
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as opened:
            found = os.fstat(opened.fileno())
            _check(file, found)
            # A file that grows meanwhile has another stamp at the next look, and is read again.
            known = _parse(file, opened)
    except OSError as error:
        raise SettingsError(f"server.api_keys_file: {file} cannot be read ({error.strerror}).") from None
    return _stamp(found), known


def _check(file: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"server.api_keys_file: {file} is not a regular file.")
    if found.st_size > _LARGEST_BYTES:
        raise SettingsError(f"server.api_keys_file: {file} is larger than {_LARGEST_BYTES} bytes.")


def _parse(file: Path, lines: Iterable[bytes]) -> KeySet:
    # Line by line, not in one call: no call here holds the interpreter for long, so the event loop gets it in between.
    names: dict[bytes, str] = {}
    taken: set[str] = set()
    operators: set[str] = set()
    read_bytes = 0
    for number, line in enumerate(lines, 1):
        read_bytes += len(line)
        if read_bytes > _LARGEST_BYTES:
            raise SettingsError(f"server.api_keys_file: {file} is larger than {_LARGEST_BYTES} bytes.")
        text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if not text or text.startswith(b"#"):
            continue
        match = _LINE.fullmatch(text)
        where = f"server.api_keys_file: {file}, line {number}"
        if match is None:
            raise SettingsError(
                f"{where} is not `name:sha256` or `name:sha256:operator`; `sluice key new NAME` makes such a line."
            )
        name, digest = match[1].decode(), bytes.fromhex(match[2].decode())
        if name in taken:
            raise SettingsError(f"{where}: {name} is there twice.")
        if digest in names and (names[digest] in operators) is not bool(match[3]):
            raise SettingsError(f"{where}: {name} has the same key as {names[digest]}, and other rights.")
        names[digest] = name
        taken.add(name)
        if match[3]:
            operators.add(name)
    if not names:
        raise SettingsError(f"server.api_keys_file: {file} holds no key, so nobody could call this server.")
    return KeySet(names, frozenset(operators), frozenset(taken))


__all__ = ["ApiKeys", "KeySet", "new_key"]
