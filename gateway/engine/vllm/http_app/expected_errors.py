"""Keeps out of the log what clients cause: vLLM logs a stack for many a request that is refused, cancelled or left, and
each of them has its answer and its own line already.

Named in vLLM's logging configuration, which is read while vLLM is being imported: nothing of vLLM can be imported here.
"""

from __future__ import annotations

import logging

_REFUSED = frozenset({"VLLMClientError", "GracefulHTTPError", "TemplateError", "RequestValidationError", "SluiceError"})
_ENDED = frozenset({"Aborted", "EngineDeadError", "EngineGenerateError"})
_UNCLEAR = (ValueError, TypeError, OverflowError)
"""What vLLM raises for a wrong request where it has no class of its own; so does Python for a defect."""


class ExpectedErrorFilter(logging.Filter):
    """Drops records of such errors. Of what may be a defect, the class and the place are left."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno >= logging.CRITICAL:
            return True
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & (_REFUSED | _ENDED):
            return False
        if isinstance(error, _UNCLEAR):
            # Their texts quote what the client sent.
            record.msg, record.args = f"{record.funcName}: {type(error).__name__}{raised_at(error)}", ()
            record.exc_info = record.exc_text = None
        return True


def raised_at(error: BaseException) -> str:
    """Where an exception was raised, as the end of a sentence."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


__all__ = ["ExpectedErrorFilter", "raised_at"]
