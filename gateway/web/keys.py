"""Static API keys: a file of `name:sha256` lines, read again when it changes.

Only hashes are stored. Keys have 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a
slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

from gateway.clock import Clock
from gateway.errors import SettingsError

logger = logging.getLogger(__name__)

_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64})")
# A stat per request would be cheap, too, but a burst of requests need not each make one.
_LOOK_EVERY_S = 1.0


def new_key(name: str) -> tuple[str, str]:
    """Make a key: what the client gets, and the line for the file. Raises SettingsError for a bad name."""
    key = "sk-sluice-" + secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise SettingsError("A key's name is 1 to 64 letters, digits, dots, dashes or underscores.")
    return key, line


class Keys:
    """The keys of one file."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """Raises SettingsError if the file cannot be read now; later failures keep the last good keys."""
        self._file = file
        self._clock = clock
        self._stamp, self._hashes = self._read()
        self._looked_s = clock.now()

    def owner(self, authorization: str) -> str | None:
        """The name of the key in an `Authorization` header (or its bare value), None if it is not one of ours."""
        self._refresh()
        scheme, _, token = authorization.partition(" ")
        if not token or scheme.lower() != "bearer":
            return None
        asked = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        found = None
        # Every key is compared, so the time tells neither which one matched nor how far.
        for name, digest in self._hashes:
            if hmac.compare_digest(asked, digest):
                found = name
        return found

    def _refresh(self) -> None:
        if self._clock.now() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = self._clock.now()
        try:
            if self._stat() != self._stamp:
                self._stamp, self._hashes = self._read()
                logger.info("API keys read again: %d", len(self._hashes))
        except (OSError, SettingsError) as error:
            logger.error("the API keys file cannot be read, the last good keys stay: %s", error)

    def _stat(self) -> tuple[int, int, int]:
        stat = self._file.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> tuple[tuple[int, int, int], list[tuple[str, bytes]]]:
        hashes: dict[str, bytes] = {}
        try:
            stamp = self._stat()
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"server.api_keys_file: {self._file} cannot be read ({error}).") from None
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            match = _LINE.fullmatch(text)
            if match is None:
                raise SettingsError(
                    f"server.api_keys_file: {self._file}, line {number} is not `name:sha256`; "
                    "`sluice key new NAME` makes such a line."
                )
            if match[1] in hashes:
                raise SettingsError(f"server.api_keys_file: {self._file}, line {number}: {match[1]} is there twice.")
            hashes[match[1]] = bytes.fromhex(match[2])
        if not hashes:
            raise SettingsError(f"server.api_keys_file: {self._file} holds no key, so nobody could call this server.")
        return stamp, list(hashes.items())


__all__ = ["Keys", "new_key"]
