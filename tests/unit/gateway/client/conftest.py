from __future__ import annotations

import pytest

from tests.unit.gateway.client.callers import AsyncCaller, Caller, SyncCaller, Waits


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    kind: Caller = request.param
    return kind


@pytest.fixture
def waits() -> Waits:
    return Waits()
