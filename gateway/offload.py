"""Work that would block the event loop, in daemon threads, which never delay the process's exit.

Work of one tenant does not delay that of others, short work runs before long, and long work never occupies all threads.
When the caller is cancelled, because the client has left or its deadline has passed, queued work is removed and running
work is abandoned: it ends at its next `checkpoint`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_current = threading.local()
# The jobs that threads of this process run at the moment.
_running: set[_Job] = set()
_running_changed = threading.Condition()
_awaited: set[asyncio.Future[Any]] = set()


def stop_all(timeout_s: float) -> bool:
    """Abandon all running work. Whether it has stopped in time. To be called before the interpreter ends: a thread
    inside a library's native code would then abort the process."""
    with _running_changed:
        for job in _running:
            job.abandoned = True
        return _running_changed.wait_for(lambda: not _running, timeout_s)


def awaited_count() -> int:
    """The number of jobs whose callers wait, in the whole process."""
    return len(_awaited)


class WorkAbandoned(BaseException):
    """The caller no longer waits. Not an Exception, so that no handler takes it for a fault of the input."""


def checkpoint() -> None:
    """Raises WorkAbandoned in work that has been abandoned; elsewhere does nothing. Long work calls it repeatedly."""
    job: _Job | None = getattr(_current, "job", None)
    if job is not None and job.abandoned:
        raise WorkAbandoned


@dataclass(slots=True, eq=False)
class _Job:
    size: int
    number: int
    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    abandoned: bool = False

    def __lt__(self, other: _Job) -> bool:
        return (self.size, self.number) < (other.size, other.number)

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        with _running_changed:
            _running.add(self)
        _current.job = self
        value, failure = None, None
        try:
            value = self.work()
        except BaseException as error:
            failure = error
        finally:
            _current.job = None
            with _running_changed:
                _running.discard(self)
                _running_changed.notify_all()
        if failure is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(failure)


class Offload:
    """A few threads, started on demand."""

    def __init__(self, name: str, threads: int = 3, long_bytes: int = 2**20) -> None:
        """Work of more than `long_bytes` is long; it never occupies the last free thread."""
        self._name = name
        self._long_bytes = long_bytes
        self._threads = threads
        self._started = 0
        self._idle = 0
        self._long_running = 0
        self._closed = False
        self._waiting: OrderedDict[str | None, list[_Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._numbers = itertools.count()

    async def run(self, work: Callable[[], T], *, size: int, tenant: str | None = None) -> T:
        """The result of `work`, which costs about as much as `size` bytes of a request body. Cancelling this call
        abandons the work."""
        job = self.submit(work, size, tenant)
        done: asyncio.Future[T] = asyncio.wrap_future(job.future)
        _awaited.add(done)
        try:
            return await done
        except asyncio.CancelledError:
            self._abandon(job, tenant)
            raise
        finally:
            _awaited.discard(done)

    def close(self) -> None:
        """Take no more work. The threads end after the queued work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def submit(self, work: Callable[[], Any], size: int = 0, tenant: str | None = None) -> _Job:
        """Queue `work`, as in `run`. Raises RuntimeError after `close`."""
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            job = _Job(size, next(self._numbers), work)
            heapq.heappush(self._waiting.setdefault(tenant, []), job)
            # An idle thread may have been notified of earlier work, and not have taken it yet.
            if self._started < self._threads and self._idle < sum(map(len, self._waiting.values())):
                self._started += 1
                threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
            self._changed.notify()
        return job

    def _abandon(self, job: _Job, tenant: str | None) -> None:
        with self._changed:
            job.abandoned = True
            jobs = self._waiting.get(tenant, [])
            if job in jobs:
                jobs.remove(job)
                heapq.heapify(jobs)
                if not jobs:
                    del self._waiting[tenant]

    def _next(self) -> _Job | None:
        """The next job that may run now: the shortest one of the tenant whose turn it is."""
        for tenant, jobs in self._waiting.items():
            if self._is_long(jobs[0]) and self._long_running >= max(1, self._threads - 1):
                continue
            job = heapq.heappop(jobs)
            if jobs:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            return job
        return None

    def _is_long(self, job: _Job) -> bool:
        return job.size > self._long_bytes

    def _serve(self) -> None:
        while (job := self._take()) is not None:
            job.run()
            with self._changed:
                self._long_running -= self._is_long(job)
                self._changed.notify()
            # Otherwise an idle thread would keep the last job and its result alive.
            del job

    def _take(self) -> _Job | None:
        """Wait for the next job that may run; None when the queue is closed and empty."""
        with self._changed:
            while (job := self._next()) is None:
                if self._closed and not self._waiting:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            self._long_running += self._is_long(job)
            return job


class DaemonExecutor(ThreadPoolExecutor):
    """Replaces a library's ThreadPoolExecutor, because the interpreter joins that one's threads at its exit."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "", *args: Any, **kwargs: Any) -> None:
        super().__init__(max_workers, thread_name_prefix, *args, **kwargs)
        self._offload = Offload(thread_name_prefix or "sluice-worker", self._max_workers)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._offload.submit(partial(fn, *args, **kwargs)).future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work. Does not wait for running work."""
        self._offload.close()
