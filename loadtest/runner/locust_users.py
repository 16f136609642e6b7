"""Locust's users, and the shape that defines their number and the end of the run.

In an open loop requests do not come from users: each `LoadWorker` starts them, and one user per worker represents it in
Locust's counts. In a closed loop every Locust user is a user. Either way each request is reported to Locust once, so
that Locust's own tables, CSV files and reports are correct.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

import gevent
import orjson
from locust import LoadTestShape, User, events, task

from loadtest.client import tls
from loadtest.client.connection import Address
from loadtest.client.pool import ConnectionPool
from loadtest.client.request_runner import RequestRunner
from loadtest.measure.record import Record
from loadtest.runner.session import Session
from loadtest.scenario.model import Timeouts
from loadtest.scenario.workload import PreparedRequest, ReadPlan


class StreamError(Exception):
    """A request that did not end well. Its text is the kind alone, because Locust counts errors by their text."""


class SSEUser(User):
    """The base of custom users: derive from it and call `stream` in your tasks.

    class Visitor(SSEUser):
        @task
        def chat(self):
            record = self.stream({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50})
    """

    abstract = True
    timeouts = Timeouts()
    tls_verify = True

    def on_start(self) -> None:
        """Locust calls this before the first task; an override must call it."""
        self._connections = ConnectionPool(
            Address.from_url(self.host or "", tls.make_ssl_context(self.tls_verify)), self.timeouts.connect_s
        )
        self._next_number = 0

    def on_stop(self) -> None:
        """As `on_start`."""
        self._connections.close()

    def stream(
        self,
        body: Mapping[str, Any],
        *,
        name: str = "chat",
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> Record:
        """Send a streamed request and read the response. It is reported to Locust once; the record has all times and
        tokens."""
        usage = {"stream_options": {"include_usage": True}}
        full_body = {**usage, **body, "stream": True}
        request = PreparedRequest(
            number=self._next_number,
            turn=1,
            workload=name,
            tenant="default",
            model=str(body.get("model", "")),
            path=path,
            body=orjson.dumps(full_body),
            headers=headers or {},
            stream=True,
            choices=int(body.get("n") or 1),
            max_tokens=int(body.get("max_tokens") or body.get("max_completion_tokens") or sys.maxsize),
            read_plan=ReadPlan(),
            counts_by_usage=bool(full_body["stream_options"].get("continuous_usage_stats")),
            counts_by_ids=bool(body.get("return_token_ids")),
            is_verified=False,
            prompt_start=None,
            keeps_text=False,
        )
        self._next_number += 1
        now_ns = perf_counter_ns()
        runner = RequestRunner(self._connections, self.timeouts, now_ns + int(self.timeouts.deadline_s * 1e9))
        record, _ = runner.run(request, now_ns, lambda _: None)
        report_to_locust(record)
        return record


def report_to_locust(record: Record) -> None:
    """Report one request; a planned early end is no failure."""
    failed = StreamError(str(record.error)) if record.error is not None else None
    first_ns = record.first_token_ns
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


class LoadUser(User):
    """One user of the scenario."""

    @task
    def send_requests(self) -> None:
        """Runs until the end of the run."""
        session = Session.of(self.environment)
        if session.worker is not None and session.is_closed_loop:
            session.worker.run_user()
        while True:
            # Locust ends users when the shape ends the run; until then this user has nothing to do.
            gevent.sleep(1.0)


class LoadShape(LoadTestShape):
    """Keeps the scenario's number of users until all workers have ended."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        session = Session.of(self.runner.environment)
        wanted: Any = session.tick()
        return None if wanted is None else (wanted[0], wanted[1])
