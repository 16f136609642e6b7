"""Locust's users, and the shape that says how many there are and when it is over.

In an open loop requests do not come from users: each worker's host releases them, and one user per worker stands for
it in Locust's counts. In a closed loop every Locust user is a user. Either way each request is told to Locust once, so
that its own tables, CSV files and reports are right.
"""

from __future__ import annotations

from typing import Any

import gevent
from locust import LoadTestShape, User, events, task

from loadtest.record import Record
from loadtest.session import Session

__all__ = ["LoadShape", "LoadUser", "SSEUser", "StreamError"]


class StreamError(Exception):
    """A request that did not end well. Its text is the kind alone, because Locust counts errors by their text."""


class SSEUser(User):
    """A user whose requests are told to Locust as whole streams. Derive from it for tasks of your own."""

    abstract = True

    def tell(self, record: Record) -> None:
        """Tell Locust what became of a request."""
        tell(record)


def tell(record: Record) -> None:
    """One sample for one request; what was planned to end early is no failure."""
    failed = StreamError(str(record.error)) if record.error is not None else None
    first_ns = record.ttft_from_ns
    context = {
        "tenant": record.tenant,
        "model": record.model,
        "turn": record.turn,
        "id": record.completion_id,
        "ttft_ms": (first_ns - record.intended_ns) / 1e6 if first_ns else None,
        "tpot_ms": record.tpot_us / 1000 if record.tpot_us is not None else None,
        "left_by_plan": record.left_by_plan,
        "detail": record.detail,
    }
    events.request.fire(
        request_type="SSE" if record.stream else "HTTP",
        name=record.workload,
        response_time=(record.ended_ns - record.intended_ns) / 1e6,
        response_length=record.output_tokens,
        exception=failed,
        context=context,
    )


class LoadUser(SSEUser):
    """One user of the scenario."""

    @task
    def ask(self) -> None:
        """Until the run is over."""
        session = Session.of(self.environment)
        if session.host is not None and session.is_closed:
            session.host.use()
        while True:
            # Locust ends users when the shape is through; until then there is nothing to do for this one.
            gevent.sleep(1.0)


class LoadShape(LoadTestShape):
    """As many users as the scenario wants, until all workers have ended."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        session = Session.of(self.runner.environment)
        wanted: Any = session.tick()
        return None if wanted is None else (wanted[0], wanted[1])
