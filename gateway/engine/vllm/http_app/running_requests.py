"""The requests of vLLM's app that the engine works on, so that they can be found and aborted by id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.domain import Cause, RequestStats


@dataclass(slots=True, eq=False)
class RunningSubmission:
    """One submission to the engine."""

    request_id: str
    stats: RequestStats | None
    task: asyncio.Task[Any] | None
    """The task of vLLM's handler that submitted it."""
    is_aborted: bool = False
    """Whether vLLM's own endpoint has aborted it."""

    def has_id(self, request_id: str) -> bool:
        """Whether that is its id; vLLM appends `-0` or `_0` to the id of a sub-request."""
        return self.request_id == request_id or self.request_id.rstrip("0123456789")[:-1] == request_id


@dataclass(slots=True)
class RunningRequests:
    """All submissions of vLLM's app at the moment."""

    submissions: list[RunningSubmission] = field(default_factory=list)
    is_background_task: Callable[[asyncio.Task[Any]], bool] = field(default=lambda _: False)
    """Whether a task continues after its client has disconnected."""

    def cancel_tasks(self, stats: RequestStats | None) -> list[str]:
        """Cancel the tasks of a request that has been broken off. Returns the ids to abort in the engine: those tasks
        may take long to end, and the engine's slots are needed now."""
        if stats is None:
            return []
        is_disconnected = stats.cause is Cause.DISCONNECTED
        ids = []
        for run in self.submissions:
            if run.stats is not stats:
                continue
            if is_disconnected and run.task is not None and self.is_background_task(run.task):
                continue
            if run.task is not None:
                run.task.cancel()
            ids.append(run.request_id)
        return ids

    def find(self, request_id: str, owner: str | None) -> list[RunningSubmission]:
        """The requests of `owner` with that id."""
        return [
            run
            for run in self.submissions
            if run.stats is not None and run.stats.caller.owner == owner and run.has_id(request_id)
        ]

    def contains(self, request_id: str) -> bool:
        """Whether any owner has a request with that id."""
        return any(run.has_id(request_id) for run in self.submissions)
