"""TLS as a filter between bytes and bytes, so that a connection controls when it reads and writes."""

from __future__ import annotations

import ssl


def make_ssl_context(verify: bool) -> ssl.SSLContext:
    """`verify`: accept only certificates of the system's authorities, instead of any."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


class TlsFilter:
    """The TLS state of one connection."""

    def __init__(self, ssl_context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = ssl_context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def handshake_step(self, received: bytes) -> tuple[bool, bytes]:
        """Whether the handshake is complete, and the bytes to send. Raises ssl.SSLError."""
        self._incoming.write(received)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self._object.write(data)
        return self._outgoing.read()

    def decrypt(self, received: bytes) -> tuple[bytes, bool]:
        """The plain bytes, and whether the peer has closed its side. Raises ssl.SSLError."""
        self._incoming.write(received)
        pieces = []
        try:
            while piece := self._object.read(65536):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces), False
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(pieces), True
