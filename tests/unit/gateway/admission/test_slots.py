from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.slots import FIRST_GUESS_S, RETRY_AFTER_RANGE_S, SlotPool


def test_a_slot_fits_until_all_are_taken() -> None:
    budget = SlotPool(3)
    budget.take(2)

    assert budget.fits(1)
    assert not budget.fits(2)


def test_slots_given_back_can_be_taken_again() -> None:
    budget = SlotPool(1)
    budget.take(1)
    budget.release(1, 2.0)

    assert budget.taken == 0
    assert budget.fits(1)


def test_the_first_measurement_replaces_the_guess() -> None:
    """The guess is worth nothing once something is known; averaging with it would only delay the truth."""
    budget = SlotPool(1)
    budget.take(1)
    budget.release(1, 40.0)

    assert budget.retry_after_s(0) == 40


def test_slots_that_were_never_used_leave_the_estimate_of_holding_times() -> None:
    budget = SlotPool(1)
    budget.take(1)
    budget.release(1, None)

    assert budget.retry_after_s(9) == 10 * FIRST_GUESS_S


def test_later_measurements_move_the_average_slowly() -> None:
    budget = SlotPool(1)
    for held_s in (10.0, 20.0):
        budget.take(1)
        budget.release(1, held_s)

    assert budget.retry_after_s(0) == 12


@given(
    slots=st.integers(1, 500),
    held_s=st.lists(st.floats(0, 1e6), max_size=5),
    waiting=st.integers(0, 10_000),
)
def test_retry_after_stays_in_range_and_never_shrinks_with_the_queue(
    slots: int, held_s: list[float], waiting: int
) -> None:
    budget = SlotPool(slots)
    for seconds in held_s:
        budget.take(1)
        budget.release(1, seconds)
    low, high = RETRY_AFTER_RANGE_S

    assert low <= budget.retry_after_s(waiting) <= budget.retry_after_s(waiting + 1) <= high
