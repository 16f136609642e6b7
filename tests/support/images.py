"""PNG pictures without a library."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int, *, rows: int | None = None) -> bytes:
    """A grey picture; with fewer rows than in its header, a broken one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = (b"\0" + b"\x7f" * width) * (height if rows is None else rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


__all__ = ["png"]
