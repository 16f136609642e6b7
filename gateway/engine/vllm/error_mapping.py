"""Maps vLLM's errors to ours: the right class, with vLLM's message where it is meant for clients, never a stack."""

from __future__ import annotations

import logging
import re
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.serve import create_error_response
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from gateway.bounded_text import log_defect, shortened
from gateway.domain import Cause
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm.bounded_validation import BoundedValidator, to_client_error
from gateway.engine.vllm.exceptions import Aborted, EngineKilledByRequest
from gateway.errors import (
    Cancelled,
    ClientError,
    EngineFailed,
    FatalRequest,
    InternalError,
    NotFound,
    Overloaded,
    SluiceError,
    Unsupported,
)

logger = logging.getLogger(__name__)

# vLLM appends the parameter and the value, which may be the whole prompt.
_SUFFIX = re.compile(r" ?\(parameter=.*\)$", re.S)


GRAMMAR_DEAD_END = (
    "structured_outputs: the model cannot go on within this grammar: it compiles, but it comes to a dead end, or takes "
    "too long for each token."
)


class RefusedByVllm(ClientError):
    """vLLM refuses the request with a status of its own, such as 409 or 413."""

    def __init__(self, message: str, param: str | None, status: int) -> None:
        super().__init__(message, param=param)
        self.status = status  # type: ignore[misc]


def from_validator(error: Exception, model: Any, document: dict[str, Any]) -> SluiceError:
    """An error of vLLM's own validators, with its message if that is meant for clients. If a validator failed on a
    value of an unexpected type, the first field with a wrong type is named instead."""
    if isinstance(error, VLLMError | ValueError):
        return from_exception(error)
    for name, field in getattr(model, "model_fields", {}).items():
        if name not in document:
            continue
        try:
            BoundedValidator(field.annotation)(document[name])
        except ValidationError as problem:
            return to_client_error(problem, inside=name)
    return ClientError("A field of the request body has a value of the wrong type.")


def from_response(response: Any) -> SluiceError:
    """The error in vLLM's ErrorResponse."""
    return from_info(response.error.code, response.error.message, response.error.param)


def from_info(status: int, message: str, param: str | None) -> SluiceError:
    """The error of vLLM's status, message and parameter."""
    message = _SUFFIX.sub("", message)
    if status == 404:
        return NotFound(message, param=param)
    if status == 501:
        return Unsupported(message or "The model that is served does not support this.", param=param)
    if status in (429, 503):
        return Overloaded(message, retry_after_s=1)
    if 400 <= status < 500:
        return RefusedByVllm(message, "structured_outputs" if message == GRAMMAR_DEAD_END else param, status)
    logger.error("vLLM answered %d: %s", status, message)
    return InternalError("The server failed to answer this request.")


def with_client_field(error: SluiceError, request: Any) -> SluiceError:
    """The same error with the field as the client wrote it. vLLM names its own parameters (`input_tokens`),
    `max_tokens` where the client sent `max_completion_tokens`, and no field at all where a template refuses."""
    if not isinstance(error, ClientError):
        return error
    given = "messages" if hasattr(request, "messages") else "prompt"
    message = _SUFFIX.sub("", error.message)
    param = error.param
    if param in ("input_tokens", "input_text"):
        param = given
    elif param == "max_tokens" and getattr(request, "max_completion_tokens", None) is not None:
        param = "max_completion_tokens"
        message = message.replace("max_tokens", param)
    elif param is not None and param.startswith("["):
        # vLLM validates the parts of a message when it renders it, and then names only the part's number.
        param, message = given, f"{given}: in a list of parts, {message}"
    elif param is None:
        first = message.split(" ", 1)[0]
        if first.isidentifier() and first in type(request).model_fields:
            param = first
        elif any(word in message.lower() for word in ("chat template", "conversation", "token id", "role", "message")):
            param = given
    error.message, error.param = shortened(message), param
    return error


def generation_error(*, constrained: bool) -> SluiceError:
    """The error of a request that the engine ended with an error. Where the answer has to follow a grammar, that is the
    cause: vLLM ends a request when it cannot compile the grammar, or no token fits."""
    if constrained:
        return ClientError(GRAMMAR_DEAD_END, param="structured_outputs")
    return EngineFailed("The engine failed this request.", retry_after_s=1)


def current_error() -> SluiceError | None:
    """The cause for which the request of the running task was ended, None if there is none. vLLM's handlers make an
    internal error of it."""
    stats = CURRENT_STATS.get()
    if stats is None:
        return None
    if stats.cause is Cause.CANCELLED:
        return Cancelled("The request was cancelled by its id.")
    if stats.cause is Cause.ENGINE_FAILED and stats.is_fatal:
        return _fatal_error()
    if stats.cause is Cause.ENGINE_FAILED:
        return EngineFailed("The engine died or gave up while it worked on this request.", retry_after_s=1)
    return None


def _fatal_error() -> SluiceError:
    return FatalRequest(
        "The engine died while it worked on this request alone, and not for the first time. It is not tried again."
    )


def from_exception(error: BaseException) -> SluiceError:
    """The error for an exception of vLLM's. An unknown one is logged with its stack, here and nowhere else."""
    if isinstance(error, SluiceError):
        return error
    if isinstance(error, Aborted):
        if getattr(error, "http_status", None) == 503:
            return EngineFailed("The engine gave this request up.", retry_after_s=1)
        return Cancelled("The request was cancelled.")
    if isinstance(error, EngineKilledByRequest):
        return _fatal_error()
    if isinstance(error, EngineDeadError):
        return EngineFailed("The engine died while it worked on this request.", retry_after_s=1)
    if isinstance(error, EngineGenerateError):
        log_defect(logger, "the engine failed a request", error)
        return FatalRequest("The engine failed on this request, and would fail again.")
    if isinstance(error, ValidationError):
        return to_client_error(error)
    response = create_error_response(error)
    # 503: a paused engine refuses (since vLLM 0.33), which is worth another try.
    if response.error.code >= 500 and response.error.code != 503:
        log_defect(logger, "a request failed inside vLLM", error)
        return InternalError("The server failed to answer this request.")
    return from_response(response)
