"""A log filter for errors that clients cause: vLLM logs a stack for many a request that is refused, cancelled or
abandoned, and each of these already has its answer and its own log line.

vLLM's logging configuration names this module and is read while vLLM is being imported, so nothing of vLLM can be
imported here.
"""

from __future__ import annotations

import logging

_REFUSED = frozenset({"VLLMClientError", "GracefulHTTPError", "TemplateError", "RequestValidationError", "SluiceError"})
_ENDED = frozenset({"Aborted", "EngineDeadError", "EngineGenerateError"})
_AMBIGUOUS = (ValueError, TypeError, OverflowError)
"""vLLM raises these for a wrong request where it has no class of its own, and Python raises them for a defect."""


class ExpectedErrorFilter(logging.Filter):
    """Drops records of errors that clients cause. Of an ambiguous error it keeps the class and the place."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno >= logging.CRITICAL:
            return True
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & (_REFUSED | _ENDED):
            return False
        if isinstance(error, _AMBIGUOUS):
            # Their texts quote the client's input.
            record.msg, record.args = f"{record.funcName}: {type(error).__name__}{raised_at(error)}", ()
            record.exc_info = record.exc_text = None
        return True


def raised_at(error: BaseException) -> str:
    """File and line that raised the error, as the end of a sentence."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
