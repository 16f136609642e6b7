from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.domain import Caller, Cause, RequestStats
from gateway.engine.vllm.http_app.running_requests import RunningRequests, RunningSubmission
from tests.support.instrumentation import Recorder


def make_stats(owner: str | None = None) -> RequestStats:
    return RequestStats(Caller(owner, "req-1", 0, 0), Recorder())


@pytest.mark.parametrize(
    ("request_id", "found"),
    [("cmpl-a", True), ("cmpl-a-0", False), ("cmpl-b", True), ("cmpl", False), ("cmpl-c", False)],
)
def test_a_request_has_the_id_of_its_client_and_of_its_sub_requests(request_id: str, found: bool) -> None:
    running = RunningRequests(
        [RunningSubmission(one, make_stats("anna"), None) for one in ("cmpl-a", "cmpl-b-0", "cmpl-b_1")]
    )

    assert running.contains(request_id) is found
    assert bool(running.find(request_id, "anna")) is found


def test_a_request_is_found_for_its_owner_only() -> None:
    request = RunningSubmission("a", make_stats("anna"), None)
    running = RunningRequests([request, RunningSubmission("a", None, None)])

    assert running.find("a", "anna") == [request]
    assert running.find("a", "bert") == []
    assert running.find("a", None) == []


@pytest.mark.parametrize(
    ("cause", "in_background", "ids"),
    [
        (Cause.DISCONNECTED, False, ["a"]),
        (Cause.DISCONNECTED, True, []),
        (Cause.SERVER_DRAINING, True, ["a"]),
    ],
)
def test_a_request_that_is_broken_off_takes_its_tasks_along(cause: Cause, in_background: bool, ids: list[str]) -> None:
    async def run() -> Any:
        stats = make_stats()
        stats.end(cause)
        task = asyncio.create_task(asyncio.sleep(60))
        running = RunningRequests(
            [RunningSubmission("a", stats, task), RunningSubmission("b", make_stats(), None)], lambda _: in_background
        )
        found = running.cancel_tasks(stats)
        await asyncio.sleep(0)
        cancelled = task.cancelled()
        task.cancel()
        return found, cancelled

    assert asyncio.run(run()) == (ids, bool(ids))


def test_work_without_a_request_cancels_nothing() -> None:
    assert RunningRequests([RunningSubmission("a", None, None)]).cancel_tasks(None) == []
