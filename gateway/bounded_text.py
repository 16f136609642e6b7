"""Texts whose length or content somebody else decides, bounded before they reach a client or the log."""

from __future__ import annotations

import logging
import traceback

# No text about what a client sent is longer. vLLM's sentences may quote whole values.
LONGEST_TEXT = 2000


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text, cut if it is long, in characters that UTF-8 has."""
    if len(text) > longest:
        text = f"{text[:longest]}... ({len(text)} characters)"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def log_defect(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log an error that nobody foresaw in one line: what it is and where it was raised. The stack follows at debug
    level only: whoever has found an input that leads there can send it a thousand times a second."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    where = f" at {frames[0].filename}:{frames[0].lineno}" if frames else ""
    debug = logger.isEnabledFor(logging.DEBUG)
    # In one line, whoever has chosen the words.
    words = shortened(" ".join(str(error).split()), 500)
    logger.error("%s: %s: %s%s", what, type(error).__name__, words, where, exc_info=error if debug else None)


__all__ = ["LONGEST_TEXT", "log_defect", "shortened"]
