"""Limits the texts of clients and libraries before they reach a client or the log."""

from __future__ import annotations

import logging
import traceback

# The longest text of an error response. vLLM's sentences may quote whole values of a request.
LONGEST_TEXT = 2000


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text, cut to `longest` characters, without characters that UTF-8 cannot encode."""
    if len(text) > longest:
        text = f"{text[:longest]}... ({len(text)} characters)"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def log_defect(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log an unexpected error in one line: its type, text and place. The stack follows at debug level only, because a
    client can repeat an input that raises it a thousand times a second."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    where = f" at {frames[0].filename}:{frames[0].lineno}" if frames else ""
    debug = logger.isEnabledFor(logging.DEBUG)
    # On one line, because a client may have chosen the text.
    words = shortened(" ".join(str(error).split()), 500)
    logger.error("%s: %s: %s%s", what, type(error).__name__, words, where, exc_info=error if debug else None)
