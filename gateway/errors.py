"""Every failure that a client can hear of, in one tree.

    SluiceError                     status  type                    code                 gRPC                 retry
    |- ClientError                  400     invalid_request_error   invalid_request      INVALID_ARGUMENT     no
    |  |- Unauthorized              401     authentication_error    invalid_api_key      UNAUTHENTICATED      no
    |  |- Forbidden                 403     permission_error        forbidden            PERMISSION_DENIED    no
    |  |- NotFound                  404     not_found_error         not_found            NOT_FOUND            no
    |  |- MethodNotAllowed          405     invalid_request_error   method_not_allowed   UNIMPLEMENTED        no
    |  |- Expired                   410     not_found_error         expired              NOT_FOUND            no
    |  |- DeadlineExceeded          408     timeout_error           deadline_exceeded    DEADLINE_EXCEEDED    no
    |  |- BodyTooLarge              413     invalid_request_error   body_too_large       RESOURCE_EXHAUSTED   no
    |  |- HeadersTooLarge           431     invalid_request_error   headers_too_large    RESOURCE_EXHAUSTED   no
    |  |- HeadersTooSlow            408     invalid_request_error   headers_timeout      DEADLINE_EXCEEDED    yes
    |  |- BodyTooSlow               408     invalid_request_error   body_timeout         DEADLINE_EXCEEDED    yes
    |  |- Cancelled                 499     cancelled_error         cancelled            CANCELLED            no
    |  `- ClientStalled             499     cancelled_error         client_stalled       CANCELLED            yes
    |- Overloaded                   503     overloaded_error        overloaded           RESOURCE_EXHAUSTED   yes
    |- NotReady                     503     server_error            server_starting      UNAVAILABLE          yes
    |- Draining                     503     server_error            server_draining      UNAVAILABLE          yes
    |- EngineFailed                 503     server_error            engine_failed        UNAVAILABLE          yes
    |  `- FatalRequest              500     server_error            fatal_request        INTERNAL             no
    |- Unsupported                  501     invalid_request_error   not_supported        UNIMPLEMENTED        no
    `- InternalError                500     server_error            internal_error       INTERNAL             no
    SettingsError                   not for clients: bad settings or a failed start, with the process's exit code

Anthropic's endpoints name the type in Anthropic's words (`anthropic_type`), by the status unless a class says so.

Messages are written for the reader who can mend the cause. They never hold an exception's text or a stack.
499 is nginx's code for "client closed request"; openai-python retries 408, 409, 429 and 5xx on its own, and must
not retry what somebody cancelled on purpose. Where the status says retry and the tree says no, the response carries
`x-should-retry: false`, which the official clients obey.

A 503 promises that the request has cost nothing: proxies send it to another server by themselves, and many of them can
look at nothing but the status. Once the engine has been given the request, 503 is answered as 500 (`status_of`): the
client still decides for itself, by `retryable`, but no proxy has an answer generated a second time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from gateway.bounded_text import shortened
from gateway.domain import Cause

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    410: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "request_too_large",
}

_MOST_RETRY_AFTER_S = 120
"""The official clients take more for "do not retry"."""


class SluiceError(Exception):
    """A failure with everything that a client needs to know about it."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    grpc: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    cause: ClassVar[Cause] = Cause.INTERNAL_ERROR
    refusal: ClassVar[Cause | None] = None
    """The cause instead of `cause` for a request that the engine has not been given."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        message = shortened(message)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else shortened(param, 200)
        self.retry_after_s = None if retry_after_s is None else min(max(retry_after_s, 1), _MOST_RETRY_AFTER_S)

    def body(self, *, resumable: bool = False) -> dict[str, Any]:
        """The OpenAI error body, with our two additions: may the client retry, may it resume."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "code": self.code,
                "param": self.param,
                "retryable": self.retryable,
                "resumable": resumable,
            }
        }

    @property
    def anthropic_type(self) -> str:
        """The type in Anthropic's words."""
        usual = "invalid_request_error" if self.status < 500 or self.status == 501 else "api_error"
        return _ANTHROPIC_TYPES.get(self.status, usual)

    def anthropic_body(self, request_id: str | None) -> dict[str, Any]:
        """The error body of Anthropic's endpoints."""
        error = {"type": self.anthropic_type, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}


class ClientError(SluiceError):
    """The request is wrong; sending it again will not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    grpc = "INVALID_ARGUMENT"
    cause = Cause.REJECTED


class Unauthorized(ClientError):
    """No API key, or one that this server does not know."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    grpc = "UNAUTHENTICATED"


class Forbidden(ClientError):
    """Whoever asks may not have this: a page of another site, or a key without the right."""

    status = 403
    type = "permission_error"
    code = "forbidden"
    grpc = "PERMISSION_DENIED"


class NotFound(ClientError):
    """No such model, stream or path."""

    status = 404
    type = "not_found_error"
    code = "not_found"
    grpc = "NOT_FOUND"


class MethodNotAllowed(ClientError):
    """The path exists, the method does not. `allowed`: those that do."""

    status = 405
    code = "method_not_allowed"
    grpc = "UNIMPLEMENTED"

    def __init__(self, message: str, *, allowed: Collection[str] = (), param: str | None = None) -> None:
        super().__init__(message, param=param)
        more = {"OPTIONS", "HEAD"} if "GET" in allowed else {"OPTIONS"}
        self.allow = ", ".join(sorted({*allowed} | more))


class Expired(ClientError):
    """It was here, and is kept no longer."""

    status = 410
    type = "not_found_error"
    code = "expired"
    grpc = "NOT_FOUND"


class DeadlineExceeded(ClientError):
    """The request's own deadline (`X-Request-Timeout`), or the longest that this server allows, has passed."""

    status = 408
    type = "timeout_error"
    code = "deadline_exceeded"
    grpc = "DEADLINE_EXCEEDED"
    cause = Cause.DEADLINE_EXCEEDED


class BodyTooLarge(ClientError):
    """The request body passes `server.max_body_bytes`."""

    status = 413
    code = "body_too_large"
    grpc = "RESOURCE_EXHAUSTED"


class HeadersTooLarge(ClientError):
    """The request line and headers pass the limit."""

    status = 431
    code = "headers_too_large"
    grpc = "RESOURCE_EXHAUSTED"


class HeadersTooSlow(ClientError):
    """The request's headers were not complete in time."""

    status = 408
    code = "headers_timeout"
    grpc = "DEADLINE_EXCEEDED"
    retryable = True


class BodyTooSlow(ClientError):
    """The request's body was not complete in time, or came too slowly."""

    status = 408
    code = "body_timeout"
    grpc = "DEADLINE_EXCEEDED"
    retryable = True


class Cancelled(ClientError):
    """Somebody cancelled this request by its id."""

    status = 499
    type = "cancelled_error"
    code = "cancelled"
    grpc = "CANCELLED"
    cause = Cause.CANCELLED


class ClientStalled(ClientError):
    """The client did not read what was sent to it."""

    status = 499
    type = "cancelled_error"
    code = "client_stalled"
    grpc = "CANCELLED"
    retryable = True
    cause = Cause.CLIENT_STALLED


class Overloaded(SluiceError):
    """All seats and all places in the waiting room are taken, or the wait was too long: `reason`, as in the metric."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"
    grpc = "RESOURCE_EXHAUSTED"
    anthropic_type = "overloaded_error"
    retryable = True
    cause = Cause.OVERLOADED

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None, reason: str = ""
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.reason = reason


class NotReady(SluiceError):
    """The engine is still starting."""

    status = 503
    code = "server_starting"
    grpc = "UNAVAILABLE"
    anthropic_type = "overloaded_error"
    retryable = True
    cause = Cause.REFUSED_UNREADY


class Draining(SluiceError):
    """The server is about to stop and takes no new work."""

    status = 503
    code = "server_draining"
    grpc = "UNAVAILABLE"
    anthropic_type = "overloaded_error"
    retryable = True
    cause = Cause.SERVER_DRAINING
    refusal = Cause.REFUSED_DRAINING


class EngineFailed(SluiceError):
    """The engine died, or gave up on this request."""

    status = 503
    code = "engine_failed"
    grpc = "UNAVAILABLE"
    retryable = True
    cause = Cause.ENGINE_FAILED
    refusal = Cause.REFUSED_UNREADY


class FatalRequest(EngineFailed):
    """Engines have died of this request; it is not sent to another one."""

    status = 500
    code = "fatal_request"
    grpc = "INTERNAL"
    retryable = False
    refusal = Cause.ENGINE_FAILED


class Unsupported(SluiceError):
    """The model that is served cannot do this."""

    status = 501
    type = "invalid_request_error"
    code = "not_supported"
    grpc = "UNIMPLEMENTED"
    cause = Cause.REJECTED


class InternalError(SluiceError):
    """A defect of ours. The log has the details, the client does not."""


def cause_of(error: SluiceError, *, submitted: bool) -> Cause:
    """Why a request ended that failed with this error; `submitted`: whether the engine had been given it."""
    return error.cause if submitted or error.refusal is None else error.refusal


def status_of(status: int, *, submitted: bool) -> int:
    """The status with which an answer of this status leaves; `submitted`: whether the engine had been given the
    request."""
    return 500 if submitted and status == 503 else status


def is_anthropic(path: str) -> bool:
    """Whether the endpoint is one of Anthropic's, whose errors have a body of their own."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def body_at(path: str, error: SluiceError, request_id: str | None) -> dict[str, Any]:
    """The body of an error's answer at that path."""
    return error.anthropic_body(request_id) if is_anthropic(path) else error.body()


def clear_tracebacks(error: BaseException) -> None:
    """Let go of the frames that an error has passed, and of the errors behind it.

    A frame that holds the future or the variable in which the error came is a reference cycle with it, and holds the
    request's body, too: 16 MiB that only a full garbage collection would free, which is rare here.
    """
    behind: BaseException | None = error
    while behind is not None:
        error, behind = behind, behind.__context__ or behind.__cause__
        error.__traceback__ = error.__context__ = error.__cause__ = None


class SettingsError(Exception):
    """Bad settings, or a start that cannot work; printed as one sentence for each problem, then the process exits."""

    def __init__(self, *problems: str, exit_code: int = 2) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.exit_code = exit_code


__all__ = [
    "BodyTooLarge",
    "BodyTooSlow",
    "Cancelled",
    "ClientError",
    "ClientStalled",
    "DeadlineExceeded",
    "Draining",
    "EngineFailed",
    "Expired",
    "FatalRequest",
    "Forbidden",
    "HeadersTooLarge",
    "HeadersTooSlow",
    "InternalError",
    "MethodNotAllowed",
    "NotFound",
    "NotReady",
    "Overloaded",
    "SettingsError",
    "SluiceError",
    "Unauthorized",
    "Unsupported",
    "body_at",
    "cause_of",
    "clear_tracebacks",
    "is_anthropic",
    "status_of",
]
