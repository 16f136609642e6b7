"""Memory that the process has freed goes back to the system."""

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
    """Return what is free to the system. glibc keeps it otherwise, hundreds of megabytes after a burst of large bodies.
    Takes milliseconds, so it is for a thread."""
    if _trim is not None:
        _trim(0)


__all__ = ["release_free"]
