from __future__ import annotations

from typing import Any

import pytest

from gateway.domain import Caller, RequestStats
from gateway.engine.base import CURRENT_STATS
from tests.support.instrumentation import Recorder


@pytest.fixture(autouse=True)
def stats() -> Any:
    one = RequestStats(Caller(None, "req-1", 0, 0), Recorder())
    token = CURRENT_STATS.set(one)
    yield one
    CURRENT_STATS.reset(token)
