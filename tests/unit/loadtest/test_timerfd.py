from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from time import perf_counter_ns

import pytest

from loadtest import timerfd

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")


@pytest.fixture
def timer() -> Iterator[int]:
    fd = timerfd.create()
    yield fd
    os.close(fd)


def expires(fd: int, within_s: float) -> bool:
    return bool(select.select([fd], [], [], within_s)[0])


def test_a_timer_expires_at_its_moment_and_not_before(timer: int) -> None:
    at_ns = perf_counter_ns() + 20_000_000
    timerfd.set_absolute(timer, at_ns)

    assert expires(timer, 10)
    assert perf_counter_ns() >= at_ns


@pytest.mark.parametrize("at_ns", [-1, 0, 1])
def test_a_moment_in_the_past_expires_at_once(timer: int, at_ns: int) -> None:
    timerfd.set_absolute(timer, at_ns)

    assert expires(timer, 10)


def test_a_new_timer_does_not_expire(timer: int) -> None:
    assert not expires(timer, 0)


def test_a_closed_timer_raises() -> None:
    fd = timerfd.create()
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        timerfd.set_absolute(fd, 1)
