"""TLS for the listening port: certificates from files, read again when the files change.

New certificates are used for new connections; open ones stay as they are.
"""

from __future__ import annotations

import logging
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from gateway.errors import SettingsError

logger = logging.getLogger("sluice")

ClientCertificates = Literal["none", "optional", "required"]
Version = Literal["1.2", "1.3"]
_Stamp = tuple[tuple[int, int, int], ...]

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# A chain of certificates has some ten kilobytes; a larger file is something else.
_LARGEST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The TLS settings. `key_file` None: the key is in `cert_file`. `client_certificates` None: required if there is a
    `client_ca_file`."""

    cert_file: Path
    key_file: Path | None = None
    client_ca_file: Path | None = None
    client_certificates: ClientCertificates | None = None
    min_version: Version = "1.2"
    ciphers: str | None = None

    @property
    def paths(self) -> list[tuple[str, Path]]:
        """Pairs of setting and file."""
        named = (
            ("cert_file", self.cert_file),
            ("key_file", self.key_file),
            ("client_ca_file", self.client_ca_file),
        )
        return [(f"server.tls.{name}", file) for name, file in named if file is not None]


class ReloadableContext(ssl.SSLContext):
    """The context of a listener. Each new connection gets the newest certificates."""

    newest: ssl.SSLContext

    def __new__(cls, *_: Any) -> ReloadableContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Called by the event loop for each connection."""
        return self.newest.wrap_bio(*args, **kwargs)


class Certificates:
    """The certificates of a listener, read from files."""

    def __init__(self, files: CertificateFiles) -> None:
        """Raises SettingsError if the files cannot be used."""
        self._files = files
        self._stamp = _stamp(files)
        self.context = ReloadableContext()
        self.context.newest = load(files)

    def refresh(self) -> None:
        """Read changed files again. If they cannot be used, the certificates stay as they were. To be called in a
        thread, because it reads from the disk."""
        try:
            stamp = _stamp(self._files)
            if stamp == self._stamp:
                return
            # Set for invalid files, too, so that they are logged once and not every second.
            self._stamp = stamp
            self.context.newest = load(self._files)
        except SettingsError as error:
            logger.error("TLS: the changed files cannot be used, the certificates stay as they were: %s", error)
        else:
            logger.info("TLS: certificates read again from %s", self._files.cert_file)


def load(files: CertificateFiles) -> ssl.SSLContext:
    """A context with these files. Raises SettingsError that names the setting."""
    for setting, file in files.paths:
        text = _read(setting, file)
        if setting.endswith("key_file") or (files.key_file is None and setting.endswith("cert_file")):
            _check_key(setting, file, text)
        if not setting.endswith("key_file") and b"-----BEGIN CERTIFICATE-----" not in text:
            raise SettingsError(f"{setting}: {file} holds no certificate (PEM).")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[files.min_version]
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.cert_file, files.key_file, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        _raise_unusable(files, error)
    _verify_clients(context, files)
    if files.ciphers is not None:
        try:
            context.set_ciphers(files.ciphers)
        except ssl.SSLError:
            raise SettingsError(f"server.tls.ciphers: OpenSSL has none of {files.ciphers!r}.") from None
    return context


def _verify_clients(context: ssl.SSLContext, files: CertificateFiles) -> None:
    wanted = files.client_certificates or ("none" if files.client_ca_file is None else "required")
    if files.client_ca_file is None:
        if wanted != "none":
            raise SettingsError(
                f"server.tls.client_certificates: {wanted} needs server.tls.client_ca_file, which signs them."
            )
        return
    try:
        context.load_verify_locations(files.client_ca_file)
    except (ssl.SSLError, OSError):
        raise SettingsError(
            f"server.tls.client_ca_file: {files.client_ca_file} holds a certificate that cannot be read."
        ) from None
    context.verify_mode = _VERIFY[wanted]


def _raise_unusable(files: CertificateFiles, error: OSError) -> NoReturn:
    key_setting = "server.tls.cert_file" if files.key_file is None else "server.tls.key_file"
    key_file = files.key_file or files.cert_file
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        raise SettingsError(
            f"{key_setting}: the key in {key_file} is not that of the certificate in {files.cert_file}."
        ) from None
    raise SettingsError(
        f"server.tls.cert_file: OpenSSL cannot use {files.cert_file}"
        + (f" with the key in {key_file}" if files.key_file else "")
        + "; is it a whole PEM file?"
    ) from None


def _check_key(setting: str, file: Path, text: bytes) -> None:
    if b"PRIVATE KEY-----" not in text:
        hint = " Set server.tls.key_file." if setting.endswith("cert_file") else ""
        raise SettingsError(f"{setting}: {file} holds no private key (PEM).{hint}")
    if b"ENCRYPTED" in text:
        raise SettingsError(f"{setting}: the key in {file} has a passphrase, which the server cannot ask for.")


def _read(setting: str, file: Path) -> bytes:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
            raise SettingsError(f"{setting}: {file} is not a file of certificates or keys.")
        return file.read_bytes()
    except FileNotFoundError:
        raise SettingsError(f"{setting}: {file} does not exist.") from None
    except OSError as error:
        raise SettingsError(f"{setting}: {file} cannot be read ({error.strerror}).") from None


def _stamp(files: CertificateFiles) -> _Stamp:
    stamps = []
    for _, file in files.paths:
        try:
            found = file.stat()
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            stamps.append((0, 0, 0))
    return tuple(stamps)


def _no_password() -> str:
    # Without this, OpenSSL would read the passphrase from the terminal.
    return ""
