"""Returns freed memory to the system."""

from __future__ import annotations

import ctypes
from typing import Any


def _find() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        # Not glibc.
        return None


_trim = _find()


def release_free() -> None:
    """Return free heap memory to the system. glibc would keep it, hundreds of megabytes after a burst of large bodies.
    Takes milliseconds, so it is to be called in a thread."""
    if _trim is not None:
        _trim(0)
