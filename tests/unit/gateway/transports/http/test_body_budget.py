from __future__ import annotations

import pytest

from gateway.transports.http.body_budget import WINDOW_S, BodyBudget, BodyDeadline


class Body:
    """A connection with a body, or one that has all of it."""

    def __init__(self, budget: BodyBudget, *, arriving: bool = True) -> None:
        self.is_arriving = arriving
        self.refused = False
        self._budget = budget

    def comes(self, count: int) -> Body:
        self._budget.add(self, count)
        return self

    def refuse_over_budget(self) -> None:
        self.refused = True
        self.is_arriving = False


def test_the_body_that_has_been_arriving_for_the_longest_is_refused_first() -> None:
    budget = BodyBudget(100)
    waiting = Body(budget, arriving=False).comes(30)
    slow, other = Body(budget).comes(30), Body(budget).comes(30)
    new = Body(budget).comes(40)

    assert [one.refused for one in (waiting, slow, other, new)] == [False, True, False, False]
    assert budget.used_bytes == 100


def test_a_complete_body_is_never_refused_so_the_new_one_is() -> None:
    budget = BodyBudget(100)
    for _ in range(3):
        Body(budget, arriving=False).comes(30)
    new = Body(budget).comes(11)

    assert new.refused
    assert budget.used_bytes == 90


def test_a_body_is_released_once() -> None:
    budget = BodyBudget(100)
    one = Body(budget).comes(10).comes(20)
    budget.release(one)
    budget.release(one)

    assert budget.used_bytes == 0


def deadline(timeout_s: float = 60, rate: int = 1000) -> BodyDeadline:
    return BodyDeadline(100.0, timeout_s=timeout_s, min_bytes_per_s=rate)


def test_a_body_must_be_complete_in_time_at_any_rate() -> None:
    one = deadline(timeout_s=25)
    for number in range(1, 3):
        assert one.check(100 + WINDOW_S * number, 10**6 * number, paused=False) is None

    assert one.next_check_s == 125
    error = one.check(125, 10**9, paused=False)

    assert error is not None
    assert "25 s (server.body_timeout_s)" in error.message


@pytest.mark.parametrize(("count", "slow"), [(9_999, True), (10_000, False)])
def test_a_body_must_reach_the_minimum_rate_in_every_window(count: int, slow: bool) -> None:
    """What has come before does not count: 15.9 of 16 MiB at once, then a byte now and then, holds as much memory."""
    one = deadline()

    assert one.check(110, 10**7, paused=False) is None

    error = one.check(120, 10**7 + count, paused=False)

    assert (error is not None) == slow
    if error is not None:
        assert "1000 bytes a second (server.min_body_bytes_per_s)" in error.message


def test_the_time_in_which_the_server_does_not_read_does_not_count() -> None:
    one = deadline(timeout_s=15)
    for number in range(1, 20):
        assert one.check(100 + WINDOW_S * number, 5, paused=True) is None

    assert one.next_check_s == 300


def test_a_minimum_rate_of_zero_is_none() -> None:
    one = deadline(timeout_s=10**6, rate=0)
    for number in range(1, 100):
        assert one.check(100 + WINDOW_S * number, 0, paused=False) is None
