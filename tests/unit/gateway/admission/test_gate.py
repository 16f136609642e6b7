from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission.gate import Gate, Permit
from gateway.errors import ClientError, Overloaded
from tests.support.instrumentation import Recorder
from tests.support.time import clock, in_virtual_time, run, settle


def make_gate(slots: int = 2, waiting: int = 8, timeout_s: float = 60.0) -> tuple[Gate, Recorder]:
    instrumentation = Recorder()
    gate = Gate(
        max_concurrent=slots,
        max_waiting=waiting,
        queue_timeout_s=timeout_s,
        clock=clock(),
        instrumentation=instrumentation,
    )
    return gate, instrumentation


def enter(gate: Gate, slots: int = 1) -> asyncio.Task[Permit]:
    return asyncio.get_running_loop().create_task(gate.enter(slots))


@in_virtual_time
async def test_a_request_with_a_free_slot_starts_at_once() -> None:
    gate, instrumentation = make_gate()
    permit = await gate.enter()

    assert (gate.slots_taken, gate.queued, instrumentation.waits) == (1, 0, [0.0])

    permit.release()

    assert gate.slots_taken == 0


@in_virtual_time
async def test_a_permit_released_twice_frees_its_slots_once() -> None:
    """Every way out of a request may release, so that none depends on the others."""
    gate, _ = make_gate(slots=2)
    first, second = await gate.enter(), await gate.enter()
    first.release()
    first.release()

    assert gate.slots_taken == 1

    second.release()

    assert gate.slots_taken == 0


@in_virtual_time
async def test_queued_requests_start_in_order_of_arrival() -> None:
    gate, _ = make_gate(slots=1)
    order: list[int] = []

    async def visit(number: int) -> None:
        permit = await gate.enter()
        order.append(number)
        await asyncio.sleep(1)
        permit.release()

    await asyncio.gather(*(visit(number) for number in range(6)))

    assert order == list(range(6))
    assert gate.slots_taken == 0


@in_virtual_time
async def test_a_large_request_at_the_head_is_not_overtaken() -> None:
    """With overtaking, a stream of small requests would starve a large one for ever."""
    gate, _ = make_gate(slots=4)
    first, second = await gate.enter(3), await gate.enter(1)
    large, small = enter(gate, 4), enter(gate, 1)
    await settle()
    first.release()
    await settle()

    assert not large.done()
    assert not small.done()

    second.release()
    await settle()

    assert large.done()
    assert not small.done()

    large.result().release()
    (await small).release()

    assert (gate.slots_taken, gate.queued) == (0, 0)


@in_virtual_time
async def test_a_new_request_does_not_pass_queued_ones_even_if_it_would_fit() -> None:
    gate, _ = make_gate(slots=2)
    held = await gate.enter(1)
    large, small = enter(gate, 2), enter(gate, 1)
    await settle()

    assert gate.slots_taken == 1
    assert not small.done()

    held.release()
    (await large).release()
    (await small).release()

    assert gate.slots_taken == 0


@in_virtual_time
async def test_more_slots_than_there_are_is_the_clients_mistake() -> None:
    gate, instrumentation = make_gate(slots=2)
    with pytest.raises(ClientError, match="at most 2") as caught:
        await gate.enter(3)

    assert caught.value.param == "n"
    assert caught.value.status == 400
    assert instrumentation.rejections == []


@in_virtual_time
async def test_a_full_queue_refuses_at_once() -> None:
    gate, instrumentation = make_gate(slots=1, waiting=1)
    held, waiting = await gate.enter(), enter(gate)
    await settle()
    began = clock().now()
    with pytest.raises(Overloaded) as caught:
        await gate.enter()

    assert clock().now() == began
    assert caught.value.retry_after_s == 2
    assert instrumentation.rejections == ["queue_full"]

    held.release()
    (await waiting).release()


@in_virtual_time
async def test_retry_after_grows_with_the_queue() -> None:
    """A constant would send all clients back at the same moment, too early."""
    hints: list[int | None] = []
    for length in (0, 3, 20):
        gate, _ = make_gate(slots=1, waiting=length)
        held = await gate.enter()
        queue = [enter(gate) for _ in range(length)]
        await settle()
        with pytest.raises(Overloaded) as caught:
            await gate.enter()
        hints.append(caught.value.retry_after_s)
        held.release()
        for task in queue:
            (await task).release()

    assert hints == [1, 4, 21]


@in_virtual_time
async def test_retry_after_follows_how_long_requests_hold_their_slots() -> None:
    gate, _ = make_gate(slots=1, waiting=0)
    permit = await gate.enter()
    await asyncio.sleep(30)
    permit.release()
    permit = await gate.enter()
    with pytest.raises(Overloaded) as caught:
        await gate.enter()

    assert caught.value.retry_after_s == 30

    permit.release()


@in_virtual_time
async def test_a_wait_ends_at_the_queue_timeout() -> None:
    gate, instrumentation = make_gate(slots=1, timeout_s=5)
    held = await gate.enter()
    began = clock().now()
    with pytest.raises(Overloaded, match="waited 5 s") as caught:
        await gate.enter()

    assert clock().now() - began == pytest.approx(5)
    assert caught.value.retry_after_s is not None
    assert (gate.queued, instrumentation.rejections) == (0, ["queue_timeout"])

    held.release()

    assert gate.slots_taken == 0


@in_virtual_time
async def test_a_timed_out_giant_lets_those_behind_it_in() -> None:
    gate, _ = make_gate(slots=2, timeout_s=5)
    held = await gate.enter(1)
    giant = enter(gate, 2)
    await asyncio.sleep(3)
    small = enter(gate, 1)
    with pytest.raises(Overloaded):
        await giant
    await settle()

    assert small.done()

    held.release()
    small.result().release()

    assert gate.slots_taken == 0


@in_virtual_time
async def test_a_cancelled_wait_leaves_no_trace_and_lets_the_next_in() -> None:
    gate, instrumentation = make_gate(slots=2)
    held = await gate.enter(1)
    giant, small = enter(gate, 2), enter(gate, 1)
    await settle()
    giant.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giant
    await settle()

    assert small.done()
    assert (gate.slots_taken, gate.queued, instrumentation.rejections) == (2, 0, [])

    held.release()
    small.result().release()


@in_virtual_time
async def test_a_slot_granted_to_a_request_cancelled_in_the_same_turn_is_passed_on() -> None:
    """The grant has been counted, but the task wakes to a cancellation: without care the slot would be lost."""
    gate, _ = make_gate(slots=1)
    held, unlucky, lucky = await gate.enter(), enter(gate), enter(gate)
    await settle()
    held.release()
    unlucky.cancel()
    await settle()

    assert unlucky.cancelled()
    assert lucky.done()
    assert gate.slots_taken == 1

    lucky.result().release()

    assert gate.slots_taken == 0


@in_virtual_time
async def test_a_slot_granted_just_after_a_cancellation_is_not_lost_either() -> None:
    gate, _ = make_gate(slots=1)
    held, unlucky, lucky = await gate.enter(), enter(gate), enter(gate)
    await settle()
    unlucky.cancel()
    held.release()
    await settle()

    assert lucky.done()

    lucky.result().release()

    assert (gate.slots_taken, gate.queued) == (0, 0)


@in_virtual_time
async def test_timeout_and_cancellation_in_the_same_turn_leave_no_unread_error() -> None:
    """The runner fails a test whose future holds an error that was never retrieved."""
    gate, _ = make_gate(slots=1, timeout_s=5)
    held, waiting = await gate.enter(), enter(gate)
    await settle()
    # `settle` has moved the clock by a microsecond since the wait began; both timers fire in one turn of the loop.
    asyncio.get_running_loop().call_at(clock().now() - 1e-6 + 5, waiting.cancel)
    await asyncio.sleep(6)

    assert waiting.cancelled()

    held.release()

    assert (gate.slots_taken, gate.queued) == (0, 0)


@in_virtual_time
async def test_the_time_spent_waiting_is_reported() -> None:
    gate, instrumentation = make_gate(slots=1)
    held, waiting = await gate.enter(), enter(gate)
    await asyncio.sleep(4)
    held.release()
    (await waiting).release()

    assert instrumentation.waits == [0.0, pytest.approx(4)]


STEPS = st.one_of(
    st.tuples(st.just("enter"), st.integers(1, 4)),
    st.tuples(st.just("release"), st.integers(0, 30)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("pause"), st.sampled_from([0.0, 1.0, 3.0, 7.0])),
    st.tuples(st.just("turn"), st.integers(0, 2)),
)


@settings(max_examples=150)
@given(slots=st.integers(1, 5), max_queued=st.integers(0, 6), steps=st.lists(STEPS, max_size=40))
def test_slots_taken_are_the_slots_of_live_permits_whatever_happens(
    slots: int, max_queued: int, steps: list[tuple[str, Any]]
) -> None:
    """Enter, cancel, time out and release in any order, within or across turns of the loop: I5 of the invariants."""
    run(_any_order(slots, max_queued, steps), debug=False)


async def _any_order(slots: int, max_queued: int, steps: list[tuple[str, Any]]) -> None:
    gate, _ = make_gate(slots=slots, waiting=max_queued, timeout_s=5)
    tasks: list[asyncio.Task[Permit]] = []
    released: set[int] = set()

    def live() -> int:
        permits = [task.result() for task in tasks if task.done() and not task.cancelled() and not task.exception()]
        return sum(permit.slots for permit in permits if id(permit) not in released)

    for step, value in steps:
        if step == "enter":
            tasks.append(enter(gate, value))
        elif step == "turn":
            for _ in range(value):
                await asyncio.sleep(0)
        elif step == "pause":
            await (asyncio.sleep(value) if value else settle())
        elif tasks:
            task = tasks[value % len(tasks)]
            if step == "cancel":
                task.cancel()
            elif task.done() and not task.cancelled() and not task.exception():
                released.add(id(task.result()))
                task.result().release()

        assert live() <= gate.slots_taken <= slots
        assert gate.queued <= max_queued
        if step == "pause":
            assert gate.slots_taken == live()
            assert gate.queued == sum(not task.done() for task in tasks)

    while any(not task.done() for task in tasks):
        for task in tasks:
            if task.done() and not task.cancelled() and not task.exception():
                released.add(id(task.result()))
                task.result().release()
        await settle()
    for task in tasks:
        if not task.cancelled() and not task.exception():
            task.result().release()

    assert (gate.slots_taken, gate.queued) == (0, 0)
