"""Static API keys: a file of `name:sha256` lines, read again when it changes.

Only hashes are stored. Keys have 256 random bits, so a plain SHA-256 is enough: a slow hash protects only secrets that
can be guessed. A key is looked up by its digest in a dictionary, so that a request costs one hash for any number of
keys. The duration of the look-up reveals nothing: it depends on the digest of the sent key, which cannot be chosen.

The file is read in a thread of its own, so that the event loop never waits for it, even if it is a pipe, a device, on a
network that hangs, or has 300,000 keys.
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
    """Create a key: the key itself, and its line for the file. Raises SettingsError for an invalid name."""
    key = "sk-sluice-" + secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" + (":operator" if operator else "")
    if not _LINE.fullmatch(line.encode()):
        raise SettingsError("A key's name is 1 to 64 letters, digits, dots, dashes or underscores.")
    return key, line


@dataclass(frozen=True, slots=True)
class KeySet:
    """The content of a file: names by the digests of their keys, and the names of operators."""

    names: Mapping[bytes, str]
    operators: frozenset[str]
    all_names: frozenset[str]


class ApiKeys:
    """The keys of one file."""

    def __init__(self, file: Path) -> None:
        """Raises SettingsError if the file cannot be read now. Later failures keep the last valid keys."""
        self._file = file
        self._stamp, self._keys = _read(file)
        self._checked_stamp = self._stamp
        """The stamp at the last check, so that an invalid file is read once."""
        self._failure = ""
        self._stop = threading.Event()

    def owner(self, key: bytes) -> str | None:
        """The name of that key, None if it is unknown."""
        return self._keys.names.get(hashlib.sha256(key).digest())

    def is_operator(self, name: str) -> bool:
        return name in self._keys.operators

    def has_name(self, name: str) -> bool:
        return name in self._keys.all_names

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Check once a second whether the file has changed, in a daemon thread."""
        threading.Thread(target=self._watch, name="sluice-keys", daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self.refresh()

    def refresh(self) -> None:
        """Read the file if it has changed. If that fails, also because the file is gone, the last valid keys stay: a
        mistake must neither open the server nor lock all clients out. Each failure is logged once."""
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
            # Without this thread no key would ever be revoked.
            logger.exception("the API keys file could not be checked")
        else:
            self._failure = ""
            logger.info("API keys read again: %d", len(self._keys.names))

    def _fail(self, message: str) -> None:
        if message != self._failure:
            self._failure = message
            logger.error("the API keys file cannot be read, the last valid keys stay: %s", message)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> tuple[Stamp, KeySet]:
    """The file's stamp and keys. Raises SettingsError that names the mistake."""
    try:
        # Opening a pipe waits for its writer, and opening a device may have any effect.
        _check(file, os.stat(file))
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as opened:
            found = os.fstat(opened.fileno())
            _check(file, found)
            # A file that grows meanwhile has another stamp at the next check, and is read again.
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
    # Line by line, because one call for all would hold the interpreter for too long, and with it the event loop.
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
            raise SettingsError(f"{where}: {name} is listed twice.")
        if digest in names and (names[digest] in operators) is not bool(match[3]):
            raise SettingsError(f"{where}: {name} has the same key as {names[digest]}, and other rights.")
        names[digest] = name
        taken.add(name)
        if match[3]:
            operators.add(name)
    if not names:
        raise SettingsError(f"server.api_keys_file: {file} holds no key, so no client could call this server.")
    return KeySet(names, frozenset(operators), frozenset(taken))
