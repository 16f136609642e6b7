"""The error tree: every failure that is reported to a client.

    SluiceError                     status  type                    code                 retry
    |- ClientError                  400     invalid_request_error   invalid_request      no
    |  |- Unauthorized              401     authentication_error    invalid_api_key      no
    |  |- Forbidden                 403     permission_error        forbidden            no
    |  |- NotFound                  404     not_found_error         not_found            no
    |  |- MethodNotAllowed          405     invalid_request_error   method_not_allowed   no
    |  |- Expired                   410     not_found_error         expired              no
    |  |- DeadlineExceeded          408     timeout_error           deadline_exceeded    no
    |  |- BodyTooLarge              413     invalid_request_error   body_too_large       no
    |  |- HeadersTooLarge           431     invalid_request_error   headers_too_large    no
    |  |- HeadersTooSlow            408     invalid_request_error   headers_timeout      yes
    |  |- BodyTooSlow               408     invalid_request_error   body_timeout         yes
    |  |- Cancelled                 499     cancelled_error         cancelled            no
    |  `- ClientStalled             499     cancelled_error         client_stalled       yes
    |- Overloaded                   503     overloaded_error        overloaded           yes
    |- NotReady                     503     server_error            server_starting      yes
    |- Draining                     503     server_error            server_draining      yes
    |- EngineFailed                 503     server_error            engine_failed        yes
    |  `- FatalRequest              500     server_error            fatal_request        no
    |- Unsupported                  501     invalid_request_error   not_supported        no
    `- InternalError                500     server_error            internal_error       no
    SettingsError                   not sent to clients: wrong settings or a failed start, with the process's exit code

On Anthropic's endpoints the type is Anthropic's (`anthropic_type`): by the status, unless a class sets it.

Messages are written for the reader who can remove the cause. They never contain an exception's text or a stack.
499 is nginx's code for "client closed request"; openai-python retries 408, 409, 429 and 5xx on its own, and must
not retry a request that was cancelled on purpose. Where clients retry the status although the tree forbids it, the
response carries `x-should-retry: false`, which the official clients obey.

A 503 promises that the request has cost nothing: proxies send it to another server on their own, and many of them see
only the status. After the request has been submitted to the engine, a 503 is sent as 500 (`status_of`): clients still
decide by `retryable`, but no proxy causes a second generation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, TypedDict, Unpack

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
"""The official clients take a larger value for "do not retry"."""


class _Fields(TypedDict, total=False):
    """The arguments of the class statements below: the class variables that differ from the parent's."""

    status: int
    type: str
    code: str
    anthropic_type: str
    retryable: bool
    cause: Cause
    refusal: Cause


class SluiceError(Exception):
    """A failure that is reported to the client, with its status, type, code and retry advice."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    cause: ClassVar[Cause] = Cause.INTERNAL_ERROR
    refusal: ClassVar[Cause | None] = None
    """Replaces `cause` for a request that has not been submitted to the engine."""

    def __init_subclass__(cls, **fields: Unpack[_Fields]) -> None:
        for name, value in fields.items():
            setattr(cls, name, value)

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        message = shortened(message)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else shortened(param, 200)
        self.retry_after_s = None if retry_after_s is None else min(max(retry_after_s, 1), _MOST_RETRY_AFTER_S)

    def body(self) -> dict[str, Any]:
        """The OpenAI error body, with two additions: may the client retry, may it resume (never, after an error)."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "code": self.code,
                "param": self.param,
                "retryable": self.retryable,
                "resumable": False,
            }
        }

    @property
    def anthropic_type(self) -> str:
        usual = "invalid_request_error" if self.status < 500 or self.status == 501 else "api_error"
        return _ANTHROPIC_TYPES.get(self.status, usual)

    def anthropic_body(self, request_id: str | None) -> dict[str, Any]:
        error = {"type": self.anthropic_type, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}


class ClientError(SluiceError, status=400, type="invalid_request_error", code="invalid_request", cause=Cause.REJECTED):
    """The request is wrong; a retry cannot succeed."""


class Unauthorized(ClientError, status=401, type="authentication_error", code="invalid_api_key"):
    """The API key is missing or unknown."""


class Forbidden(ClientError, status=403, type="permission_error", code="forbidden"):
    """The request comes from a page of another site, or its key lacks the permission."""


class NotFound(ClientError, status=404, type="not_found_error", code="not_found"):
    """No such model, stream or path."""


class MethodNotAllowed(ClientError, status=405, code="method_not_allowed"):
    """The path does not take this method. `allowed`: the methods that it takes."""

    def __init__(self, message: str, *, allowed: Collection[str] = (), param: str | None = None) -> None:
        super().__init__(message, param=param)
        more = {"OPTIONS", "HEAD"} if "GET" in allowed else {"OPTIONS"}
        self.allow = ", ".join(sorted({*allowed} | more))


class Expired(ClientError, status=410, type="not_found_error", code="expired"):
    """The stream has existed, and its retention is over."""


class DeadlineExceeded(
    ClientError, status=408, type="timeout_error", code="deadline_exceeded", cause=Cause.DEADLINE_EXCEEDED
):
    """The request's own deadline (`X-Request-Timeout`), or the server's limit for it, has passed."""


class BodyTooLarge(ClientError, status=413, code="body_too_large"):
    """The request body is larger than `server.max_body_bytes`."""


class HeadersTooLarge(ClientError, status=431, code="headers_too_large"):
    """The request line and headers are larger than the limit."""


class HeadersTooSlow(ClientError, status=408, code="headers_timeout", retryable=True):
    """The request's headers were not complete in time."""


class BodyTooSlow(ClientError, status=408, code="body_timeout", retryable=True):
    """The request's body was not complete in time, or arrived too slowly."""


class Cancelled(ClientError, status=499, type="cancelled_error", code="cancelled", cause=Cause.CANCELLED):
    """The request was cancelled by its id."""


class ClientStalled(
    ClientError, status=499, type="cancelled_error", code="client_stalled", retryable=True, cause=Cause.CLIENT_STALLED
):
    """The client did not read its response."""


class Overloaded(
    SluiceError,
    status=503,
    type="overloaded_error",
    code="overloaded",
    anthropic_type="overloaded_error",
    retryable=True,
    cause=Cause.OVERLOADED,
):
    """All slots are taken and the queue is full, or the wait was too long. `reason`: the metric's label."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None, reason: str = ""
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.reason = reason


class NotReady(
    SluiceError,
    status=503,
    code="server_starting",
    anthropic_type="overloaded_error",
    retryable=True,
    cause=Cause.REFUSED_UNREADY,
):
    """The engine is still starting."""


class Draining(
    SluiceError,
    status=503,
    code="server_draining",
    anthropic_type="overloaded_error",
    retryable=True,
    cause=Cause.SERVER_DRAINING,
    refusal=Cause.REFUSED_DRAINING,
):
    """The server is about to stop and takes no new work."""


class EngineFailed(
    SluiceError,
    status=503,
    code="engine_failed",
    retryable=True,
    cause=Cause.ENGINE_FAILED,
    refusal=Cause.REFUSED_UNREADY,
):
    """The engine died, or failed on this request."""


class FatalRequest(EngineFailed, status=500, code="fatal_request", retryable=False, refusal=Cause.ENGINE_FAILED):
    """Engines have died of this request; it is not submitted to another one."""


class Unsupported(SluiceError, status=501, type="invalid_request_error", code="not_supported", cause=Cause.REJECTED):
    """The served model does not support this."""


class InternalError(SluiceError):
    """A defect of the server. The details are in the log only."""


def cause_of(error: SluiceError, *, submitted: bool) -> Cause:
    """The cause of a request that failed with this error; `submitted`: whether it had been submitted to the engine."""
    return error.cause if submitted or error.refusal is None else error.refusal


def status_of(status: int, *, submitted: bool) -> int:
    """The status that is sent for this one; `submitted`: whether the request had been submitted to the engine."""
    return 500 if submitted and status == 503 else status


def is_anthropic(path: str) -> bool:
    """Whether the endpoint is one of Anthropic's, which have their own error body."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def clear_tracebacks(error: BaseException) -> None:
    """Drop the frames that an error has passed, and the errors behind it.

    A frame that holds the error in a future or a variable forms a reference cycle with it, and may hold the request's
    body: 16 MiB that only a full garbage collection would free, which is rare here.
    """
    behind: BaseException | None = error
    while behind is not None:
        error, behind = behind, behind.__context__ or behind.__cause__
        error.__traceback__ = error.__context__ = error.__cause__ = None


class SettingsError(Exception):
    """Wrong settings or a failed start. The process prints one sentence for each problem and exits."""

    def __init__(self, *problems: str, exit_code: int = 2) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.exit_code = exit_code
