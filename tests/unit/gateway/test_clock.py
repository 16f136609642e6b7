from __future__ import annotations

import asyncio
import time

import pytest

from gateway.clock import SystemClock


def test_the_systems_clock_is_comparable_with_the_event_loops() -> None:
    """Arrival is noted by the server in the loop's time, and compared with the clock's."""

    async def loop_time() -> float:
        return asyncio.get_running_loop().time()

    assert SystemClock().now() == pytest.approx(asyncio.run(loop_time()), abs=1.0)


def test_wall_time_is_unix_time() -> None:
    assert SystemClock().wall() == pytest.approx(time.time(), abs=1.0)
