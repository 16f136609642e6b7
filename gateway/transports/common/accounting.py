"""The account of one request: its statistics, and at its end the metrics and the log line.

Every request that uses the engine is reported once, with the cause that its statistics got first: at the end of the
exchange, or, where a resumable stream outlives its exchange, when that stream ends.
"""

from __future__ import annotations

from typing import Any

from gateway.domain import Caller, Cause, Instrumentation, RequestStats
from gateway.logs import ACCESS

DETACHED = "detached"
"""The outcome of an exchange that ends before its resumable stream."""


def new_stats(caller: Caller, instrumentation: Instrumentation) -> RequestStats:
    """The statistics of a request that has just arrived."""
    return RequestStats(caller, instrumentation, on_end=_on_end)


def _on_end(stats: RequestStats) -> None:
    # Of other requests an exchange is still open, and tokens may still be counted.
    if stats.is_resumable:
        _report(stats)


def _report(stats: RequestStats) -> None:
    cause = stats.cause
    assert cause is not None
    stats.instrumentation.ended(cause, 0 if cause is Cause.COMPLETED else stats.completion_tokens)
    if stats.caller.owner is not None:
        stats.instrumentation.used(stats.caller.owner, cause, stats.prompt_tokens, stats.completion_tokens)


def close(
    stats: RequestStats,
    now_s: float,
    *,
    path: str,
    status: int | None,
    is_delivered: bool,
    is_error: bool,
    failure: Cause | None,
    log_level: int,
) -> None:
    """Report an exchange that is over, and log it. `is_delivered`: the client has all of the response; `is_error`: the
    response is an error; `failure`: why the exchange failed, where its resumable stream goes on."""
    caller = stats.caller
    seconds = now_s - caller.arrival_s
    cause: str | None = None
    if not stats.uses_engine:
        outcome = "error" if is_error or not is_delivered else "ok"
    elif stats.is_resumable:
        outcome = cause = str(stats.cause or failure or DETACHED)
    else:
        stats.end(Cause.COMPLETED if is_delivered else Cause.DISCONNECTED)
        assert stats.cause is not None
        _report(stats)
        outcome = cause = stats.cause.value
    stats.instrumentation.served(stats.endpoint, outcome, seconds)
    if ACCESS.isEnabledFor(log_level):
        fields: dict[str, Any] = {
            # A response of vLLM's small endpoints has no id but the request's.
            "id": stats.id,
            "request_id": caller.request_id,
            "path": path,
            "model": stats.model,
            "status": status,
            "cause": cause,
            "prompt_tokens": stats.prompt_tokens if cause else None,
            "completion_tokens": stats.completion_tokens if cause else None,
            "queue_s": None if stats.queued_s is None else round(stats.queued_s, 4),
            "ttft_s": None if stats.first_token_s is None else round(stats.first_token_s - caller.arrival_s, 4),
            "duration_s": round(seconds, 4),
            "owner": caller.owner,
        }
        ACCESS.log(log_level, "request", extra={"fields": fields})
