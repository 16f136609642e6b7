"""Hints in error sentences about names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(wrong: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known name that is spelled most alike; "" if none reaches `cutoff`, a ratio of `difflib`."""
    return next(iter(difflib.get_close_matches(wrong, known, n=1, cutoff=cutoff)), "")


def did_you_mean(name: str) -> str:
    """The question that is appended to the sentence; "" without a name."""
    return f" Did you mean `{name}`?" if name else ""
