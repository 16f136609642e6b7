"""Running jobs, jobs that wait for a slot, and the tokens that running jobs hold in the KV cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from loadtest.mock.stream import Job


class Slots:
    """At most `limit` jobs at a time (None: no limit), in order of arrival."""

    def __init__(self, limit: int | None, start: Callable[[Job], object]) -> None:
        self._limit = limit
        self._start = start
        self._running: dict[Job, int] = {}
        self._waiting: deque[Job] = deque()
        self.tokens = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Start the job now or when a slot is free."""
        if self._limit is None or len(self._running) < self._limit:
            self._begin(job)
        else:
            self._waiting.append(job)

    def add_tokens(self, job: Job, tokens: int) -> None:
        self._running[job] += tokens
        self.tokens += tokens

    def release(self, job: Job) -> None:
        """The job has ended, or was never started."""
        if job not in self._running:
            self._waiting.remove(job)
            return
        self.tokens -= self._running.pop(job)
        if self._waiting:
            self._begin(self._waiting.popleft())

    def _begin(self, job: Job) -> None:
        self._running[job] = job.prompt_tokens
        self.tokens += job.prompt_tokens
        self._start(job)
