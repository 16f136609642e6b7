"""Requests to the workers of one server."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from tests.faults.conftest import Shared
from tests.support.stream_client import Answer, Connection, ask, completion

WORKERS = 2


def worker_of(stream_id: str) -> int:
    found = re.search(r"-w([0-9a-f]{2})", stream_id)
    assert found, stream_id
    return int(found[1], 16)


def answered_by(answer: Answer) -> int:
    return worker_of(answer.headers["x-stream-id"])


async def begin(shared: Shared, worker: int, body: dict[str, Any], **headers: str) -> Connection:
    """A stream that this worker has, as far as its headers."""
    while True:
        connection = await Connection.open(shared.server.port, body, headers={**shared.me, **headers})
        answer = await connection.head()
        if answer.status == 200 and answered_by(answer) == worker:
            return connection
        connection.writer.close()


async def begin_many(shared: Shared, count: int, tokens: int) -> list[asyncio.Task[Answer]]:
    tasks = [
        asyncio.create_task(ask(shared.server.port, completion(first, tokens), headers=shared.me))
        for first in range(count)
    ]
    while shared.server.sample("vllm:num_requests_running") < count:
        assert not any(task.done() for task in tasks)
        await asyncio.sleep(0.05)
    return tasks


def assert_exact(answers: list[Answer], tokens: int) -> None:
    assert [first for first, answer in enumerate(answers) if not answer.exact(first, tokens)] == []
    assert {answered_by(answer) for answer in answers} == set(range(WORKERS)), "all workers had streams"
